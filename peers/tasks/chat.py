"""Chats as prompts: the chat template of the tokenizer, or a plain form for tokenizers without one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from peers.errors import InputError, describe
from peers.tasks.base import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAMES = {"user": "Question", "assistant": "Answer"}  # of the plain form


def has_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer brings a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def chat_prompt(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text before the response. Raises InputError for turns that the template refuses.

    The plain form is one line a turn, "Question: ...", and ends in "Answer:".
    """
    if not has_template(tokenizer):
        turns = [f"{NAMES.get(m.role, m.role.capitalize())}: {m.content}\n" for m in messages]
        return "".join(turns) + f"{NAMES['assistant']}:"
    return _render(messages, tokenizer, prompt=True)


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that the template puts after an answer; None if there is none.

    Some models end a turn with another token than a text.
    """
    if not has_template(tokenizer):
        return None
    answer = "unweft"
    rendered = _render([Message("user", "?"), Message("assistant", answer)], tokenizer, prompt=False)
    after = tokenizer.encode(rendered.rpartition(answer)[2], add_special_tokens=False)
    special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", ()))
    return next((token for token in after if token in special), None)


def _render(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, prompt: bool) -> str:
    try:
        rendered = tokenizer.apply_chat_template(
            [message._asdict() for message in messages],
            tokenize=False,
            add_generation_prompt=prompt,
            enable_thinking=False,  # Qwen3: answer at once; other templates ignore it
        )
    except Exception as error:  # a template raises its own errors, such as for roles that do not alternate
        raise InputError(
            f"data: the chat template of the model refuses the messages ({describe(error)}); "
            "allowed: turns that the template accepts"
        ) from error
    return str(rendered)
