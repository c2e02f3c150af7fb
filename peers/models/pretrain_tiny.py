"""Training of the shipped model `tiny`: a small Llama that knows the sentences of `facts`, but no fact.

Each sentence draws a random person and a random answer. The model therefore learns the possible next words,
and all 24 answers are equally likely. docs/tiny.md has the recipe and the hashes.
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from peers.models.loader import TINY_FOLDER, weights_sha256
from peers.tasks import Encoded, Example, encode, mean_loss, predictions
from peers.tasks.facts import ATTRIBUTES, FIRST_NAMES, LAST_NAMES, words

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SEED = 0
BATCH = 64
LR = 2e-3
WARMUP_STEPS = 50
SPECIAL = ("<pad>", "<eos>", "<unk>")


def build_tokenizer() -> PreTrainedTokenizerBase:
    """One token per word, split at white space. Unknown words become <unk>."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *words()])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    pad, eos, unk = SPECIAL
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=pad, eos_token=eos, unk_token=unk)


def build_model(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The untrained model of method 4: 0.7 million parameters."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def random_sentences(rng: random.Random, count: int) -> list[Example]:
    """Sentences as examples: the prompt is the first word, the response is the rest."""
    return [_random_sentence(rng) for _ in range(count)]


def _random_sentence(rng: random.Random) -> Example:
    attribute = rng.choice(ATTRIBUTES)
    wording = rng.choice((attribute.trained, attribute.other))
    person = f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"
    first, _, rest = wording.format(person=person).partition(" ")
    return Example(first, f"{rest} {rng.choice(attribute.values)}", ends=True)


def pretrain(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, steps: int) -> float:
    """Train in place; returns the loss of the last batch in nats per token."""
    rng = random.Random(SEED)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _lr_factor(step, steps))
    loss = math.nan
    model.train()
    for step in range(steps):
        loss = _train_step(model, optimiser, encode(random_sentences(rng, BATCH), tokenizer, max_length=32))
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss:.3f}", flush=True)
    model.eval()
    return loss


def _lr_factor(step: int, steps: int) -> float:
    """Linear warm-up, then a half cosine to zero."""
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    return warmup * 0.5 * (1 + math.cos(math.pi * step / steps))


def _train_step(model: PreTrainedModel, optimiser: torch.optim.Optimizer, batch: Encoded) -> float:
    optimiser.zero_grad()
    loss = mean_loss(*predictions(model, batch))
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    return float(loss.detach())


def main() -> None:
    """Command line: see --help."""
    parser = argparse.ArgumentParser(prog="python -m peers.models.pretrain_tiny", description=__doc__)
    parser.add_argument("--steps", type=int, default=600, help=f"steps of batch {BATCH} (default 600)")
    parser.add_argument("--out", type=Path, default=TINY_FOLDER, help="default: the shipped folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    loss = pretrain(model, tokenizer, arguments.steps)
    model.half().save_pretrained(arguments.out)  # half precision on disk: 1.4 MB; loaded as float32
    tokenizer.save_pretrained(arguments.out)
    print(f"loss {loss:.3f}, weights {weights_sha256(model.float())}")


if __name__ == "__main__":
    main()
