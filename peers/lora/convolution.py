"""A convolution as a linear map: its inputs are the flattened patches of the image (method 2).

W [k, C, h, w] is [k, d] with d = C h w. A patch is a vector of d numbers, in the same order. A convolution at
T places of an image is therefore a Linear module on T inputs.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from peers.errors import InputError
from peers.lora.kinds import AdapterKind


def check_plain(name: str, module: nn.Conv2d) -> tuple[int, int]:
    """The height and width of the kernel. Raises InputError for a convolution that PEFT adapts otherwise."""
    one = module.groups == 1 and tuple(module.dilation) == (1, 1)
    if not one or module.padding_mode != "zeros" or isinstance(module.padding, str):
        raise InputError(
            f"model.target_modules: {name!r} is a convolution in groups, dilated, or with a padding that is "
            "no number of zeros; allowed: Conv2d with groups = 1, dilation = 1 and padding by zeros"
        )
    height, width = module.kernel_size
    return height, width


def inputs_of(module: nn.Module, x: Tensor) -> Tensor:
    """The inputs of an adapted module as vectors, [n, T, d]: tokens of a text or patches of an image."""
    base = getattr(module, "base_layer", module)  # PEFT's module has the base module within
    if isinstance(base, nn.Conv2d):
        size, stride, padding = base.kernel_size, base.stride, base.padding
        return functional.unfold(x, size, padding=padding, stride=stride).transpose(1, 2)  # type: ignore[arg-type]
    return x.unsqueeze(1) if x.dim() == 2 else x


def outputs_of(y: Tensor) -> Tensor:
    """The outputs (or their gradients) as vectors, [n, T, k]."""
    if y.dim() == 4:
        return y.flatten(2).transpose(1, 2)
    return y.unsqueeze(1) if y.dim() == 2 else y


def low_rank(module: nn.Module, x: Tensor, a: Tensor, b: Tensor, kind: AdapterKind) -> Tensor:
    """B phi(x) in the shape of the module's output; a: [d, R], b: [k, R]."""
    base = getattr(module, "base_layer", module)
    if isinstance(base, nn.Conv2d):
        down = a.T.reshape(-1, base.in_channels, *base.kernel_size)
        z = functional.conv2d(x.to(a.dtype), down, stride=base.stride, padding=base.padding)
        return functional.conv2d(kind.activate(z), b[:, :, None, None])
    return functional.linear(kind.features(x.to(a.dtype), a), b)
