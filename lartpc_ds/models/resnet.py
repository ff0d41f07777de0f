"""ResNet-18, -34 and -50 (arXiv:1512.03385; a bottleneck strides on its 3x3, as torchvision) as a flat trunk of blocks.

The trunk is flat, because pipeline cuts, streaming and recomputation need one list to cut. Rejected: nested
`layer1..4`, which would need a rule to flatten them. The weight of a block's last norm starts at 1, because runs here
are short, and a 0 would mute the block at first.
"""

from torch import Tensor, nn

from lartpc_ds.models.norms import make_norm

__all__ = ["BasicBlock", "Bottleneck", "resnet_trunk"]


def _conv(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution that a norm follows: no bias, padded to keep ceil(size / stride), He initialisation (fan out)."""
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _stem_conv(planes: int, width: int, stride: tuple[int, int]) -> nn.Conv2d:
    kernel, padding = (2 * stride[0] + 3, 2 * stride[1] + 3), (stride[0] + 1, stride[1] + 1)
    conv = nn.Conv2d(planes, width, kernel, stride, padding=padding, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _shortcut(channels_in: int, channels_out: int, stride: int, norm: str) -> nn.Module:
    if stride == 1 and channels_in == channels_out:
        return nn.Identity()
    project = (_conv(channels_in, channels_out, 1), make_norm(norm, channels_out))
    if stride == 1:
        return nn.Sequential(*project)
    # a pool of one pixel is exactly the stride of a 1x1 convolution; torch 2.13 on CPU writes past its memory in the
    # backward pass of a channels-last 1x1 convolution with a stride and fewer than 16 channels
    return nn.Sequential(nn.AvgPool2d(1, stride), *project)


class BasicBlock(nn.Module):
    """relu(x' + norm(conv3x3(relu(norm(conv3x3(x)))))), (N, C, H, W) -> (N, width, ceil(H/stride), ceil(W/stride))."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = _conv(channels, width, 3, stride)
        self.norm1 = make_norm(norm, width)
        self.conv2 = _conv(width, width, 3)
        self.norm2 = make_norm(norm, width)
        self.shortcut = _shortcut(channels, width, stride, norm)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes as in the class."""
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y)) + self.shortcut(x)
        out: Tensor = self.relu(y)
        return out


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up to 4 x width, (N, C, H, W) -> (N, 4 * width, ceil(H/stride), ceil(W/stride))."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = _conv(channels, width, 1)
        self.norm1 = make_norm(norm, width)
        self.conv2 = _conv(width, width, 3, stride)
        self.norm2 = make_norm(norm, width)
        self.conv3 = _conv(width, 4 * width, 1)
        self.norm3 = make_norm(norm, 4 * width)
        self.shortcut = _shortcut(channels, 4 * width, stride, norm)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes as in the class."""
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y)) + self.shortcut(x)
        out: Tensor = self.relu(y)
        return out


_STAGES: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
}


def resnet_trunk(
    depth: int, *, planes: int, width: int, norm: str, stem_stride: tuple[int, int] | None = None
) -> tuple[dict[str, nn.Module], int]:
    """The named blocks from (N, planes, H, W) to (N, channels, ~H/32, ~W/32), and the number `channels`.

    `width` is the number of channels of the first stage; each later stage doubles it and halves the map. `stem_stride`
    (wires, ticks) replaces the stride 2 x 2 of the first convolution: where ticks are far finer than wires, the network
    then gets nearly square pixels at once, and still reads every tick. Its kernel is 2 s + 3 wide, so 7 x 7 for the
    usual stride.
    """
    block, repeats_of_stage = _STAGES[depth]
    trunk: dict[str, nn.Module] = {
        "stem": nn.Sequential(_stem_conv(planes, width, stem_stride or (2, 2)), make_norm(norm, width), nn.ReLU(True)),
        "pool": nn.MaxPool2d(3, stride=2, padding=1),
    }
    channels = width
    for stage, repeats in enumerate(repeats_of_stage):
        for index in range(repeats):
            stride = 2 if stage > 0 and index == 0 else 1
            trunk[f"layer{stage + 1}_{index}"] = block(channels, width << stage, stride, norm)
            channels = block.expansion * (width << stage)
    return trunk, channels
