"""Padding by the image's own edge, resampling, slices and the like on tiles against one device."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.tile_parity import assert_tiles_agree, image


class Calls(nn.Module):
    """A function of the map and of a convolution."""

    def __init__(self, function: Callable[..., Tensor], **options: object) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, dtype=torch.float64, **options)  # type: ignore[arg-type]
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.conv)


SELECTIONS: dict[str, Callable[..., Tensor]] = {
    "reflection": lambda x, _: F.pad(x, (3, 2, 5, 1), "reflect"),
    "reflection across tiles": lambda x, _: F.pad(x, (9, 8, 6, 5), "reflect"),
    "replication": lambda x, _: F.pad(x, (3, 9, 12, 1), "replicate"),
    "replication with cropping": lambda x, _: F.pad(x, (-2, 3, 2, -1), "replicate"),
    "circular": lambda x, _: F.pad(x, (3, 2, 5, 1), "circular"),
    "circular across tiles": lambda x, _: F.pad(x, (12, 13, 7, 7), "circular"),
    "blur pool": lambda x, _: F.conv2d(
        F.pad(x, (1, 1, 1, 1), "reflect"), x.new_ones(2, 1, 3, 3) / 9, stride=2, groups=2
    ),
    "bicubic": lambda x, _: F.interpolate(x, scale_factor=2, mode="bicubic"),
    "bicubic, aligned": lambda x, _: F.interpolate(x, size=(20, 9), mode="bicubic", align_corners=True),
    "bicubic by a factor": lambda x, _: F.interpolate(
        x, scale_factor=1.7, mode="bicubic", recompute_scale_factor=False
    ),
    "bicubic, antialias": lambda x, _: F.interpolate(x, size=(4, 5), mode="bicubic", antialias=True),
    "bilinear, antialias": lambda x, _: F.interpolate(x, size=(4, 5), mode="bilinear", antialias=True),
    "bilinear, aligned": lambda x, _: F.interpolate(x, size=(30, 31), mode="bilinear", align_corners=True),
}

MOVES: dict[str, Callable[..., Tensor]] = {
    "focus": lambda x, conv: conv(torch.cat([x[..., ::2, ::2], x[..., 1::2, 1::2]], 1)[:, 1:3]),
    "crop": lambda x, _: x[:, 0, 3:, 2:-4],
    "patches of the last dimension": lambda x, _: x.permute(0, 2, 3, 1)[:, 1::2, 0::2, :],
    "flip": lambda x, _: torch.flip(x, (2, 3)) + x.flip(-1),
    "flip of channels": lambda x, _: x.flip(1),
    "roll": lambda x, _: torch.roll(x, (3, -5), (2, 3)),
    "stack and unbind": lambda x, conv: torch.stack([one.square() for one in conv(x).unbind(1)], 1),
    "selective kernels": lambda x, conv: (
        torch.stack([conv(x), conv(x).relu()], 1)
        * torch.stack([conv(x), -conv(x)], 1).sum(1).mean((2, 3), keepdim=True).softmax(1).unsqueeze(1)
    ).sum(1),
    "narrow and select": lambda x, conv: conv(x).narrow(1, 1, 2) + conv(x).select(1, 0).unsqueeze(1),
    "expand and repeat": lambda x, _: x[:, :1].expand(-1, 3, -1, -1) + x[:, 1:].repeat(1, 3, 1, 1),
    "pixel shuffle": lambda x, conv: F.pixel_shuffle(conv(x), 2),
    "pixel unshuffle": lambda x, conv: F.pixel_unshuffle(x, 2),
    "channel shuffle": lambda x, conv: F.channel_shuffle(conv(x), 2),
    "local response norm": lambda x, conv: F.local_response_norm(conv(x), 3),
    "movedim": lambda x, conv: conv(x).movedim(1, -1).softmax(-1).movedim(-1, 1),
    "unfold": lambda x, _: F.unfold(x, 3, padding=1, stride=2),
    "unfold and weigh": lambda x, _: (F.unfold(x, (3, 2), dilation=2) * F.unfold(x, (3, 2), dilation=2)).mean(1),
    "a whole map": lambda x, _: x * torch.linspace(-1, 1, 14, dtype=x.dtype, device=x.device),
}


def spread(x: Tensor, conv: nn.Module) -> Tensor:
    """(events, channels, pixels)."""
    return conv(x).flatten(2)


PRODUCTS: dict[str, Callable[..., Tensor]] = {
    "global context": lambda x, conv: (
        conv(x) * (spread(x, conv) @ spread(x, conv)[:, :1].softmax(-1).transpose(1, 2)).unsqueeze(-1)
    ),
    "channels with channels": lambda x, conv: spread(x, conv) @ spread(x, conv).transpose(1, 2) / 100,
    "non-local": lambda x, conv: (
        (spread(x, conv).transpose(1, 2) @ spread(x, conv) / 9).softmax(-1) @ spread(x, conv).transpose(1, 2)
    ),
    "attention": lambda x, conv: F.scaled_dot_product_attention(
        *(spread(x, conv).reshape(len(x), 2, 2, -1).transpose(2, 3) for _ in range(3))
    ),
    "attention to a smaller map": lambda x, conv: F.scaled_dot_product_attention(
        spread(x, conv).transpose(1, 2), *(spread(F.avg_pool2d(x, 2), conv).transpose(1, 2) for _ in range(2))
    ),
    "a matrix for every pixel": lambda x, conv: conv(x).permute(0, 2, 3, 1) @ conv.weight.flatten(1)[:, :3],
    "a matrix for all pixels": lambda x, conv: conv.weight.flatten(1).T @ spread(x, conv),
}


@pytest.mark.parametrize("name", [*MOVES, *PRODUCTS])
def test_moves_and_products(name: str) -> None:
    model = Calls((MOVES | PRODUCTS)[name], padding=1)
    assert_tiles_agree(model, image((2, 2, 10, 14)), 2, 2)
    assert_tiles_agree(model, image((2, 2, 10, 14)), 3, 1)


@pytest.mark.parametrize("name", SELECTIONS)
def test_pixels_that_are_read_by_their_index(name: str) -> None:
    x = image((1, 2, 8, 14))
    assert_tiles_agree(Calls(SELECTIONS[name]), x.contiguous(memory_format=torch.channels_last), 3, 2)
    assert_tiles_agree(Calls(SELECTIONS[name]), x, 1, 3)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_convolutions_that_pad_by_the_image(mode: str) -> None:
    conv = Calls(lambda x, conv: conv(x), padding=2, stride=2, padding_mode=mode)
    assert_tiles_agree(conv, image((2, 2, 9, 13)), 2, 2)
