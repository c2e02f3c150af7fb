"""The base model with blocks in it. The own block trains in PEFT. Foreign blocks are folded, or factors.

Folded: the dense weights become W0 + s * sum_foreign B A^T. A local step then costs as much as a rank-r LoRA
step, and the process has weights of its own. Factors: hooks add s * [B_1 ...] ([A_1 ...]^T x), and processes
share W0. `keeps_factors` chooses by module. Apart: as factors, and gradients reach the foreign blocks. A kind
of adapter that is not dense has factors only: hooks add s * [B_1 ...] sigma([A_1 ...]^T x).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from peers.errors import InputError
from peers.lora.blocks import Block, overwrite
from peers.lora.convolution import low_rank
from peers.lora.kinds import AdapterKind
from peers.lora.layout import ModelLayout, ModuleShape
from peers.tasks.loss import mean_loss, predictions

Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

    from peers.tasks.batch import Batch

OWN = "default"  # PEFT's name for the adapter
LARGE = 1 << 16  # numbers in a weight: a copy of a smaller one costs next to nothing
SHARE = 4  # the factors of a module are this much smaller than its weight, or the weight is folded


def keeps_factors(shape: ModuleShape, rank: int) -> bool:
    """Whether foreign blocks of `rank` columns in all stay low-rank factors in this module.

    The factors have R (d + k) numbers, and a folded weight has d k, in each process. A step costs at most
    1/SHARE more with factors, and folding costs time too.
    """
    weight = shape.in_features * shape.out_features
    return weight >= LARGE and SHARE * rank * (shape.in_features + shape.out_features) <= weight


class DenseWeights:
    """Sets weights to W0 + s * sum B A^T, always from W0: a subtraction would leave rounding errors."""

    def __init__(self, model: nn.Module, layout: ModelLayout, scale: float) -> None:
        self._layout, self._scale = layout, scale
        # The cast holds for Conv1D too: it also has `weight` (transposed).
        self._modules = {m.name: cast("nn.Linear", model.get_submodule(m.name)) for m in layout.modules}
        self._base = {name: module.weight for name, module in self._modules.items()}
        self._folded = False

    def fold(self, blocks: Sequence[Block], modules: Sequence[ModuleShape] | None = None) -> None:
        """W <- W0 + s * sum B A^T of the blocks, computed in float32, stored in the dtype of W0.

        modules: None: all. The weights of others are W0.
        """
        self.restore()
        if not blocks:
            return
        for shape in self._layout.modules if modules is None else modules:
            base = self._base[shape.name]
            a, b = concatenated(self._layout, blocks, shape)
            left, right = (a, b.T) if shape.conv1d else (b, a.T)
            with torch.no_grad():
                matrix = base.float().flatten(1)  # of a Conv2d: [k, d]
                folded = torch.addmm(matrix, left, right, alpha=self._scale).view(base.shape).to(base.dtype)
            # A new parameter: another module may share the base weight.
            self._modules[shape.name].weight = nn.Parameter(folded, requires_grad=False)
        self._folded = True

    def restore(self, erase: bool = False) -> None:
        """W <- W0: the original tensors. erase: overwrite the memory of the sums."""
        if self._folded:
            for name, module in self._modules.items():
                if erase and module.weight is not self._base[name]:  # a module with factors has W0 itself
                    overwrite([module.weight])
                module.weight = self._base[name]
            self._folded = False


def concatenated(layout: ModelLayout, blocks: Sequence[Block], shape: ModuleShape) -> tuple[Tensor, Tensor]:
    """[A_1 ... A_N], [d, N r], and [B_1 ... B_N], [k, N r], of one module."""
    rows = layout.slices(shape.group)[shape.name]
    a = torch.cat([block.bases[shape.name] for block in blocks], dim=1)
    b = torch.cat([block.factor(shape.name, block.data[shape.group][rows]) for block in blocks], dim=1)
    return a, b


class FactorHooks:
    """Blocks as factors: hooks add s * [B_1 ...] phi(x) to the outputs of modules.

    modules: by name. They may be PEFT's.
    """

    def __init__(self, modules: Mapping[str, nn.Module], layout: ModelLayout, scale: float) -> None:
        self._modules, self._layout, self._scale = modules, layout, scale
        self._handles: list[RemovableHandle] = []
        self.factors: list[Tensor] = []  # the B of the blocks side by side, by module

    def add(self, shape: ModuleShape, blocks: Sequence[Block], apart: bool = False) -> None:
        """Add the blocks to one module. apart: gradients reach them."""
        hook = self._beside(shape, list(blocks)) if apart else self._added(shape, blocks)
        self._handles.append(self._modules[shape.name].register_forward_hook(hook))

    def clear(self, erase: bool = False) -> None:
        """Remove all hooks. erase: overwrite the memory of their factors."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if erase:
            overwrite(self.factors)
        self.factors.clear()

    def _beside(self, shape: ModuleShape, blocks: list[Block]) -> Hook:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            a, b = concatenated(self._layout, blocks, shape)
            added = low_rank(module, args[0], a, b, self._layout.kind) * self._scale
            return output + added.to(output.dtype)

        return hook

    def _added(self, shape: ModuleShape, blocks: Sequence[Block]) -> Hook:
        a, b = concatenated(self._layout, blocks, shape)
        b.mul_(self._scale)
        self.factors.append(b)

        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output + low_rank(module, args[0], a, b, self._layout.kind).to(output.dtype)

        return hook


class Adapter:
    """A model with one trainable block (PEFT) and any number of foreign blocks. Changes `model` in place.

    PEFT's lora_B weights are views of the own block's matrices. Their gradients are views of `gradients`, by
    group [rows_g, r_g]. A step on lora_B is therefore a step on the block. Other kinds of adapter add hooks
    within PEFT's modules (`shape_lora`). scale: s. device: of the model.
    """

    def __init__(
        self, model: PreTrainedModel, layout: ModelLayout, scale: float, checkpointing: bool = False
    ) -> None:
        """checkpointing: compute activations again in the backward pass. Raises InputError if it cannot."""
        self._layout, self.scale = layout, scale
        self.device = next(model.parameters()).device
        self._dense = DenseWeights(model, layout, scale)  # before PEFT renames the modules
        self.model: Any = _with_lora(model, layout, scale)
        if checkpointing:
            _checkpoint_layers(model)
        self._lora = {m.name: self.model.base_model.model.get_submodule(m.name) for m in layout.modules}
        for lora in self._lora.values():
            shape_lora(lora, OWN, layout.kind)
        self._hooks = FactorHooks(self._lora, layout, scale)
        self.gradients: dict[str, Tensor] = {}
        self.attach(None)

    def loss(self, batch: Batch) -> Tensor:
        """The model's loss on a batch on `device`: mean nats per response token or image."""
        return mean_loss(*predictions(self.model, batch))

    def attach(self, own: Block | None) -> None:
        """Make `own` the block that trains. None: no block trains, and no value of an earlier one stays."""
        self.gradients = {} if own is None else {g: torch.zeros_like(b) for g, b in own.data.items()}
        for shape in self._layout.modules:
            lora, (down, up) = self._lora[shape.name], shape.factor_shapes
            a, trained, gradient = self._own_parts(own, shape)
            lora.lora_A[OWN].weight = nn.Parameter(a.view(down), requires_grad=False)
            if self._layout.kind.gated:
                frozen = a.new_zeros(len(trained), len(a)) if own is None else own.ups[shape.name]
                lora.lora_B[OWN].weight = nn.Parameter(frozen, requires_grad=False)
                lora.lora_B[OWN].gate = nn.Parameter(trained)
                lora.lora_B[OWN].gate.grad = gradient
            else:
                lora.lora_B[OWN].weight = nn.Parameter(trained.view(up))
                lora.lora_B[OWN].weight.grad = None if gradient is None else gradient.view(up)
        self.freeze()

    def _own_parts(self, own: Block | None, shape: ModuleShape) -> tuple[Tensor, Tensor, Tensor | None]:
        """A^T [r, d], the trained matrix and its gradient, [k, columns], of one module. None: zeros."""
        if own is None:
            zeros = self._lora[shape.name].lora_A[OWN].weight.new_zeros
            trained = zeros(shape.out_features, self._layout.rank(shape.group))
            return zeros(shape.rank, shape.in_features), trained, None
        rows = self._layout.slices(shape.group)[shape.name]
        a, trained = own.bases[shape.name].T.contiguous(), own.data[shape.group][rows]
        return a, trained, self.gradients[shape.group][rows]

    def freeze(self) -> None:
        """Let only the own block train: PEFT's set_adapter and load_adapter turn all gradients on again."""
        for lora in self._lora.values():
            up = lora.lora_B[OWN]
            lora.lora_A[OWN].weight.requires_grad_(False)
            up.weight.requires_grad_(not self._layout.kind.gated)
            if self._layout.kind.gated:
                up.gate.requires_grad_(True)

    def place(self, foreign: Sequence[Block], apart: bool = False) -> None:
        """Replace the foreign blocks of the model. apart: gradients must reach them (see the module)."""
        self.clear()
        if not foreign:
            return
        modules, factors_only = self._layout.modules, apart or not self._layout.kind.dense
        factored = [m for m in modules if factors_only or keeps_factors(m, len(foreign) * m.rank)]
        if not factors_only:
            kept = {shape.name for shape in factored}
            self._dense.fold(foreign, [shape for shape in modules if shape.name not in kept])
        for shape in factored:
            self._hooks.add(shape, foreign, apart)

    def clear(self, erase: bool = False) -> None:
        """Remove all foreign blocks from the model: the base and the own block remain.

        erase: overwrite the memory of the weights into which they were folded, and of their factors.
        """
        self._hooks.clear(erase)
        self._dense.restore(erase)


def shape_lora(lora: Any, name: str, kind: AdapterKind) -> None:
    """Make PEFT's LoRA module compute another kind of adapter: hooks change what A and B return.

    lora: a module with the adapter `name`. With sigma: B sigma(A^T x). Gated: b P (A^T x), by rows, where
    lora_B has P, and its `gate` b, [k, 1]. PEFT merges A and B without the hooks: `merge` raises InputError.
    """
    if kind.sigma is not None or kind.gated:
        lora.merge = partial(_merge, lora.merge, lora, name, kind.name)  # not a closure: survives a deep copy
    if kind.sigma is not None:
        lora.lora_A[name].register_forward_hook(lambda module, args, z: kind.activate(z))
    if kind.gated:
        up = lora.lora_B[name]
        up.gate = nn.Parameter(up.weight.new_zeros(len(up.weight), 1))
        up.register_forward_hook(lambda module, args, y: y * module.gate[:, 0])


def _merge(
    merge: Callable[..., None],
    lora: Any,
    name: str,
    kind: str,
    safe_merge: bool = False,
    adapter_names: list[str] | None = None,
) -> None:
    """In the place of `merge` of a PEFT module: all of PEFT's ways to merge an adapter call it."""
    if name in (adapter_names or lora.active_adapters):
        raise InputError(f"merge: {needs_hooks(name, kind)}; allowed: the model as it is, unmerged")
    merge(safe_merge=safe_merge, adapter_names=adapter_names)


def needs_hooks(name: str, kind: str) -> str:
    """The reason why PEFT can neither merge nor save an adapter, for an error."""
    return f"adapter {name!r} has adapter.kind = {kind!r}, and its factors alone compute another function"


def _checkpoint_layers(model: PreTrainedModel) -> None:
    """transformers checkpoints layers in training mode. Only the layers get it: dropout stays off."""
    if not model.supports_gradient_checkpointing:
        kind = type(model).__name__
        raise InputError(f"train.checkpointing: true, which {kind} does not support; allowed: false")
    model.activation_checkpointing_enable({"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True


def _with_lora(model: PreTrainedModel, layout: ModelLayout, scale: float) -> Any:
    """PEFT with alpha = s r everywhere, so that its scaling alpha / r is s. Dropout 0.

    Without a task type, the PEFT model passes every input on to the base model: text or images.
    """
    config = LoraConfig(
        r=1,
        lora_alpha=scale,
        target_modules=[m.name for m in layout.modules],
        rank_pattern={m.name: m.rank for m in layout.modules},
        alpha_pattern={m.name: scale * m.rank for m in layout.modules},
        lora_dropout=0.0,
        fan_in_fan_out=any(m.conv1d for m in layout.modules),
    )
    with warnings.catch_warnings():
        # PEFT 0.21 reads a property that transformers 5 calls deprecated.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        # In a model with Linear and Conv1D, PEFT sets the flag by module, and warns.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to", category=UserWarning)
        # A shared weight stays unchanged: folding gives the module its own weight.
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings", category=UserWarning)
        return get_peft_model(model, config).eval()
