"""The meter, against counts by hand: what is alive and of what kind, and which operators run."""

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lartpc_ds.advise.bench.memory import step_peak_bytes
from lartpc_ds.costs.meter import Meter
from lartpc_ds.exact.grid.pieces import in_pieces
from tests.machine import BYTES_PER_SECOND, rates

MAP_BYTES = 8 * 4 * 128 * 128


def test_the_peak_of_a_step() -> None:
    """The images, the map that is kept, and its gradients on the way back; the weights are nothing here."""

    def peak_bytes(events: int, precision: str) -> int:
        with FakeTensorMode():
            convolution = nn.Conv2d(1, 8, 3, padding=1, bias=False)
            model = nn.Sequential(convolution, nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            return step_peak_bytes(model, torch.empty(events, 1, 128, 128), precision)

    images_bytes, peak = 4 * 128 * 128, peak_bytes(1, "fp32")
    # at the sigmoid's backward: its result, the gradient that reaches it and the one that it makes
    assert images_bytes + 2 * MAP_BYTES <= peak <= images_bytes + 3.2 * MAP_BYTES
    assert peak_bytes(2, "fp32") > 1.9 * peak
    assert peak_bytes(1, "bf16") < peak


def test_what_is_freed_is_not_counted_and_kinds_are_told_apart() -> None:
    with FakeTensorMode():
        linear, meter = nn.Linear(1000, 1000, bias=False), Meter(rates())
        meter.hold(linear)
        with meter:
            for _ in range(3):
                torch.empty(1 << 20)
            halo = torch.empty(100)
            meter.hold_halo(halo)
            torch.empty(3 << 20)
            torch.autograd.backward(linear(torch.ones(1, 1000)).sum())
            del halo
            torch.empty(4 << 20)
    assert meter.peak.weights == meter.peak.gradients == 4 * 1000**2
    assert (meter.peak.activations, meter.peak.halos, meter.peak.scratch) == (16 << 20, 0, 0)
    assert meter.peak.total == 2 * 4 * 1000**2 + (16 << 20)


def test_a_halo_is_a_tensor_of_its_own() -> None:
    with FakeTensorMode(), Meter() as meter:
        x = torch.empty(2, 100)
        meter.hold_halo(x[0])
        halo = x[0].clone()
        meter.hold_halo(halo)
        torch.empty(1000)
    assert (meter.peak.activations, meter.peak.halos) == (800 + 4000, 400)


def test_pieces_are_worked_on_in_a_cache() -> None:
    cached = rates().model_copy(update={"cached_gain": 4.0})

    def seconds(inside: bool) -> float:
        with FakeTensorMode():
            x = torch.empty(1 << 20)
            with Meter(cached) as meter:
                if inside:
                    with in_pieces():
                        x.add_(1)
                else:
                    with in_pieces():
                        pass
                    x.add_(1)
        return meter.seconds

    assert seconds(inside=False) == 2 * (4 << 20) / BYTES_PER_SECOND == 4 * seconds(inside=True)


def test_the_largest_operator_is_named_as_rates_are() -> None:
    x: Tensor = torch.ones(64, 64)
    with Meter() as meter:
        (x.view(-1)[:10] + 1).relu_()
        x.mul_(x.to(torch.bfloat16))
    assert (meter.operators, meter.seconds) == (4, 0.0)
    assert meter.largest == (x.nbytes * 2 + x.nbytes // 2, "fp32", "mul")
