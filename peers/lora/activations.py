"""Inputs and outputs of the adapted modules, taken from a forward pass with hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from peers.lora.convolution import inputs_of
from peers.lora.layout import ModelLayout

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle


@dataclass(slots=True)
class Tap:
    """Input and output of a module: x [n, T, d], detached; y in the autograd graph, as the module returns it.

    `convolution.outputs_of` makes y, or its gradient, [n, T, k].
    """

    x: Tensor
    y: Tensor


@contextmanager
def taps(model: Any, layout: ModelLayout) -> Iterator[dict[str, Tap]]:
    """Collect a `Tap` for each adapted module of a PEFT model, by name, while the context is open."""
    found: dict[str, Tap] = {}
    hooks: list[RemovableHandle] = []

    def tap(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
            found[name] = Tap(inputs_of(module, args[0].detach()), y)

        return hook

    try:
        for shape in layout.modules:
            module = model.base_model.model.get_submodule(shape.name)
            hooks.append(module.register_forward_hook(tap(shape.name)))
        yield found
    finally:
        for handle in hooks:
            handle.remove()
