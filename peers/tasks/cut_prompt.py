"""Prompts that are too long: the longest texts are cut at their left, and the markup of a chat stays.

Markup is each special token, and the line of a role ("user") that follows one in a turn.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

ROLE_LINE = 8  # tokens at most between a special token and the newline that ends a role's line


def cut_prompt(
    prompt: Sequence[int], room: int, special: Collection[int], newlines: Collection[int]
) -> tuple[list[int] | None, int]:
    """The prompt cut to `room` tokens, and the fewest tokens to which it can be cut.

    The longest text loses tokens at its left first, then the next longest. None: there is no room for the
    markup and one token. special: tokens that stay. newlines: tokens of text that have a newline.
    """
    texts = _texts(prompt, special, newlines)
    least = len(prompt) - sum(len(text) for text in texts) + 1
    if room < least:
        return None, least
    excess, dropped = len(prompt) - room, set[int]()
    for text in sorted(texts, key=len, reverse=True):
        cut = text[: min(excess, len(text))]
        dropped.update(cut)
        excess -= len(cut)
    return [token for i, token in enumerate(prompt) if i not in dropped], least


def _texts(prompt: Sequence[int], special: Collection[int], newlines: Collection[int]) -> list[range]:
    """The places of each text between special tokens, without the line of its role."""
    bounds = [-1, *(i for i, token in enumerate(prompt) if token in special), len(prompt)]
    texts = []
    for before, end in itertools.pairwise(bounds):
        first = before + 1
        turn = before >= 0 and end < len(prompt)  # a special token begins it, and another one ends it
        line = next((i for i in range(first, min(end, first + ROLE_LINE)) if prompt[i] in newlines), None)
        if before >= 0 and line is not None and (turn or line == end - 1):
            first = line + 1
        if first < end:
            texts.append(range(first, end))
    return texts
