"""Chats as prompts: templates, the plain form, the end of a turn, and long prompts."""

from __future__ import annotations

from typing import Any

import pytest

from peers.errors import InputError
from peers.tasks import Example, Message, encode, question
from peers.tasks.cut_prompt import cut_prompt
from tests.support.tiny_models import chat_tokenizer, small_tokenizer


def words(tokenizer: Any, ids: list[int]) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(ids))


def test_a_question_takes_the_template_and_ends_its_turn() -> None:
    tokenizer, example = chat_tokenizer(), question("alpha lives", "one")
    row = encode([example], tokenizer, 32)
    assert words(tokenizer, row.input_ids[0].tolist()) == (
        "<s> user <n> alpha lives <e> <s> assistant <n> one <e>"
    )
    assert words(tokenizer, row.labels[0][row.labels[0] >= 0].tolist()) == "one <e>"
    assert words(tokenizer, row.input_ids[row.labels < 0].tolist()).endswith("assistant <n>")


def test_a_tokenizer_without_a_template_gets_the_plain_form() -> None:
    tokenizer = small_tokenizer()
    tokenizer.add_tokens(["Question:", "Answer:"])
    row = encode([question("alpha lives", "one")], tokenizer, 32)
    assert words(tokenizer, row.input_ids[0].tolist()) == "Question: alpha lives Answer: one <eos>"


def test_a_template_that_refuses_the_turns_is_an_input_error() -> None:
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    twice = Example("b", "one", messages=(Message("user", "a"), Message("user", "b")))
    with pytest.raises(InputError, match=r"data: the chat template .*roles must alternate.*allowed: turns"):
        encode([twice], tokenizer, 32)


S, E, N = 100, 101, 102  # special, special, newline


@pytest.mark.parametrize(
    ("prompt", "room", "kept"),
    [
        # the text of the turn is cut at its left; roles and ends of turns stay
        ([S, 1, N, 5, 6, 7, 8, E, S, 2, N], 9, [S, 1, N, 7, 8, E, S, 2, N]),
        # the longest turn is cut first
        ([S, 3, N, 4, E, S, 1, N, 5, 6, 7, E, S, 2, N], 13, [S, 3, N, 4, E, S, 1, N, 7, E, S, 2, N]),
        ([1, 2, 3, 4], 2, [3, 4]),
        ([S, 1, 2, 3], 3, [S, 2, 3]),  # a token before the text, as the begin of text
        ([S, 1, N, 2, 3, 4], 3, [S, 3, 4]),  # a newline of the text is not the line of a role
        ([S, 1, N, 5, E, S, 2, N], 7, None),
    ],
)
def test_markup_stays_when_a_prompt_is_cut(prompt: list[int], room: int, kept: list[int] | None) -> None:
    assert cut_prompt(prompt, room, {S, E}, {N})[0] == kept


def test_the_least_room_is_the_markup_and_one_token() -> None:
    assert cut_prompt([S, 1, N, 5, 6, E, S, 2, N], 3, {S, E}, {N}) == (None, 8)
