import platform
from collections.abc import Mapping
from typing import Any

import pytest

from lartpc_ds.jobs.hosts.hostfile import Host
from lartpc_ds.jobs.preflight.meeting import interface_of, master_address
from lartpc_ds.jobs.preflight.preflight_checks import (
    Fault,
    Here,
    Report,
    check_answer,
    check_kinds,
    clock_skew_seconds,
)
from lartpc_ds.jobs.preflight.probe import Answer

PACKAGES = {"lartpc_ds": "0.1.0 (sources abc)", "torch": "2.13.0", "deepspeed": "0.19.8"}
FILES = {"/data/a.h5": (100, 1000), "/data/b.h5": (200, 2000)}
HERE = Here(PACKAGES, FILES, "/runs", {"alpha": "t-alpha", "beta": "t-beta"}, "/home/u")
ALPHA, BETA = Host("alpha", (0, 1)), Host("beta", (0, 1))


def answer(host: str = "beta", number: int = 2, **changes: Any) -> Answer:
    base = Answer(
        first_addresses=["10.0.0.1"],
        interfaces={"lo": ["127.0.0.1"], "eth0": [f"10.0.0.{number}"]},
        source=f"10.0.0.{number}",
        called_back=["10.0.0.1"],
        folder=None,
        packages=dict(PACKAGES),
        devices={"kind": "cuda", "count": 2, "backend": "nccl"},
        files={path: list(found) for path, found in FILES.items()},
        token=f"t-{host}",
        token_read=True,
        free_bytes=2**30,
        ports=[1, 2],
    )
    return Answer(**{**base, **changes})  # type: ignore[typeddict-item]


def faults(found: Answer, *, host: Host = BETA, skew_seconds: float = 0.0, python: str | None = None) -> list[Fault]:
    return check_answer(host, "alpha", Report(python or platform.python_version(), skew_seconds, found), HERE)


def test_a_host_that_is_well_has_no_problem() -> None:
    assert faults(answer()) == []


@pytest.mark.parametrize(
    ("changes", "check", "words", "fix"),
    [
        ({"first_addresses": "Name or service not known"}, "name", ["'alpha' does not resolve"], "/etc/hosts"),
        ({"first_addresses": ["127.0.1.1"]}, "name", ["127.0.1.1", "that host itself"], "give alpha the address"),
        ({"folder": "no such folder"}, "folder", ["/home/u: no such folder"], "every host sees"),
        ({"packages": "bad interpreter"}, "versions", ["bad interpreter"], "environment"),
        ({"packages": {**PACKAGES, "torch": "2.9.0"}}, "versions", ["torch there is 2.9.0, here 2.13.0"], "same"),
        ({"packages": {**PACKAGES, "lartpc_ds": "missing: no"}}, "versions", ["lartpc_ds there is missing"], "same"),
        ({"devices": "no libcuda"}, "devices", ["no libcuda"], "mend"),
        ({"devices": {"kind": "cuda", "count": 1}}, "devices", ["has 1 cuda devices", "2 slots"], "slots=1"),
        ({"devices": {"kind": "cpu", "count": 1}}, "devices", ["has 1 cores", "2 slots"], "slots=1"),
        (
            {"files": {"/data/a.h5": "No such file", "/data/b.h5": [200, 2000]}},
            "data",
            ["/data/a.h5: No such"],
            "rsync",
        ),
        ({"files": {"/data/a.h5": [99, 1000], "/data/b.h5": [200, 2000]}}, "data", ["99 bytes there, 100 here"], "-a"),
        ({"files": {"/data/a.h5": [100, 999], "/data/b.h5": [200, 2000]}}, "data", ["-1 s"], "rsync -a"),
        ({"files": {"/data/a.h5": "x", "/data/b.h5": "x"}}, "data", ["and 1 more file"], "rsync"),
        ({"token_read": False, "token": "Permission denied"}, "run folder", ["/runs: Permission denied"], "--run-dir"),
        ({"token": "t-alpha"}, "run folder", ["not the same folder"], "share"),
        ({"free_bytes": 2**30 - 1}, "space", ["1.00 GiB free", "at least 1 GiB"], "--run-dir"),
        ({"called_back": []}, "call back", ["TCP connection to this machine"], "firewall"),
    ],
)
def test_each_fault_has_its_own_words(changes: Mapping[str, Any], check: str, words: list[str], fix: str) -> None:
    (fault,) = faults(answer(**changes))
    assert (fault.host, fault.check) == ("beta", check)
    assert all(word in fault.message for word in words), fault
    assert fix in fault.fix


def test_another_python_makes_the_rest_meaningless() -> None:
    (fault,) = faults(answer(packages="?", devices="?"), python="3.8.1")
    assert fault.check == "python" and "3.8.1" in fault.message and platform.python_version() in fault.message


def test_all_that_is_wrong_is_told_in_order() -> None:
    found = answer(packages={**PACKAGES, "torch": "1"}, devices="?", free_bytes=0, called_back=[])
    assert [each.check for each in faults(found, skew_seconds=60)] == ["versions", "clock", "space", "call back"]


@pytest.mark.parametrize(("skew_seconds", "wrong"), [(5.0, False), (-5.0, False), (5.1, True), (-300.0, True)])
def test_the_clock_may_be_off_by_five_seconds(skew_seconds: float, wrong: bool) -> None:
    found = faults(answer(), skew_seconds=skew_seconds)
    assert bool(found) == wrong
    if wrong:
        assert ("ahead of" if skew_seconds > 0 else "behind") in found[0].message and "NTP" in found[0].fix


@pytest.mark.parametrize(
    ("remote", "skew_seconds"), [(10.0, 0.0), (12.0, 0.0), (14.0, 0.0), (15.0, 1.0), (9.0, -1.0), (310.0, 296.0)]
)
def test_a_clock_is_known_to_the_round_trip(remote: float, skew_seconds: float) -> None:
    assert clock_skew_seconds(remote, 10.0, 14.0) == pytest.approx(skew_seconds)


def test_a_device_that_a_filter_chose_must_exist() -> None:
    (fault,) = faults(answer(), host=Host("beta", (2,)))
    assert "asks for device 2" in fault.message
    assert faults(answer(devices={"kind": "cpu", "count": 1}), host=Host("beta", (2,))) == []


def test_the_first_hosts_own_name_may_be_loopback_there() -> None:
    assert faults(answer("alpha", 1, first_addresses=["127.0.1.1"]), host=ALPHA) == []


def test_one_kind_of_accelerator() -> None:
    cpu = answer(devices={"kind": "cpu", "count": 2})
    assert list(check_kinds({"alpha": answer(), "beta": answer()})) == []
    (fault,) = check_kinds({"alpha": answer(), "beta": cpu})
    assert fault.host == "beta" and "'cpu'" in fault.message and "alpha is 'cuda'" in fault.message


def test_the_master_address_is_what_the_others_see() -> None:
    alpha = answer("alpha", 1, first_addresses=["127.0.1.1"])
    assert master_address([ALPHA, BETA], {"alpha": alpha, "beta": answer()}) == ("10.0.0.1", [])


def test_a_stale_address_of_the_first_host_is_named() -> None:
    stale = answer(first_addresses=["10.0.0.9"])
    chosen, (fault,) = master_address([ALPHA, BETA], {"alpha": answer("alpha", 1), "beta": stale})
    assert chosen is None and "10.0.0.9" in fault.message and "10.0.0.1" in fault.message


@pytest.mark.parametrize("source", ["127.0.0.1", "[Errno 101] Network is unreachable"])
def test_no_way_to_the_first_host(source: str) -> None:
    answers = {"alpha": answer("alpha", 1), "beta": answer(source=source)}
    _, (fault,) = master_address([ALPHA, BETA], answers)
    assert fault.check == "interface" and source in fault.message and "ip route get 10.0.0.1" in fault.fix


@pytest.mark.parametrize(("seen", "chosen"), [(["127.0.1.1"], "127.0.1.1"), (["10.0.0.1"], "10.0.0.1")])
def test_a_single_host_meets_itself(seen: list[str], chosen: str) -> None:
    assert master_address([ALPHA], {"alpha": answer("alpha", 1, first_addresses=seen)}) == (chosen, [])


def test_the_interface_that_bears_an_address() -> None:
    found = answer(interfaces={"lo": ["127.0.0.1"], "eth0": ["10.0.0.2", "10.0.0.22"]})
    assert [interface_of(found, address) for address in ("10.0.0.22", "127.0.1.1", "10.9.9.9")] == ["eth0", "lo", None]
