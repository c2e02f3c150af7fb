"""What a model answers with a saved adapter, without some of its devices, and without the adapter.

The models are plain PEFT: `PeftModel.from_pretrained` and `generate`, without code of unweft. Only a kind of
adapter that PEFT does not have needs hooks in them (saved_model.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from peers.config import ModelConfig
from peers.errors import InputError
from peers.models.loader import LoadedModel, load_model
from peers.tasks import Message, end_id, pad_id
from peers.tasks.chat import chat_prompt, has_template, turn_end
from peers.unlearning.forget import forget, read_about
from peers.unlearning.saved_model import add_adapter, load_adapter

BASE = "base model"


@dataclass(frozen=True)
class Answer:
    """The most probable continuation of a prompt. first: the probability of its first token."""

    text: str
    first: float


def compare(
    adapter: Path,
    prompts: Sequence[str],
    without: Sequence[str],
    model: str | None,
    tokens: int,
    plain: bool = False,
) -> dict[str, list[Answer]]:
    """The answers to each prompt, by column: the base model, the adapter, and the adapter without devices.

    without: devices whose contributions are deleted, for the last column only. model: the base model; None:
    the one that the adapter names. tokens: the longest answer. plain: a prompt is the beginning of a text
    also for a model with a chat template; otherwise such a model gets it as the user's question. Raises
    InputError for a folder that unweft did not write, an unknown device, another base model, or a prompt
    without a token.
    """
    recipe, placed = read_about(adapter)
    loaded = load_model(ModelConfig(name=model or recipe.model_name))
    if loaded.sha256 != recipe.model_sha256:
        raise InputError(
            f"--model: the weights of {loaded.name!r} are not those that {adapter} was trained on; "
            f"allowed: {recipe.model_name!r}"
        )
    encoded = [_encoded(loaded, prompt, plain) for prompt in prompts]
    devices = ", ".join(sorted({key.device for key, _ in placed})) or "no device"
    with TemporaryDirectory(prefix="unweft-") as scratch, _quiet():
        reduced = _without(adapter, without, Path(scratch))
        peft = load_adapter(loaded.model, adapter)
        with peft.disable_adapter():
            found = {BASE: [_answer(peft, loaded, ids, tokens) for ids in encoded]}
        found[f"with {devices}"] = [_answer(peft, loaded, ids, tokens) for ids in encoded]
        if reduced is not None:
            add_adapter(peft, reduced, "without")
            found[f"without {', '.join(without)}"] = [_answer(peft, loaded, ids, tokens) for ids in encoded]
    return found


def _without(adapter: Path, devices: Sequence[str], scratch: Path) -> Path | None:
    """A copy of the adapter in `scratch`, without these devices; None if there are none."""
    reduced = None
    for number, device in enumerate(devices):
        out = scratch / str(number)
        forget(reduced or adapter, device, out)
        reduced = out
    return reduced


def _encoded(loaded: LoadedModel, prompt: str, plain: bool) -> torch.Tensor:
    """[1, L] int64: as a training prompt, so without the end that some tokenizers add."""
    chat = prompt and not plain and has_template(loaded.tokenizer)
    text = chat_prompt([Message("user", prompt)], loaded.tokenizer) if chat else prompt
    ids: list[int] = loaded.tokenizer(text, add_special_tokens=not chat)["input_ids"]
    end = end_id(loaded.tokenizer)
    if ids and ids[-1] == end:
        ids = ids[:-1]
    if not ids:
        raise InputError(f"PROMPT: {prompt!r} has no token; allowed: a text")
    return torch.tensor([ids], device=loaded.model.device)


@torch.no_grad()
def _answer(model: Any, loaded: LoadedModel, ids: torch.Tensor, tokens: int) -> Answer:
    made = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=_ends(loaded),
        pad_token_id=pad_id(loaded.tokenizer),
        output_logits=True,
        return_dict_in_generate=True,
    )
    new = made.sequences[0, ids.shape[1] :]
    probability = made.logits[0][0].softmax(-1)[new[0]]
    return Answer(loaded.tokenizer.decode(new, skip_special_tokens=True).strip(), float(probability))


def _ends(loaded: LoadedModel) -> list[int] | None:
    """The tokens that end an answer: the end of a text, and of a turn in a chat. None: it has no end."""
    ends = {end_id(loaded.tokenizer), turn_end(loaded.tokenizer)}
    return sorted(token for token in ends if token is not None) or None


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers warns of settings of the base model that change nothing here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
