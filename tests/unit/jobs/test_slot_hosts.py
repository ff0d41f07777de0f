"""Hosts and slots of an LSF or a PBS job, from its environment and the files that it names."""

from pathlib import Path

import pytest

from lartpc_ds.errors import UserError
from lartpc_ds.jobs.hosts.hostfile import Host
from lartpc_ds.jobs.hosts.slot_hosts import from_lsf, from_pbs


def slots_of(hosts: tuple[Host, ...]) -> list[tuple[str, int]]:
    assert all(host.devices == tuple(range(host.slots)) for host in hosts)
    return [(host.name, host.slots) for host in hosts]


def each(names: str, slots: int) -> list[tuple[str, int]]:
    return [(name, slots) for name in names.split()]


def lines_of(folder: Path, text: str) -> str:
    (folder / "listed").write_text(text)
    return str(folder / "listed")


LISTED = {
    "repeated": ("a\na\nb\nb\n", each("a b", 2)),
    "in turn": ("b\na\nb\na\nb\n", [("b", 3), ("a", 2)]),
    "FQDN and blank lines": ("a.site.edu\n\n  b.site.edu \r\n", each("a.site.edu b.site.edu", 1)),
    "case": ("Node1\nnode1\n", each("Node1", 2)),
}


@pytest.mark.parametrize("name", LISTED)
def test_a_pbs_job_and_an_lsf_job_list_a_line_a_slot(tmp_path: Path, name: str) -> None:
    text, hosts = LISTED[name]
    path = lines_of(tmp_path, text)
    assert slots_of(from_pbs({"PBS_NODEFILE": path}, None).hosts) == hosts
    assert slots_of(from_lsf({"LSB_DJOB_HOSTFILE": path, "LSB_MCPU_HOSTS": "other 5"}, None).hosts) == hosts
    assert slots_of(from_pbs({"PBS_NODEFILE": path}, 6).hosts) == [(host, 6) for host, _ in hosts]


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("", ["the name of a host per line"]),
        ("a\nb slots=4\n", ["line 2, 'b slots=4'", "is no host name"]),
        ("a:2\n", ["line 1, 'a:2'"]),
        ("a\nme@b\n-x\n", ["line 2, 'me@b'", "line 3, '-x'"]),
    ],
)
def test_a_file_of_names_that_holds_other_things(tmp_path: Path, text: str, fragments: list[str]) -> None:
    path = lines_of(tmp_path, text)
    with pytest.raises(UserError) as refused:
        from_pbs({"PBS_NODEFILE": path}, None)
    assert f"PBS_NODEFILE={path!r}" in str(refused.value)
    assert [fragment for fragment in fragments if fragment not in str(refused.value)] == [], refused.value


def test_a_file_of_names_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"LSB_DJOB_HOSTFILE=.*missing.*No such file.*NODES such as"):
        from_lsf({"LSB_DJOB_HOSTFILE": str(tmp_path / "missing"), "LSB_MCPU_HOSTS": "a 4"}, None)
    (tmp_path / "binary").write_bytes(b"\xff\x00")
    with pytest.raises(UserError, match=r"PBS_NODEFILE=.*not a text file"):
        from_pbs({"PBS_NODEFILE": str(tmp_path / "binary")}, None)
    with pytest.raises(UserError, match="PBS_NODEFILE: not set"):
        from_pbs({}, None)
    with pytest.raises(UserError, match="LSB_DJOB_HOSTFILE or LSB_MCPU_HOSTS: not set"):
        from_lsf({}, None)


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("a 4 b 2", [("a", 4), ("b", 2)]),
        ("a 4", [("a", 4)]),
        ("a 2 b 3 a 2", [("a", 4), ("b", 3)]),
        ("batch5 1 h41n08 42 h41n09 42", each("h41n08 h41n09", 42)),  # Summit
        ("batch5 1 h41n08 42", each("h41n08", 42)),
        ("a 1", [("a", 1)]),
        ("a 1 b 1", each("a b", 1)),  # no launch node: all hosts are alike
        ("a 1 b 2 c 1", [("a", 1), ("b", 2), ("c", 1)]),
        ("a 2 b 1", [("a", 2), ("b", 1)]),
    ],
)
def test_an_lsf_job_without_its_launch_node(tmp_path: Path, text: str, hosts: list[tuple[str, int]]) -> None:
    assert slots_of(from_lsf({"LSB_MCPU_HOSTS": text}, None).hosts) == hosts
    fields = text.split()
    lines = [name for name, count in zip(fields[::2], fields[1::2], strict=True) for _ in range(int(count))]
    path = lines_of(tmp_path, "\n".join(lines))
    assert slots_of(from_lsf({"LSB_DJOB_HOSTFILE": path}, None).hosts) == hosts


@pytest.mark.parametrize("text", ["a", "a 4 b", "4 a", "a 4 b x", "a -4", "a 4 b[1-2] 4"])
def test_pairs_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match=r"LSB_MCPU_HOSTS='.*"):
        from_lsf({"LSB_MCPU_HOSTS": text}, None)
