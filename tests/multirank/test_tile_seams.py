"""What a forward test never sees: gradients at a seam and two layers below it; and that dropping the halo's shows."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lartpc_ds.exact.grid.tiles import Tiles
from lartpc_ds.exact.grid.windows import Piece
from lartpc_ds.exact.spatialize import plan_tiles
from lartpc_ds.layout import Layout
from tests.tile_parity import Numbers, assert_tiles_agree, image, on_threads, on_tile, whole

LAYOUT, SIZE, SEAM = Layout(rows=2), (24, 17), 12


def _model(last: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    below = [nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 3, 1), nn.Tanh()]
    return nn.Sequential(*below, last).double()


def _both(model: nn.Module) -> tuple[Numbers, list[Numbers]]:
    x = image((2, 2, *SIZE))
    plan = plan_tiles(model, LAYOUT, (2, *SIZE), "never")
    assert plan.bounds[0] == (0, SEAM, SIZE[0])
    reference = whole(model, x)
    return reference, on_threads(LAYOUT, lambda tiles: on_tile(model, x, plan, tiles, reference.output.shape))


def _differs(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "in place": lambda: nn.Conv2d(3, 2, 5, padding=2),
    "of a padded copy": lambda: nn.Conv2d(3, 2, 5, stride=5, padding=1),
    "max pool": lambda: nn.MaxPool2d(3, 2, 1),
    "average pool": lambda: nn.AvgPool2d(3, 2, 1),
    "upsampling": lambda: nn.Upsample(scale_factor=3, mode="bilinear"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_at_the_seam_and_below_it(name: str) -> None:
    reference, ranks = _both(_model(LAYERS[name]()))
    near = slice(SEAM - 3, SEAM + 3)
    gradient = torch.cat([numbers.input_gradient for numbers in ranks], 2)[:, :, near] / LAYOUT.tiles
    assert _differs(gradient, reference.input_gradient[:, :, near]) < 1e-12
    for weight in ("0.weight", "2.weight"):
        mean = torch.stack([numbers.gradients[weight] for numbers in ranks]).mean(0)
        assert _differs(mean, reference.gradients[weight]) < 1e-12


@pytest.mark.parametrize("name", LAYERS)
def test_a_halo_whose_gradient_is_dropped_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Received pixels pasted in as constants: outputs stay right, both gradients do not."""
    send_pieces = Tiles.send_pieces

    def dropping(
        self: Tiles, outgoing: Sequence[tuple[int, Tensor]], incoming: Sequence[Piece], like: Tensor
    ) -> Callable[[], Any]:
        if torch._C._current_graph_task_id() != -1:  # in a backward pass
            outgoing = [(peer, torch.zeros_like(gradient)) for peer, gradient in outgoing]
        return send_pieces(self, outgoing, incoming, like)

    monkeypatch.setattr(Tiles, "send_pieces", dropping)
    model = _model(LAYERS[name]())
    reference, ranks = _both(model)
    assert _differs(torch.cat([numbers.output for numbers in ranks], 2), reference.output) < 1e-12
    gradient = torch.cat([numbers.input_gradient for numbers in ranks], 2) / LAYOUT.tiles
    assert _differs(gradient, reference.input_gradient) > 1e-3
    mean = torch.stack([numbers.gradients["0.weight"] for numbers in ranks]).mean(0)
    assert _differs(mean, reference.gradients["0.weight"]) > 1e-3
    with pytest.raises(AssertionError, match="input gradient"):
        assert_tiles_agree(model, image((2, 2, *SIZE)), 2, 1)


def test_equal_maxima_on_both_sides_of_a_seam_give_one_gradient() -> None:
    """On one device the first of them, row by row; with an upper tile of zeros and ones, below and above the seam."""
    x = torch.zeros(1, 1, 24, 17, dtype=torch.float64)
    x[:, :, SEAM - 1 : SEAM + 1] = 1.0
    for model in (nn.MaxPool2d(4, 2, 1), nn.MaxPool2d(3, 1, 1), nn.AdaptiveMaxPool2d(1)):
        assert_tiles_agree(model, x, 2, 2)
        assert_tiles_agree(model, x.flip(2).contiguous(), 3, 1)
