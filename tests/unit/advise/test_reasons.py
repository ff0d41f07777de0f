"""What a plan says of itself."""

from dataclasses import replace

import pytest

from lartpc_ds.advise.search.reasons import reason
from lartpc_ds.advise.search.search import Plan, Row
from lartpc_ds.advise.search.sizes import gib, parse_bytes
from lartpc_ds.config.run import MemoryConfig
from lartpc_ds.costs.problem import Candidate, Cost, MemoryParts, TimeParts
from lartpc_ds.errors import UserError
from lartpc_ds.layout import Layout
from tests.machine import GIB


def cost(memory_gib: float) -> Cost:
    return Cost(MemoryParts(0, 0, 0, int(memory_gib * GIB), 0, 0), TimeParts(9, 0.3, 0.7, 0), 8)


def row(candidate: Candidate, memory_gib: float, fits: bool = True) -> Row:
    return Row(candidate, cost(memory_gib), fits, True, fits)


def planned(best: Row, whole_gib: float) -> Plan:
    recommended = best if best.fits else None
    return Plan([best], recommended, [], 40 * GIB, 38 * GIB, cost(whole_gib))


def test_tiles_because_an_event_is_too_large() -> None:
    told = reason(planned(row(Candidate(Layout(data=8, rows=2)), 26), 51))
    assert told == (
        "Take pipe 1 x data 8 x rows 2 x cols 1: a whole event needs 51 GiB and a device has 38 GiB for it; 2 tiles "
        "need 26 GiB each, and halos take 3.0 % and summing gradients takes 7.0 % of a step."
    )


def test_whole_events_where_they_fit() -> None:
    told = reason(planned(row(Candidate(Layout(data=16), zero=1), 30), 30))
    assert "fits on one device (30 of the 38 GiB that may be used); every device takes events of its own" in told
    assert "with ZeRO-1" in told and "halos" not in told


def test_waiting_for_delayed_devices_is_told_where_it_matters() -> None:
    best = row(Candidate(Layout(data=512)), 30)
    late = replace(best, cost=replace(best.cost, time=TimeParts(8, 0, 1, 0, delay=1)))
    assert "and summing gradients takes 10 % and waiting for delayed devices takes 10 % of a step" in reason(
        planned(late, 30)
    )
    prompt = replace(best, cost=replace(best.cost, time=TimeParts(8, 0, 2, 0, delay=0.05)))
    assert "delayed" not in reason(planned(prompt, 30))


def test_levers_and_stages_are_named() -> None:
    lean = MemoryConfig(lean_norm=True, recompute="block")
    assert "one device with recompute + lean norms needs 12.0 GiB" in reason(
        planned(row(Candidate(Layout(data=16), memory=lean), 12), 51)
    )
    staged = reason(planned(row(Candidate(Layout(pipe=2, data=2, rows=2), accumulate=8), 12), 51))
    assert "2 stages of 2 tiles need 12.0 GiB at most" in staged and "waiting for other stages" in staged


def test_where_nothing_fits_it_says_by_how_much_and_what_would() -> None:
    plan = planned(row(Candidate(Layout(rows=2)), 57, fits=False), 100)
    told = reason(plan)
    assert "needs 57 GiB a device, 19.0 GiB more than the 38 GiB" in told and "devices of 60 GiB would do" in told
    wider = replace(plan, wider=row(Candidate(Layout(rows=4)), 30))
    assert "; 4 devices would do (pipe 1 x data 1 x rows 4 x cols 1, 30 GiB each)" in reason(wider)


@pytest.mark.parametrize(
    ("text", "size"), [("40GiB", 40 * GIB), ("40 GB", 40 * 10**9), ("0.5MiB", 2**19), ("1TiB", 2**40), ("8KB", 8000)]
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert parse_bytes(text, "--memory") == size


@pytest.mark.parametrize("text", ["40", "40G", "-1GiB", "0GiB", "GiB", "40gib", "nanGiB"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--memory .*must be a number above 0 with a unit.*such as 40GiB"):
        parse_bytes(text, "--memory")


def test_sizes_have_the_digits_that_matter() -> None:
    assert [gib(int(size * GIB)) for size in (0.0042, 0.4189, 8.31, 51.2)] == ["0.004", "0.42", "8.3", "51"]
