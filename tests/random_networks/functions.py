"""What networks do with maps beside their layers: each function takes maps (N, C, H, W) and gives one."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["JOINS", "ONE_MAP", "attention_over_pixels", "global_context"]


def clipped_product(x: Tensor) -> Tensor:
    return (x * x).clamp(max=4.0) - 0.5 * x


def gated(x: Tensor) -> Tensor:
    first, second = x.chunk(2, 1) if x.shape[1] % 2 == 0 else (x, x)
    return first * second.sigmoid()


def every_other_channel(x: Tensor) -> Tensor:
    return x[:, ::2]


def later_channels(x: Tensor) -> Tensor:
    return x[:, x.shape[1] // 2 :] * 2


def split_and_joined(x: Tensor) -> Tensor:
    parts = x.split(max(1, x.shape[1] // 2), dim=1)
    return torch.cat([part.tanh() for part in reversed(parts)], 1)


def shuffled_channels(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    groups = 2 if c % 2 == 0 else 1
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def excited(x: Tensor) -> Tensor:
    """Squeeze and excite without weights."""
    return x * (x.mean((2, 3), keepdim=True) - x.mean()).sigmoid() if x.shape[1] > 3 else x * 0.5


def excited_by_sums(x: Tensor) -> Tensor:
    return x * (x.sum((2, 3)) / 50).tanh()[:, :, None, None]


def excited_by_maximum(x: Tensor) -> Tensor:
    return x * F.adaptive_max_pool2d(x, 1).sigmoid()


def centred(x: Tensor) -> Tensor:
    return x - x.mean(dim=(-2, -1), keepdim=True)


def masked_mean(x: Tensor) -> Tensor:
    """The mean of what is above zero, which counting a boolean map gives."""
    count = (x > 0).sum((2, 3), keepdim=True)
    return x - F.relu(x).sum((2, 3), keepdim=True) / (count + 1)


def response_norm(x: Tensor) -> Tensor:
    """As ConvNeXt V2's."""
    size = x.norm(p=2, dim=(2, 3), keepdim=True)
    return x + x * (size / (size.mean(1, keepdim=True) + 1e-6))


def attention_to_pixels(x: Tensor) -> Tensor:
    """A weight a pixel, from its channels' mean and largest."""
    return x * torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1).sum(1, keepdim=True).sigmoid()


def attention_to_channels(x: Tensor) -> Tensor:
    return x.softmax(1) * x


def global_context(x: Tensor) -> Tensor:
    """A softmax over all pixels."""
    n, c, h, w = x.shape
    weights = x.mean(1).reshape(n, 1, h * w).softmax(2)
    return x + (x.reshape(n, c, h * w) * weights).sum(2)[:, :, None, None]


def attention_over_pixels(x: Tensor) -> Tensor:
    """Every pixel looks at every other: for whole maps."""
    n, c, h, w = x.shape
    tokens = x.flatten(2).transpose(1, 2)
    y = (tokens @ tokens.transpose(1, 2) / c).softmax(-1) @ tokens
    return y.transpose(1, 2).reshape(n, c, h, w)


def normalised(x: Tensor) -> Tensor:
    return F.normalize(x + 0.1, dim=1)


def by_pixels(x: Tensor) -> Tensor:
    """Channels last and back."""
    y = x.permute(0, 2, 3, 1)
    return F.layer_norm(y, y.shape[-1:]).permute(0, 3, 1, 2)


def more_where_wide(x: Tensor) -> Tensor:
    """Looks at the size, with the same answer for most."""
    return x * 2 if x.shape[2] * x.shape[3] > 10**6 else x + 1


def by_channels(x: Tensor) -> Tensor:
    return x.tanh() if x.shape[1] > 3 else F.silu(x)


def padded_to_even(x: Tensor) -> Tensor:
    return F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))


def divided_by_size(x: Tensor) -> Tensor:
    return x / x.shape[2]


def cropped(x: Tensor) -> Tensor:
    return x[:, :, 1:-1] if x.shape[2] > 3 else x


def mirrored(x: Tensor) -> Tensor:
    return x.flip(3)


def with_a_constant(x: Tensor) -> Tensor:
    """Made without a device, as many networks normalise their images."""
    return (x - torch.tensor([0.5], dtype=x.dtype)) * torch.full((1, 1, 1, 1), 2.0, dtype=x.dtype)


def in_place(x: Tensor) -> Tensor:
    y = x * 1.5
    y += 1
    return y.relu_().sub_(0.1)


def input_in_place(x: Tensor) -> Tensor:
    return F.leaky_relu_(x, 0.3)


def stacked(x: Tensor) -> Tensor:
    return torch.stack([x, x.tanh()], 1).sum(1)


def unfolded_mean(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return F.unfold(x, 3, padding=1).view(n, c, 9, h, w).mean(2)


def summed_channels(x: Tensor) -> Tensor:
    return torch.cat([x, x.cumsum(1)], 1) if x.shape[1] < 4 else x.sum(1, keepdim=True)


def as_a_column(x: Tensor) -> Tensor:
    return x.unsqueeze(2).squeeze(2).unflatten(1, (1, -1)).flatten(1, 2)


def spread(x: Tensor) -> Tensor:
    """Its standard deviation, from two means."""
    variance = (x * x).mean((2, 3), keepdim=True) - x.mean((2, 3), keepdim=True) ** 2
    return x / (variance + 0.1).sqrt()


def by_rows(x: Tensor) -> Tensor:
    """Strip pooling: a mean over columns alone."""
    return x * x.mean(3, keepdim=True).sigmoid()


def added(x: Tensor, y: Tensor) -> Tensor:
    return x + y


def multiplied(x: Tensor, y: Tensor) -> Tensor:
    return x * y.sigmoid()


def larger(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x, y)


def chosen(x: Tensor, y: Tensor) -> Tensor:
    return torch.where(x > y, x, 0.5 * y)


def concatenated(x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([x, y], 1)


def added_in_place(x: Tensor, y: Tensor) -> Tensor:
    x = x * 1
    x += y
    return x


def brought_to_its_size(x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([x, F.interpolate(y, size=x.shape[2:], mode="nearest")], 1)


def smoothly_brought_to_its_size(x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([x, F.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=False)], 1)


def cropped_to_its_size(x: Tensor, y: Tensor) -> Tensor:
    return x + y[:, : x.shape[1], : x.shape[2], : x.shape[3]]


def weighted_by_its_mean(x: Tensor, y: Tensor) -> Tensor:
    return x * y.mean((1, 2, 3), keepdim=True)


def selected(x: Tensor, y: Tensor) -> Tensor:
    """A selective kernel."""
    both = torch.stack([x, y], 1)
    return (both * both.mean((3, 4), keepdim=True).softmax(1)).sum(1)


ONE_MAP: list[tuple[int, Callable[[Tensor], Tensor]]] = [
    (6, clipped_product),
    (6, gated),
    (6, every_other_channel),
    (6, later_channels),
    (6, split_and_joined),
    (6, shuffled_channels),
    (6, excited),
    (6, excited_by_sums),
    (6, excited_by_maximum),
    (6, centred),
    (6, masked_mean),
    (1, response_norm),
    (6, attention_to_pixels),
    (6, attention_to_channels),
    (1, global_context),
    (1, attention_over_pixels),
    (6, normalised),
    (6, by_pixels),
    (6, more_where_wide),
    (6, by_channels),
    (6, padded_to_even),
    (1, divided_by_size),
    (1, cropped),
    (1, mirrored),
    (6, with_a_constant),
    (6, in_place),
    (1, input_in_place),
    (1, stacked),
    (1, unfolded_mean),
    (6, summed_channels),
    (6, as_a_column),
    (6, spread),
    (1, by_rows),
]
"""(how often, what): seldom, what may be refused on tiles."""
JOINS: list[tuple[int, Callable[[Tensor, Tensor], Tensor]]] = [
    (6, added),
    (6, multiplied),
    (6, larger),
    (6, chosen),
    (6, concatenated),
    (6, added_in_place),
    (6, brought_to_its_size),
    (6, smoothly_brought_to_its_size),
    (1, cropped_to_its_size),
    (1, weighted_by_its_mean),
    (1, selected),
]
