"""The keys of `adapter`: the blocks that the devices train (methods 1 and 2)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from peers.section import Section, about


class AdapterConfig(Section):
    """The blocks: kind, rank, scale and number of slots."""

    kind: Annotated[
        Literal["lora", "bottleneck-relu", "bottleneck-gelu", "bottleneck-silu", "vera"],
        about(
            "What a block computes. bottleneck: with a function between A and B. vera: B is a trained vector"
            " times a frozen matrix.",
            formula="s * sum B phi(x)",
            source="docs/adapters.md",
        ),
    ] = "lora"
    rank: Annotated[
        Annotated[int, Field(ge=1)] | dict[str, Annotated[int, Field(ge=1)]],
        about("Rank r of a block, or a table of ranks by layer group.", source="method 2"),
    ] = 8
    scale: Annotated[
        float, about("Scale s of all blocks.", formula="dW = s * sum B A^T", source="method 1", gt=0)
    ] = 4.0
    max_devices: Annotated[
        int,
        about("Slots in a module of input width d.", unit="slots", formula="d >= max_devices * r", ge=1),
    ] = 16
    bases: Annotated[
        Literal["orthogonal", "independent"],
        about("How the bases A are drawn. independent: for comparison only.", source="method 2"),
    ] = "orthogonal"
