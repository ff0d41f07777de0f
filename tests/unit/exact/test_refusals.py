"""What has no proven form on tiles is refused before anything runs, with its layer and line. Nothing runs silently."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lartpc_ds.errors import UserError
from lartpc_ds.exact.spatialize import TilePlan, plan_tiles
from lartpc_ds.layout import Layout

IMAGE = (2, 23, 19)


class Model(nn.Module):
    """A convolution `stem`, and what is done with its map."""

    def __init__(self, then: Callable[..., Any], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.stem, self.layer, self.then = nn.Conv2d(2, 4, 3, padding=1), layer, then

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        return self.then(x) if self.layer is None else self.then(x, self.layer)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class Applied(nn.Module):
    """A module that may be called by its own forward."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def plan(model: nn.Module, rows: int = 2, cols: int = 2, gather_at: str = "never") -> TilePlan:
    return plan_tiles(model, Layout(rows=rows, cols=cols), IMAGE, gather_at)


def run(x: Tensor, layer: nn.Module) -> Any:
    return layer(x)


def _token_attention(x: Tensor, attention: nn.Module) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    return attention(tokens, tokens, tokens)[0]


LAYERS: dict[str, tuple[nn.Module, str]] = {
    "Conv3d": (Applied(lambda x: F.conv3d(x[:, None], x.new_zeros(1, 1, 1, 3, 3))), "conv3d has no proven form"),
    "AdaptiveMaxPool2d, indices": (nn.AdaptiveMaxPool2d(1, return_indices=True), "has no proven form"),
    "MaxPool2d, gaps": (nn.MaxPool2d((2, 1), 1, (1, 0), (24, 1)), "has a window that reads padding only"),
    "MaxPool2d, indices": (nn.MaxPool2d(2, return_indices=True), "has no proven form"),
    "area": (nn.Upsample(scale_factor=0.5, mode="area"), "mode 'area' is not covered"),
    "Flatten": (nn.Sequential(nn.Flatten(), nn.Linear(4 * 23 * 19, 3)), r"pool them to one pixel first"),
    "LayerNorm of the map": (nn.LayerNorm((4, 23, 19)), "must act per pixel"),
    "Linear over columns": (nn.Linear(19, 5), "linear layer over rows or columns"),
    "LPPool2d": (nn.LPPool2d(2, 3), "has no proven form"),
    "RReLU": (nn.RReLU(), "random numbers that differ from rank to rank"),
    "Dropout3d": (nn.Dropout3d(), "random numbers that differ from rank to rank"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_without_a_rule_is_named(name: str) -> None:
    layer, reason = LAYERS[name]
    with pytest.raises(UserError, match=rf"^layer[.\d]* \(\w+\.py:\d+\): .*{reason}"):
        plan(Model(run, layer))


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "matmul": (lambda x: x @ x.transpose(2, 3), "matmul multiplies maps whose pixels are cut"),
    "einsum": (lambda x: torch.einsum("nchw,nchv->nwv", x, x), "einsum has no proven form"),
    "transpose": (lambda x: x[0, 0].T, "attribute T has no proven form"),
    "one row": (lambda x: x[:, :, 0], "takes single rows or columns"),
    "by a mask": (lambda x: x[x > 0], "something other than numbers and slices"),
    "correlation of maps": (lambda x: F.conv2d(x, F.avg_pool2d(x, 4)), "cut into tiles for its weights"),
    "reversed gradient": (lambda x: Square.apply(x).mean((2, 3)), "part of Square, an autograd function"),
    "patches": (lambda x: x.unfold(2, 3, 1), "unfold has no proven form"),
    "places of rows": (lambda x: x.argmax(2), "gives positions in rows or columns"),
    "order": (lambda x: x.sort(3)[0], "sort has no proven form"),
    "norm of order 0": (lambda x: torch.linalg.vector_norm(x, 0, (2, 3)), "of order 0 is not covered"),
    "join of rows": (lambda x: torch.cat([x, x], 2), "along rows or columns"),
    "cumulative sum": (lambda x: x.cumsum(3), "along dimension 3, whose pixels are cut"),
    "normalised rows": (lambda x: F.normalize(x, 1.0, 2), "along dimension 2, whose pixels are cut"),
    "noise": (lambda x: x + torch.randn_like(x), "random numbers that differ from rank to rank"),
    "old stochastic depth": (
        lambda x: x * (torch.rand(len(x), 1, 1, 1, device=x.device) + 0.5).floor(),
        "random numbers that differ from rank to rank",
    ),
    "dropped pairs": (
        lambda x: F.scaled_dot_product_attention(*[x.mean((2, 3))[:, None]] * 3, dropout_p=0.1),
        "random numbers that differ from rank to rank",
    ),
    "drawn probabilities": (lambda x: x * torch.bernoulli(x.new_full((2, 1, 1, 1), 0.5)), "random numbers"),
    "channels of the last": (lambda x: F.dropout2d(x.permute(0, 2, 3, 1)), "in the last two of four dimensions"),
    "own autograd function": (Square.apply, "part of Square, an autograd function of the model's own"),
    "written in place": (lambda x: x.clone().__setitem__((slice(None), 0), 0.0), "setitem has no proven form"),
    "several maps": (lambda x: [x, x + 1], "the model gives a list with maps that are cut"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_without_a_rule_is_named(name: str) -> None:
    function, reason = FUNCTIONS[name]
    with pytest.raises(UserError, match=reason) as caught:
        plan(Model(function))
    if name != "several maps":
        assert str(caught.value).startswith("the model's own forward (test_refusals.py:")


def _pooled(x: Tensor) -> Tensor:
    return x.sum((2, 3))


SIZES: dict[str, Callable[[Tensor], Any]] = {
    "division": lambda x: x / x.shape[-1],
    "positions": lambda x: x + torch.linspace(0, 1, x.shape[3], device=x.device),
    "a crop": lambda x: x[:, :, : x.shape[2] // 2],
    "numpy": lambda x: _pooled(x) / np.prod(x.shape[2:]),
    "number of elements": lambda x: _pooled(x) * (1 / x[0, 0].numel()),
    "a tensor of it": lambda x: _pooled(x) / torch.tensor(x.shape[2:]).prod(),
    "a filled tensor": lambda x: _pooled(x) / x.new_full((1,), x.shape[2]),
    "an array": lambda x: _pooled(x) * torch.as_tensor(np.array([1.0 / x.shape[2]]), device=x.device),
    "positions summed": lambda x: _pooled(x) * torch.arange(x.shape[2]).sum(),
    "repetition": lambda x: _pooled(x).repeat(1, x.shape[2]).sum(1),
    "a choice": lambda x: F.relu(x) if x.shape[2] > 20 else F.gelu(x),
    "one call more": lambda x: F.pad(x, (0, 1)) if x.shape[2] == 23 else x,
    "probability": lambda x: F.dropout(x, 1 / x.shape[2]),
    "result": lambda x: _pooled(x).expand(x.shape[2], *_pooled(x).shape),
}


@pytest.mark.parametrize("name", SIZES)
def test_what_depends_on_the_size_of_the_tile_is_refused(name: str) -> None:
    with pytest.raises(
        UserError, match=r"depends on the size of the image|whole result|calls where the whole image makes"
    ):
        plan(Model(SIZES[name]))


def test_numbers_of_another_call_do_not_choose_its_plan() -> None:
    """Both calls meet 14 columns on the first tile, where the model does not pad; on the whole image the first pads."""

    class Even(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.pad(x, (0, x.shape[3] % 2))

    even = Even()
    with pytest.raises(UserError, match=r"test_refusals\.py:\d+\): pad depends on the size .* numbers of another call"):
        plan_tiles(nn.Sequential(even, nn.ReLU(), even), Layout(cols=2), (2, 24, 29), "never")


def _grouped(x: Tensor, conv: nn.Module) -> Tensor:
    """Weights of each event: events and channels as one."""
    y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), torch.cat([conv.weight] * len(x)), padding=1, groups=len(x))
    return y.reshape(x.shape)


@pytest.mark.parametrize(
    "function",
    [_grouped, lambda x, _: x.unsqueeze(0).mean((3, 4))[0], lambda x, _: x.transpose(0, 1) + 1],
    ids=["grouped by event", "one dimension before", "second dimension"],
)
def test_a_plan_does_not_hang_on_the_number_of_events(function: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="events are not its first dimension"):
        plan(Model(function, nn.Conv2d(4, 4, 3, bias=False)))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_function_under_checkpoint_is_refused_and_a_module_is_not(use_reentrant: bool) -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    with pytest.raises(UserError, match=r"given to torch.utils.checkpoint, .* give it a module"):
        plan(Model(lambda x, layer: checkpoint(lambda y: layer(y).mean((2, 3)), x, use_reentrant=use_reentrant), conv))
    assert plan(Model(lambda x, layer: checkpoint(layer, x, use_reentrant=use_reentrant), conv)).output is not None


def test_a_module_at_sizes_that_a_tile_cannot_tell_apart_is_refused() -> None:
    """23 and 22 rows are 12 + 11 and 12 + 10: the upper tile sees no difference."""
    with pytest.raises(UserError, match=r"layer \(.*conv2d is used for maps of different sizes that are equal on the"):
        plan(Model(lambda x, layer: layer(layer(x)), nn.Conv2d(4, 4, (2, 1))), cols=1)


def test_a_mask_drawn_twice_is_refused() -> None:
    with pytest.raises(UserError, match=r"dropout is used twice for maps of one size, and would drop the same pixels"):
        plan(Model(lambda x, layer: layer(F.relu(layer(x))), nn.Dropout()))


def test_an_error_of_the_model_on_a_tile_is_told() -> None:
    def fixed(x: Tensor) -> Tensor:
        assert x.shape[2] == 23, "made for 23 rows"
        return x

    with pytest.raises(
        UserError,
        match=r"tile at row 0, column 0: the model cannot run on it: .* \(test_refusals\.py:\d+\): made for 23 rows",
    ):
        plan(Model(fixed))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_modules_are_refused() -> None:
    with pytest.raises(UserError, match=r"layer is compiled by torch.jit"):
        plan(Model(run, torch.jit.trace(nn.ReLU(), torch.zeros(1))))


def test_an_unknown_block_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"layout.gather_at = \'heads\': no such block; .* such as stem, layer"):
        plan(Model(run, nn.ReLU()), gather_at="heads")


@pytest.mark.parametrize("name", [*LAYERS])
def test_one_tile_refuses_nothing(name: str) -> None:
    assert plan(Model(run, LAYERS[name][0]), 1, 1).image == IMAGE
