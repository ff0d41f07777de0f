"""Strips against a plain run of the same network: outputs, input gradient and every weight gradient, in float64."""

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from lartpc_ds.errors import UserError
from lartpc_ds.levers import stream as stream_module
from lartpc_ds.levers import strip_windows
from lartpc_ds.levers.stream import stream
from lartpc_ds.levers.strip_plan import StripPlan, plan_strips
from lartpc_ds.models.build import blocks, build_model
from tests.tile_cases import every_window_reads
from tests.tile_parity import Numbers, image, whole

TOLERANCE = 1e-10
IMAGE = (3, 77, 45)


def network(name: str, norm: str = "layer") -> nn.Module:
    torch.manual_seed(3)
    model = build_model(name, planes=3, num_classes=4, width=4, norm=norm).double()
    for key, parameter in model.named_parameters():
        if key.endswith("scale"):
            nn.init.ones_(parameter)  # 1e-6, ConvNeXt's own, would hide its inner branch
        elif parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def streamed(model: nn.Module, x: Tensor, strips: int, until: str) -> tuple[Numbers, StripPlan]:
    plan = plan_strips(model, strips, until, (x.shape[1], x.shape[2], x.shape[3]))
    return whole(stream(copy.deepcopy(model), plan), x), plan


def difference(numbers: Numbers, reference: Numbers) -> float:
    """The largest of any number, relative to the largest reference value of its kind."""
    assert numbers.gradients.keys() == reference.gradients.keys()
    largest = max((float(one.abs().max()) for one in reference.gradients.values()), default=0.0)
    pairs = [
        (numbers.output, reference.output, 0.0),
        (numbers.input_gradient, reference.input_gradient, 0.0),
        # a bias before a norm has a gradient of nothing but rounding
        *((one, reference.gradients[name], largest / 100) for name, one in numbers.gradients.items()),
        *((one.double(), reference.buffers[name].double(), 0.0) for name, one in numbers.buffers.items()),
    ]
    differences = []
    for one, other, least in pairs:
        assert one.shape == other.shape
        scale = max(float(other.abs().max()), least)
        differences.append(float((one - other).abs().max()) / scale if scale else float(one.abs().max()))
    return max(differences)


@pytest.mark.parametrize("strips", [2, 3, 5])
@pytest.mark.parametrize(
    ("name", "until"),
    [
        *(("resnet18", until) for until in ("pool", "layer1_0", "layer2_0", "layer3_1", "auto")),
        *(("resnet50", until) for until in ("layer1_1", "auto")),
        *(("convnext", until) for until in ("stage1_0", "stage1_2", "stage2_0", "auto")),
    ],
)
def test_strips_are_a_plain_run(name: str, until: str, strips: int) -> None:
    model, x = network(name), image((2, *IMAGE))
    numbers, plan = streamed(model, x, strips, until)
    assert difference(numbers, whole(model, x)) <= TOLERANCE
    assert len(plan.strips) == strips and plan.until == (until if until != "auto" else plan.until)
    smallest = min(stop - start for start, stop in (strip.rows for strip in plan.strips))
    assert smallest < IMAGE[1] or until == "layer3_1", "strips deep in the network may need every row"


@pytest.mark.parametrize("rows", [64, 65, 97, 101])
def test_any_number_of_rows(rows: int) -> None:
    model, x = network("resnet18"), image((1, 3, rows, 33))
    assert difference(streamed(model, x, 3, "layer2_0")[0], whole(model, x)) <= TOLERANCE


class Frozen(nn.BatchNorm2d):
    """As people freeze a batch norm: it stays in evaluation whatever the model does."""

    def train(self, mode: bool = True) -> "Frozen":
        super().train(False)
        return self


def frozen_network() -> nn.Module:
    model = network("resnet18", "batch")
    generator = torch.Generator().manual_seed(4)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = Frozen
            module.running_mean = torch.rand(module.num_features, generator=generator, dtype=torch.float64)
            module.running_var = torch.rand(module.num_features, generator=generator, dtype=torch.float64) + 0.5
    return model.train()


def test_a_frozen_batch_norm_may_stream() -> None:
    model, x = frozen_network(), image((2, *IMAGE))
    assert difference(streamed(model, x, 3, "layer2_0")[0], whole(model, x)) <= TOLERANCE


def test_towers_fold_planes_into_the_batch() -> None:
    torch.manual_seed(3)
    model = build_model("resnet18", planes=3, num_classes=4, width=4, norm="layer", plane_mode="towers").double()
    x = image((2, *IMAGE))
    assert difference(streamed(model, x, 3, "layer2_0")[0], whole(model, x)) <= TOLERANCE


def test_evaluation_streams_too_and_keeps_the_memory_format() -> None:
    model, x = network("resnet18").eval(), image((2, *IMAGE)).contiguous(memory_format=torch.channels_last)
    net = stream(copy.deepcopy(model), plan_strips(model, 3, "layer2_0", IMAGE))
    formats: list[bool] = []
    dict(blocks(net))["layer2_0"].register_forward_pre_hook(
        lambda _, args: formats.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    with torch.no_grad():
        torch.testing.assert_close(net(x), model(x), rtol=1e-12, atol=1e-12)
    assert formats == [True]
    assert net.state_dict().keys() == model.state_dict().keys()


def test_autocast_adds_no_more_than_rounding() -> None:
    """Strips sum their weight gradients in bfloat16, which is what convolutions see of the weights."""
    model, x = network("resnet18").float(), image((1, *IMAGE)).float()
    with torch.autocast("cpu", torch.bfloat16):
        plain = whole(model, x)
        numbers = whole(stream(copy.deepcopy(model), plan_strips(model, 5, "layer2_0", IMAGE)), x)
    for name, expected in plain.gradients.items():
        if expected.ndim == 4:
            assert float((numbers.gradients[name] - expected).norm() / expected.norm()) < 0.02, name


def test_a_copy_runs_its_own_weights() -> None:
    model, x = network("resnet18"), image((1, *IMAGE))
    net = stream(copy.deepcopy(model), plan_strips(model, 3, "layer1_1", IMAGE))
    other = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert difference(whole(other, x), whole(model, x)) <= TOLERANCE


class Nested(nn.Module):
    """No sequence, but it says which blocks it is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({f"part{n}": nn.Conv2d(3, 3, 3, 1 + n % 2, padding=1) for n in range(3)})
        self.norm = nn.BatchNorm2d(3)

    def blocks(self) -> list[tuple[str, nn.Module]]:
        return [*self.body.items(), ("norm", self.norm)]

    def forward(self, x: Tensor) -> Tensor:
        for _, block in self.blocks():
            x = block(x)
        return x


def test_a_model_that_is_no_sequence_supplies_its_blocks() -> None:
    torch.manual_seed(3)
    model, x = Nested().double(), image((1, *IMAGE))
    numbers, plan = streamed(model, x, 3, "norm")
    assert plan.front == ("part0", "part1", "part2")
    assert difference(numbers, whole(model, x)) <= TOLERANCE


def test_images_of_other_rows_are_refused() -> None:
    model = network("resnet18")
    net = stream(copy.deepcopy(model), plan_strips(model, 3, "layer1_1", IMAGE))
    with pytest.raises(ValueError, match=r"must have 77 rows.*\(1, 3, 78, 45\)"):
        net(image((1, 3, 78, 45)))


class Residual(nn.Module):
    """Whose branch loses rows that the shortcut has."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        y += x
        return torch.cat([x, y], 1).mean(1, keepdim=True) * x


CHANNELS, COLUMNS = 4, 9
kernels, strides = st.integers(1, 7), st.integers(1, 4)


@st.composite
def layers(draw: st.DrawFn) -> nn.Module:
    """One layer of any geometry along the rows; columns keep a size that later layers can take."""
    kind = draw(st.sampled_from(["conv", "same", "max", "avg", "relu", "pad", "residual"]))
    kernel, stride, dilation = draw(kernels), draw(strides), draw(st.integers(1, 3))
    both = (kernel, 3), (stride, 1)
    if kind == "conv":
        padding, groups = (draw(st.integers(0, 5)), 1), draw(st.sampled_from([1, 2, 4]))
        return nn.Conv2d(CHANNELS, CHANNELS, *both, padding, (dilation, 1), groups)
    if kind in ("same", "residual"):
        conv = nn.Conv2d(CHANNELS, CHANNELS, (kernel, draw(st.integers(1, 4))), padding="same", dilation=dilation)
        return conv if kind == "same" else Residual(conv)
    if kind == "relu":
        return nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), nn.ReLU(inplace=True))
    if kind == "pad":
        return nn.ZeroPad2d((0, 0, draw(st.integers(0, 4)), draw(st.integers(0, 4))))
    ceil_mode = draw(st.booleans())
    if kind == "max":
        return nn.MaxPool2d(*both, (draw(st.integers(0, kernel // 2)), 1), (dilation, 1), ceil_mode=ceil_mode)
    padding, divisor = (draw(st.integers(0, kernel // 2)), 1), draw(st.sampled_from([None, 3]))
    return nn.AvgPool2d(*both, padding, ceil_mode, draw(st.booleans()), divisor)


EMPTY = ("fewer than strips", "without rows", "no row in common")


def runs(model: nn.Sequential, x: Tensor) -> bool:
    """Is every layer one that torch itself can run, and run right?"""
    try:
        for layer in model:
            if isinstance(layer, nn.MaxPool2d) and not every_window_reads(layer, x):
                return False
            x = layer(x)
    except RuntimeError:
        return False
    return True


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@settings(max_examples=250, deadline=None, derandomize=True, database=None, suppress_health_check=HealthCheck)
@given(st.lists(layers(), min_size=1, max_size=5), st.integers(1, 70), st.integers(2, 6), st.booleans())
def test_any_stack_is_exact_or_a_strip_would_be_empty(
    stack: list[nn.Module], rows: int, strips: int, channels_last: bool
) -> None:
    named = {**{f"block{number}": layer for number, layer in enumerate(stack)}, "rest": nn.Identity()}
    model = nn.Sequential(OrderedDict(named)).double()
    x = image((2, CHANNELS, rows, COLUMNS))
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    assume(runs(model, x))
    try:
        numbers, _ = streamed(model, x, strips, "rest")
    except UserError as refusal:
        assert any(part in str(refusal) for part in EMPTY), refusal
        return
    assert difference(numbers, whole(model, x)) <= TOLERANCE


# the comparison would notice


def test_a_wrong_border_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows outside the image that are not zero to a layer, as they are when they are not zeroed again."""
    model, x = network("resnet18"), image((1, *IMAGE))
    plan = plan_strips(model, 3, "layer2_0", IMAGE)
    reference = whole(model, x)
    monkeypatch.setattr(strip_windows.F, "pad", lambda x, pad, value: PAD(x, pad, value=value or 0.01))
    assert difference(whole(stream(copy.deepcopy(model), plan), x), reference) > 1e-5


PAD = F.pad


@pytest.mark.parametrize("row", [0, -1])
def test_every_row_of_a_halo_counts(monkeypatch: pytest.MonkeyPatch, row: int) -> None:
    """Without the outermost row that the middle strip reads, numbers differ; so halos are as thin as they can be."""
    model, x = network("resnet18"), image((1, *IMAGE))
    plan = plan_strips(model, 3, "layer1_1", IMAGE)
    reference, run = whole(model, x), stream_module._run
    calls: list[int] = []

    def without(function: Callable[[Tensor], Tensor], view: Tensor) -> Tensor:
        calls.append(view.shape[2])
        if len(calls) == 2:
            mask = torch.ones(view.shape[2], 1, dtype=view.dtype)
            mask[row] = 0
            view = view * mask
        return run(function, view)  # type: ignore[arg-type]

    monkeypatch.setattr(stream_module, "_run", without)
    assert difference(whole(stream(copy.deepcopy(model), plan), x), reference) > 1e-5
    assert 0 < plan.strips[1].rows[0] < plan.strips[1].rows[1] < IMAGE[1]


# memory


def saved_bytes(run: Callable[[], Any], beside: list[Tensor]) -> int:
    """Distinct storages that autograd keeps, beside those of some tensors."""
    known = {tensor.untyped_storage().data_ptr() for tensor in beside}
    kept: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    total = sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in known)
    assert result.requires_grad
    return total


def test_a_streamed_forward_keeps_the_image_and_the_rest_only() -> None:
    model, x = network("resnet18"), image((1, *IMAGE))
    plan = plan_strips(model, 3, "layer2_0", IMAGE)
    net = stream(copy.deepcopy(model), plan)
    plain = saved_bytes(functools.partial(model, x), [x, *model.parameters()])
    kept = saved_bytes(functools.partial(net, x), [x, *net.parameters()])
    sequence = blocks(model)
    front, rest = (
        nn.Sequential(OrderedDict(part)) for part in (sequence[: len(plan.front)], sequence[len(plan.front) :])
    )
    small = front(x).detach().requires_grad_()
    assert kept == saved_bytes(functools.partial(rest, small), [*model.parameters()])
    assert 2 * kept < plain


class Probe(nn.Module):
    """Tells when it runs, and when its gradient has come."""

    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self.events = events

    def forward(self, x: Tensor) -> Tensor:
        self.events.append("run")
        if x.requires_grad:
            x.register_hook(lambda gradient: self.events.append("done"))
        return x

    def __deepcopy__(self, memo: Any) -> "Probe":
        return Probe(self.events)


def test_the_backward_pass_has_one_strip_alive_at_a_time() -> None:
    events: list[str] = []
    convs = [nn.Conv2d(3, 3, 3, padding=1) for _ in range(4)]
    model = nn.Sequential(convs[0], Probe(events), convs[1], convs[2], convs[3]).double()
    net = stream(model, plan_strips(model, 4, "3", IMAGE))
    events.clear()
    y = net(image((1, *IMAGE)))
    assert events == ["run"] * 4
    events.clear()
    y.sum().backward()
    assert events == ["run", "done"] * 4
