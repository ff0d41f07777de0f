"""Families of timm and torchvision, unmodified but small, on tiles against one device; prints a table for the docs.

    python -m tests.sweep_families [FAMILY ...]

Each runs on images of 3 x 97 x 131 in float64, on 2 x 1 and 2 x 2 tiles, in training mode without random masks.
Compared are outputs, the input's gradient, every weight's gradient and every buffer; the largest difference is told as
a share of the largest value of its tensor. Where a map has fewer rows or columns than there are tiles, the tiles are
left before it ("auto"). Some families are made for one size (`img_size`), and some of these for sizes that their
windows divide: the first of `SIZES` on which torch itself runs the network is taken, and the table names it.
"""

import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lartpc_ds.errors import UserError
from lartpc_ds.exact.grid.cuts import EmptyTile
from lartpc_ds.exact.kernels.collectives import own_part
from lartpc_ds.exact.spatialize import TilePlan, plan_tiles
from lartpc_ds.layout import Layout
from tests import vision
from tests.tile_parity import Numbers, image, on_threads, on_tile, whole

GRIDS = [(2, 1), (2, 2)]
SIZES = [((97, 131), False), ((97, 131), True), ((96, 128), False), ((96, 128), True), ((224, 224), False)]
"""Rows and columns of the images, and whether the network is made for them."""
EXACT = 1e-8
"""Deep networks of random weights amplify the rounding of float64."""

TIMM: dict[str, dict[str, Any]] = {
    "bat_resnext26ts": {},
    "botnet26t_256": {},
    "coatnet_nano_cc_224": {},
    "convmixer_768_32": {},
    "convnext_atto": {"depths": (1, 1, 1, 1)},
    "convnextv2_atto": {"depths": (1, 1, 1, 1)},
    "cs3darknet_focus_s": {},
    "cspresnet50": {},
    "darknet53": {},
    "densenet121": {"block_config": (2, 2, 2, 2)},
    "dla34": {},
    "dpn48b": {},
    "eca_nfnet_l0": {},
    "edgenext_xx_small": {},
    "efficientformer_l1": {},
    "efficientnet_b0": {},
    "efficientnetv2_rw_t": {},
    "efficientvit_b0": {},
    "ese_vovnet19b_slim": {},
    "fasternet_t0": {},
    "fastvit_t8": {},
    "gcresnext26ts": {},
    "gernet_s": {},
    "ghostnet_050": {},
    "ghostnetv2_100": {},
    "hardcorenas_a": {},
    "hgnetv2_b0": {},
    "hrnet_w18_small": {},
    "inception_next_atto": {"depths": (1, 1, 1, 1)},
    "inception_v4": {},
    "lambda_resnet26t": {},
    "lcnet_035": {},
    "legacy_xception": {},
    "mambaout_femto": {"depths": (1, 1, 1, 1)},
    "mixnet_s": {},
    "mobilenetv2_050": {},
    "mobilenetv3_small_050": {},
    "mobilenetv4_conv_small_035": {},
    "mobilenetv4_hybrid_medium": {},
    "mobileone_s0": {},
    "mobilevit_xxs": {},
    "nf_resnet26": {},
    "poolformer_s12": {},
    "regnetx_002": {},
    "regnety_002": {},
    "repvgg_a0": {},
    "repvit_m0_9": {},
    "res2net50_26w_4s": {},
    "resnest14d": {},
    "resnet18": {},
    "resnet50_gn": {"layers": (1, 1, 1, 1)},
    "resnetaa50": {"layers": (1, 1, 1, 1)},
    "resnetblur50": {"layers": (1, 1, 1, 1)},
    "resnetv2_50": {"layers": (1, 1, 1, 1)},
    "rexnet_100": {},
    "selecsls42b": {},
    "seresnet18": {},
    "skresnet18": {},
    "starnet_s1": {},
    "swin_tiny_patch4_window7_224": {},
    "tf_efficientnet_b0": {},
    "tresnet_m": {},
    "vgg11_bn": {},
    "xception41p": {},
}
TORCHVISION: dict[str, dict[str, Any]] = {
    "alexnet": {},
    "deeplabv3_mobilenet_v3_large": {"weights_backbone": None},
    "efficientnet_v2_s": {},
    "fcn_resnet50": {"weights_backbone": None},
    "googlenet": {"aux_logits": False, "init_weights": False},
    "lraspp_mobilenet_v3_large": {"weights_backbone": None},
    "maxvit_t": {},
    "mnasnet0_5": {},
    "mobilenet_v2": {},
    "regnet_y_400mf": {},
    "shufflenet_v2_x0_5": {},
    "squeezenet1_1": {},
    "vgg11": {},
}


class Main(nn.Module):
    """The first of the results that a segmentation network gives by name."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        y = self.model(x)
        return y["out"] if isinstance(y, dict) else y


def families() -> Iterator[tuple[str, str, dict[str, Any]]]:
    yield from (("timm", name, options) for name, options in TIMM.items())
    yield from (("torchvision", name, options) for name, options in TORCHVISION.items())


def build(library: str, name: str, options: dict[str, Any]) -> nn.Module:
    """In float64, with every parameter of consequence, and without random masks."""
    assert vision.library is None or vision.library.ns == "torchvision"
    torch.manual_seed(2)
    if library == "timm":
        import timm

        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=5, **options)
    else:
        import torchvision

        model = Main(torchvision.models.get_model(name, weights=None, num_classes=5, **options))
    for module in model.modules():
        for attribute in ("p", "drop_prob", "drop_rate"):
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)
    for parameter in model.parameters():
        if parameter.detach().abs().max() < 1e-3:
            parameter.data = torch.rand(parameter.shape) * 0.2
    return model.double()


def largest_difference(reference: Numbers, ranks: list[Numbers], plan: TilePlan, layout: Layout) -> float:
    """Over all tensors, as a share of the largest value of each; small gradients by that of all."""
    shares = []

    def compare(value: Tensor, expected: Tensor, scale: float) -> None:
        if expected.numel():
            shares.append(float((value.double() - expected.double()).abs().max()) / max(scale, 1e-30))

    def size(values: Tensor) -> float:
        return float(values.double().abs().max()) if values.numel() else 0.0

    for rank, numbers in enumerate(ranks):
        at = layout.coordinates(rank)
        (top, bottom), (left, right) = plan.tile(at.row, at.col)
        output = reference.output
        part = output if plan.output is None else own_part(output, plan.output, at.row, at.col, output.ndim)
        compare(numbers.output, part, size(output))
        given = reference.input_gradient[:, :, top:bottom, left:right]
        compare(numbers.input_gradient / layout.tiles, given, size(reference.input_gradient))
        for name, value in reference.buffers.items():
            compare(numbers.buffers[name], value, size(value))
    least = max(size(gradient) for gradient in reference.gradients.values()) / 100
    for name, expected in reference.gradients.items():
        compare(
            torch.stack([numbers.gradients[name] for numbers in ranks]).mean(0), expected, max(size(expected), least)
        )
    return max(shares)


def compared(model: nn.Module, x: Tensor, reference: Numbers, rows: int, cols: int) -> tuple[float, list[str]]:
    """(largest difference, where the tiles are left)."""
    layout, shape = Layout(rows=rows, cols=cols), (x.shape[1], x.shape[2], x.shape[3])
    try:
        plan = plan_tiles(model, layout, shape, "never")
    except EmptyTile:
        plan = plan_tiles(model, layout, shape, "auto")
    ranks = on_threads(layout, lambda tiles: on_tile(model, x, plan, tiles, reference.output.shape))
    return largest_difference(reference, ranks, plan, layout), plan.gathered_at


def first_that_runs(library: str, name: str, options: dict[str, Any]) -> tuple[nn.Module, Tensor, Numbers] | None:
    """The network, two images of the first of `SIZES` on which torch runs it, and its numbers on one device."""
    for size, is_option in SIZES:
        x = image((2, 3, *size))
        try:
            model = build(library, name, {**options, "img_size": size} if is_option else options)
            return model, x, whole(model, x)
        except (RuntimeError, ValueError, AssertionError, TypeError):
            continue  # TypeError: a network without the option img_size
    return None


def row(library: str, name: str, options: dict[str, Any]) -> str:
    """A line of the table."""
    found, cells = first_that_runs(library, name, options), []
    if found is None:
        return f"| {name} ({library}) | none | torch itself runs it on none of the sizes | likewise |"
    model, x, reference = found
    for rows, cols in GRIDS:
        try:
            difference, gathered = compared(model, x, reference, rows, cols)
            verdict = f"{difference:.0e}" if difference < EXACT else f"**WRONG by {difference:.0e}**"
            cells.append(verdict + (f", whole from `{gathered[0]}`" if gathered else ""))
        except UserError as error:
            reason = str(error).split("; ")[0].replace("|", "\\|")
            cells.append(f"refused: {reason}")
    if len(set(cells)) == 1 and cells[0].startswith("refused"):
        cells[1] = "likewise"
    return f"| {name} ({library}) | {' x '.join(map(str, x.shape[1:]))} | {' | '.join(cells)} |"


def main() -> None:
    """Print a row for each family, or for those named."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    by_name = {family[1]: family for family in families()}
    for name in sys.argv[1:] or by_name:
        started = time.process_time()
        print(row(*by_name[name]), flush=True)
        print(f"{name}: {time.process_time() - started:.0f} CPU seconds", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
