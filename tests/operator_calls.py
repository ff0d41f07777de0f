"""An example call of every torch function in the table of operators, on a map (N, 4, rows, columns) in float64.

Each gives a map or a whole tensor, and depends on its input, so that gradients are compared too.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from lartpc_ds.exact.ops.pointwise import POINTWISE

__all__ = ["CALLS", "Call"]

Call = Callable[[Tensor], Tensor]

CHANNELS = 4


def _constant(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _weights(*shape: int) -> Callable[[Tensor], Tensor]:
    """A constant tensor on the device of the map, which is the meta device while a model is planned."""
    values = _constant(*shape)
    return lambda x: values.to(x.device)


KERNEL, POINTS, VECTOR = _weights(CHANNELS, CHANNELS, 3, 3), _weights(CHANNELS, CHANNELS), _weights(CHANNELS)

_TWO = set(
    """fmod pow float_power add sub rsub subtract mul multiply div divide true_divide eq ne lt le gt ge
    maximum minimum logical_and logical_or logical_xor""".split()
)
_BITS = set("bitwise_and bitwise_or bitwise_xor and or xor".split())


def _pointwise(name: str) -> Call:
    """The function of this name in torch, with arguments that keep it in its range and away from its kinks."""
    dunder = {"and": "__and__", "or": "__or__", "xor": "__xor__", "invert": "__invert__"}
    function = next(
        getattr(place, known)
        for known in (dunder.get(name, name), f"__{name}__")
        for place in (F, torch, Tensor)
        if hasattr(place, known)
    )

    def call(x: Tensor) -> Tensor:
        y = (x.abs() + 0.3).clamp(max=5.0)
        if name in _TWO:
            return x * function(y, y.detach() * 0.7 + 0.1).to(x.dtype)
        if name in _BITS:
            return x * function(x > 0, x > 0.5).to(x.dtype)
        if name in ("invert", "bitwise_not"):
            return x * function(x > 0).to(x.dtype)
        return x * function(y).to(x.dtype)

    return call


CALLS: dict[str, Call] = {
    # convolutions
    "conv2d": lambda x: F.conv2d(x, KERNEL(x), VECTOR(x), 2, 1),
    "conv_transpose2d": lambda x: F.conv_transpose2d(x, KERNEL(x), VECTOR(x), 2, 1),
    "unfold": lambda x: F.unfold(x, 3, padding=1),
    # pools and padding
    "max_pool2d": lambda x: F.max_pool2d(x, 3, 2, 1) + torch.max_pool2d(x, 3, 2, 1),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "pad": lambda x: F.pad(x, (1, 2, 3, 1), value=0.5),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, 2),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, 2),
    # pixels by index
    "interpolate": lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"),
    "flip": lambda x: x.flip(2),
    "roll": lambda x: x.roll(3, 3),
    # norms
    "batch_norm": lambda x: F.batch_norm(x, VECTOR(x), VECTOR(x).abs() + 0.5, None, None),
    "group_norm": lambda x: F.group_norm(x, 2),
    "instance_norm": lambda x: F.instance_norm(x),
    "layer_norm": lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (CHANNELS,)).permute(0, 3, 1, 2),
    "normalize": lambda x: F.normalize(x, dim=1),
    "local_response_norm": lambda x: F.local_response_norm(x, 3),
    # joins, linear layers
    "cat": lambda x: torch.cat([x, x * 2], 1),
    "concat": lambda x: torch.concat([x, x * 2], 1),
    "concatenate": lambda x: torch.concatenate([x, x * 2], 1),
    "stack": lambda x: torch.stack([x, x * 2], 1).flatten(1, 2),
    "linear": lambda x: F.linear(x.permute(0, 2, 3, 1), POINTS(x)).permute(0, 3, 1, 2),
    "prelu": lambda x: F.prelu(x, VECTOR(x)),
    "cumsum": lambda x: x.cumsum(1),
    # reductions
    "sum": lambda x: x * x.sum(1, keepdim=True),
    "mean": lambda x: x * x.mean(1, keepdim=True),
    "nansum": lambda x: x * x.nansum(1, keepdim=True),
    "nanmean": lambda x: x * x.nanmean(1, keepdim=True),
    "prod": lambda x: x * x.prod(1, keepdim=True),
    "count_nonzero": lambda x: x * (x > 0).count_nonzero(1)[:, None],
    "any": lambda x: x * (x > 1).any(1, keepdim=True),
    "all": lambda x: x * (x > -1).all(1, keepdim=True),
    "amax": lambda x: x * x.amax(1, keepdim=True),
    "amin": lambda x: x * x.amin(1, keepdim=True),
    "max": lambda x: x * x.max(1, keepdim=True).values + torch.max(x, x * x),
    "min": lambda x: x * x.min(1, keepdim=True).values + torch.min(x, x * x),
    "argmax": lambda x: x * x.argmax(1, keepdim=True),
    "argmin": lambda x: x * x.argmin(1, keepdim=True),
    "logsumexp": lambda x: x * x.logsumexp(1, keepdim=True),
    "norm": lambda x: x * x.norm(2, 1, keepdim=True),
    "linalg_vector_norm": lambda x: x * torch.linalg.vector_norm(x, 2, 1, keepdim=True),
    "var": lambda x: x * x.var(1, keepdim=True),
    "std": lambda x: x * x.std(1, keepdim=True),
    "var_mean": lambda x: x * torch.var_mean(x, 1, keepdim=True)[0],
    "std_mean": lambda x: x * torch.std_mean(x, 1, keepdim=True)[1],
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: x.log_softmax(1),
    "softmin": lambda x: F.softmin(x, 1),
    # products
    "matmul": lambda x: (x.permute(0, 2, 3, 1) @ POINTS(x)).permute(0, 3, 1, 2),
    "bmm": lambda x: torch.bmm(x.flatten(2), x.flatten(2).transpose(1, 2)),
    "scaled_dot_product_attention": lambda x: F.scaled_dot_product_attention(*[x.flatten(2).transpose(1, 2)] * 3),
    # shapes
    "permute": lambda x: x.permute(0, 2, 3, 1).relu().permute(0, 3, 1, 2),
    "transpose": lambda x: x.transpose(1, 2).relu().transpose(1, 2),
    "swapaxes": lambda x: x.swapaxes(1, 3).relu().swapaxes(3, 1),
    "movedim": lambda x: x.movedim(1, -1).relu().movedim(-1, 1),
    "moveaxis": lambda x: x.moveaxis(1, -1).relu().moveaxis(-1, 1),
    "reshape": lambda x: x.reshape(len(x), 2, 2, *x.shape[2:]).sum(1),
    "view": lambda x: x.view(len(x), 2, 2, *x.shape[2:]).sum(1),
    "flatten": lambda x: x[:, None].flatten(1, 2),
    "unflatten": lambda x: x.unflatten(1, (2, 2)).sum(1),
    "unsqueeze": lambda x: x.unsqueeze(1).sum(1),
    "squeeze": lambda x: x[:, :1].squeeze(dim=1)[:, None],
    "expand": lambda x: x[:, :1].expand(-1, 3, -1, -1),
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "expand_as": lambda x: VECTOR(x)[None, :, None, None].expand_as(x) * x,
    "getitem": lambda x: x[:, 1:3],
    "chunk": lambda x: x.chunk(2, 1)[1],
    "split": lambda x: x.split(2, 1)[0],
    "tensor_split": lambda x: x.tensor_split(2, dim=1)[1],
    "unbind": lambda x: x.unbind(1)[2][:, None],
    "select": lambda x: x.select(1, 2)[:, None],
    "narrow": lambda x: x.narrow(1, 1, 2),
    "index_select": lambda x: x.index_select(1, torch.tensor([0, 2], device=x.device)),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 2),
    "native_channel_shuffle": lambda x: x * torch.native_channel_shuffle(x.detach(), 2),
    # random numbers, none of which are drawn here: their masks are compared where layouts are
    "dropout": lambda x: F.dropout(x, 0.5, training=False) * 2,
    "dropout2d": lambda x: F.dropout2d(x, 0.5, training=False) * 2,
    "feature_dropout": lambda x: torch.feature_dropout(x, 0.0, False) * 2,
    "bernoulli": lambda x: x * x.new_empty(len(x), 1, 1, 1).bernoulli_(1.0),
    # pointwise
    "log_sigmoid": F.logsigmoid,
    "threshold": lambda x: F.threshold(x, 0.2, 0.1),
    "remainder": lambda x: torch.remainder(x, 2.0),
    "clamp": lambda x: x.clamp(-1.0, 1.0),
    "clamp_min": lambda x: x.clamp_min(-1.0),
    "clamp_max": lambda x: x.clamp_max(1.0),
    "clip": lambda x: x.clip(-1.0, 1.0),
    "rdiv": lambda x: 1.0 / (x.abs() + 0.3),
    "rpow": lambda x: 2.0**x,
    "rsub": lambda x: 1.0 - x,
    "where": lambda x: torch.where(x > 0, x, x * x),
    "lerp": lambda x: torch.lerp(x, x * x, 0.3),
    "addcmul": lambda x: torch.addcmul(x, x, x * 2, value=0.5),
    "addcdiv": lambda x: torch.addcdiv(x, x, x.abs() + 0.3, value=0.5),
    "masked_fill": lambda x: x.masked_fill(x > 1, 0.5),
    "type": lambda x: x * x.type(torch.float32).to(x.dtype),
    "type_as": lambda x: x.float().type_as(x) * x,
    "requires_grad": lambda x: x * x.detach().requires_grad_(False),
    "heaviside": lambda x: x * torch.heaviside(x.detach(), x.detach() * 2),
    "empty_like": lambda x: torch.where(x > x, torch.empty_like(x), x),
    "full_like": lambda x: x * torch.full_like(x, 0.5),
    **{
        name: lambda x, name=name: x * getattr(x > 0.5, name)().to(x.dtype)  # type: ignore[misc]
        for name in "float double half bfloat16 long int short char byte bool".split()
    },
}
CALLS |= {name: _pointwise(name) for name in POINTWISE if name not in CALLS}
