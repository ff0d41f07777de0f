"""The phases of a step add up to it, and a phase within a phase counts for itself only."""

from dataclasses import asdict

import pytest
import torch

from lartpc_ds.exact.grid.tiles import Traffic
from lartpc_ds.training import step_clock
from lartpc_ds.training.step_clock import StepClock, Timed


class Hours:
    """A clock that goes on when it is told to."""

    now = 0.0

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def hours(monkeypatch: pytest.MonkeyPatch) -> Hours:
    hours = Hours()
    monkeypatch.setattr(step_clock.time, "perf_counter", lambda: hours.now)
    return hours


def test_phases_add_up_and_inner_ones_count_once(hours: Hours) -> None:
    class Handle:
        done = False

        def wait(self) -> None:
            hours.pass_by(64)
            self.done = True

    class Backend:
        def all_reduce(self, tensor: int, async_op: bool = False) -> Handle | None:
            hours.pass_by(tensor)
            return Handle() if async_op else None

        def recv(self, tensor: int) -> None:
            hours.pass_by(tensor)

        reduce = reduce_scatter = reduce_scatter_tensor = broadcast = all_reduce_coalesced = barrier = all_reduce
        all_gather = all_gather_into_tensor = all_gather_base = all_gather_coalesced = all_reduce
        send = recv

    traffic, backend = Traffic(), Backend()
    StepClock(torch.device("cpu"), traffic).watch(backend)  # of another engine, which is not told any more
    clock = StepClock(torch.device("cpu"), traffic)
    clock.watch(backend)
    backend.all_reduce(1024)  # between steps nothing counts
    clock.start()
    for item in Timed(map(hours.pass_by, [1, 2]), clock):
        assert item is None
        with clock.phase("forward"):
            hours.pass_by(4)
            traffic.wait_seconds += 0.5
            backend.recv(8)
    with clock.phase("backward"):
        hours.pass_by(16)
        handle = backend.all_reduce(32, async_op=True)
        assert handle is not None and not handle.done
        handle.wait()
        assert handle.done
    with clock.phase("update"):
        hours.pass_by(128)
    hours.pass_by(256)
    seconds = clock.stop()
    assert asdict(seconds) == {
        **{"read": 3, "forward": 7, "backward": 16, "update": 128, "reduce": 96, "halo": 1, "stage": 16, "other": 256}
    }
    assert sum(seconds.as_row()) == hours.now - 1024
    assert seconds.busy == 3 + 7 + 16 + 128
