"""PEFT carries the own block; the others are folded into the dense weight or added by hooks.

Folded (the default): base weight = W0 + s * sum of the foreign blocks, recomputed from W0 each time, so that a local
step costs what a rank-r LoRA step costs. Apart: where rehearsal drops a block or leak trains foreign copies.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from peers.blocks import BlockKey, Union
from peers.layout import ModelLayout, ModuleSpec
from transformers.pytorch_utils import Conv1D

OWN = "own"


def lora_config(layout: ModelLayout, scale: float, blocks: int = 1, base: str | None = None) -> LoraConfig:
    """A PEFT configuration with `blocks` x r ranks per module and alpha = scale x rank (scaling = `scale`)."""
    ranks = {m.name: m.rank * blocks for m in layout.modules}
    default = max(1, max(ranks.values()))
    return LoraConfig(
        r=default,
        lora_alpha=scale * default,  # type: ignore[arg-type]
        rank_pattern={n: r for n, r in ranks.items() if r != default},
        alpha_pattern={n: scale * r for n, r in ranks.items() if r != default},
        target_modules=[m.name for m in layout.modules],
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
    )


class Adapter:
    """One device's model: base, own block (trainable B, frozen A) and foreign blocks."""

    def __init__(self, model: nn.Module, union: Union) -> None:
        self.union, self.layout = union, union.layout
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to")
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            self.model: PeftModel = get_peft_model(model, lora_config(self.layout, union.scale), OWN)  # type: ignore[arg-type]
        self._layers: dict[str, Any] = {m.name: self.model.base_model.model.get_submodule(m.name) for m in self.layout.modules}
        self._base = {m.name: self._weight(m).detach().clone() for m in self.layout.modules}
        self._hooks: list[RemovableHandle] = []
        self.foreign: dict[tuple[BlockKey, str], Tensor] = {}  # apart: stacked copies by block and group
        self.dropped: BlockKey | None = None
        self.freeze()

    def freeze(self) -> None:
        """Only B trains. PEFT turns gradients of lora_A on again in set_adapter and load_adapter: call this after."""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_("lora_B" in name)

    def parameters(self) -> list[Tensor]:
        return [self._layers[m.name].lora_B[OWN].weight for m in self.layout.modules]

    def load_own(self, key: BlockKey) -> None:
        """Put the own block's basis and values into PEFT's layers."""
        with torch.no_grad():
            for module in self.layout.modules:
                layer = self._layers[module.name]
                layer.lora_A[OWN].weight.copy_(self.union.bases.basis(module, self.union.slots[key]).T)
                layer.lora_B[OWN].weight.copy_(self.union.b(key, module))

    def store_own(self, key: BlockKey) -> None:
        """Read the own block's values back from PEFT's layers."""
        with torch.no_grad():
            for group in self.layout.groups:
                parts = [self._layers[m.name].lora_B[OWN].weight for m in self.layout.of(group)]
                self.union.data[key][group].copy_(torch.cat(parts))

    def fold(self, keys: list[BlockKey]) -> None:
        """Base weight = W0 + s * sum over `keys`, computed in fp32."""
        self.unhook()
        with torch.no_grad():
            for module in self.layout.modules:
                weight, base = self._weight(module), self._base[module.name]
                delta = self.union.delta(module, keys)
                if isinstance(self._layers[module.name].base_layer, Conv1D):
                    delta = delta.T
                weight.copy_(base.float() + delta.to(base.device))

    def apart(self, keys: list[BlockKey], trainable: bool) -> None:
        """Base weight = W0; foreign blocks added by hooks, so that one can be dropped or trained."""
        self.fold([])
        device = next(iter(self._base.values())).device
        self.foreign = {
            (k, g): self.union.data[k][g].clone().to(device).requires_grad_(trainable)
            for k in sorted(keys)
            for g in self.layout.groups
        }
        for group in self.layout.groups:
            offset = 0
            for module in self.layout.of(group):
                self._hook(module, sorted(keys), slice(offset, offset + module.out_features))
                offset += module.out_features

    def unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self.foreign, self.dropped = [], {}, None

    def _hook(self, module: ModuleSpec, keys: list[BlockKey], rows: slice) -> None:
        bases = {k: self.union.bases.basis(module, self.union.slots[k]).to(self._base[module.name].device) for k in keys}

        def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            present = [k for k in keys if k != self.dropped]
            if not present:
                return output
            a = torch.cat([bases[k] for k in present], dim=1)
            b = torch.cat([self.foreign[k, module.group][rows] for k in present], dim=1)
            return output + self.union.scale * ((inputs[0] @ a.to(inputs[0].dtype)) @ b.to(inputs[0].dtype).T)

        self._hooks.append(self._layers[module.name].register_forward_hook(add))

    def _weight(self, module: ModuleSpec) -> nn.Parameter:
        weight = self._layers[module.name].base_layer.weight
        assert isinstance(weight, nn.Parameter)
        return weight
