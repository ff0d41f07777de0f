"""Hosts of lists of nodes; which source is taken; what is written."""

from collections.abc import Mapping
from datetime import date
from pathlib import Path

import pytest
from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet
from deepspeed.launcher.runner import fetch_hostfile
from hypothesis import given
from hypothesis import strategies as st

from lartpc_ds.errors import UserError
from lartpc_ds.jobs.hosts.allocation import allocate, from_nodes, make
from lartpc_ds.jobs.hosts.hostfile import Host, parse, read
from lartpc_ds.jobs.hosts.slurm_hosts import from_slurm
from tests.examples import examples

EXAMPLES = examples(200)
HOSTFILES = Path(__file__).parents[3] / "hostfiles"
DAY = date(2026, 11, 24)


def slots_of(hosts: tuple[Host, ...]) -> list[tuple[str, int]]:
    assert all(host.devices == tuple(range(host.slots)) for host in hosts)
    return [(host.name, host.slots) for host in hosts]


def each(names: str, slots: int) -> list[tuple[str, int]]:
    return [(name, slots) for name in names.split()]


LISTS = {
    "the issue's": (["gpu[01-04,07]:4"], each("gpu01 gpu02 gpu03 gpu04 gpu07", 4)),
    "one host": (["node1:4"], each("node1", 4)),
    "order is kept": (["z:1,a:2"], [("z", 1), ("a", 2)]),
    "order in brackets is kept": (["n[7,1-2]:1"], each("n7 n1 n2", 1)),
    "several arguments": (["a[1-2]:8", "b[1-2]:4"], each("a1 a2", 8) + each("b1 b2", 4)),
    "blanks between terms": (["a:1 b:2"], [("a", 1), ("b", 2)]),
    "a list with blanks after commas": (["a:1,", "b:2"], None),
    "two brackets": (["rack[1-2]n[01-02]:4"], each("rack1n01 rack1n02 rack2n01 rack2n02", 4)),
    "two brackets, unsorted": (["r[2,1]n[3,1]:4"], each("r2n3 r2n1 r1n3 r1n1", 4)),
    "text after the bracket": (["gpu[1-2].site.edu:4"], each("gpu1.site.edu gpu2.site.edu", 4)),
    "a second network": (["gpu[1-2]-ib0:4"], each("gpu1-ib0 gpu2-ib0", 4)),
    "IPv4": (["10.0.0.[9-10]:2"], each("10.0.0.9 10.0.0.10", 2)),
    "padding that grows": (["n[098-101]:1"], each("n098 n099 n100 n101", 1)),
    "no padding": (["n[9-11]:1"], each("n9 n10 n11", 1)),
    "a step": (["n[1-5/2]:1"], each("n1 n3 n5", 1)),
    "one in a bracket": (["n[7]:1"], each("n7", 1)),
    "named twice": (["n[1-3]:2", "n2:2"], each("n1 n2 n3", 2)),
    "named twice but for case": (["N1:2,n1:2"], each("N1", 2)),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_nodes(name: str) -> None:
    nodes, hosts = LISTS[name]
    if hosts is None:
        with pytest.raises(UserError, match="delete the comma"):
            from_nodes(nodes, None)
    else:
        assert slots_of(from_nodes(nodes, None).hosts) == hosts
        assert slots_of(from_nodes(nodes, 3).hosts) == [(host, 3) for host, _ in hosts], "a number overrides all"


BAD_LISTS = {
    "trailing comma": ("a:1,", ["NODES='a:1,'", "delete the comma"]),
    "two commas": ("a:1,,b:1", ["delete the comma"]),
    "nothing": ("", ["delete the comma"]),
    "no count": ("gpu[1-2]", ["'gpu[1-2]'", "Write gpu[1-2]:N", "--slots N"]),
    "no count of one": ("a:1,b", ["'b': has no number of slots. Write b:N"]),
    "zero": ("a:0", ["0 slots on a", "1 to 1024"]),
    "too many": ("a:1025", ["1025 slots on a"]),
    "two counts": ("a[1-3]:4,a2:2", ["'a2' has 4 slots and 2"]),
    "a count that is none": ("a:x", ["'a:x'"]),
    "an open bracket": ("a[1-2:4", ["'a[1-2'", "brackets must pair"]),
    "a closing bracket": ("a1-2]:4", ["brackets must pair"]),
    "nested": ("a[1[2]]:4", ["brackets must pair"]),
    "a range downwards": ("a[3-1]:4", ["3-1", "from low to high"]),
    "two widths": ("a[9-010]:4", ["9-010", "one width"]),
    "letters in a range": ("a[1-x]:4", ["[1-x]", "numbers and ranges"]),
    "a negative number": ("a[-1]:4", ["[-1]", "numbers and ranges"]),
    "an empty bracket": ("a[]:4", ["[]", "numbers and ranges"]),
    "braces of the shell": ("a{1..4}:4", ["'a{1..4}'", "is no host name"]),
    "all the world": ("a[1-999999999]:1", ["more than 65536 hosts"]),
    "all the world in two": ("a[1-9999]b[1-9999]:1", ["more than 65536 hosts"]),
    "user@host": ("me@a[1-2]:4", ["'me@a1'", "~/.ssh/config"]),
    "a group of the site": ("@gpu:4", ["'@gpu'"]),
    "a set operation": ("a[1-4]!a2:4", ["'a1!a2'", "is no host name"]),
    "IPv6": ("fe80::1:4", ["'fe80::1'", "IPv6"]),
    "unicode": ("gpü:4", ["is no host name"]),
    "unicode digits": ("a[\uff11-\uff12]:4", ["numbers and ranges"]),
    "an option for ssh": ("-oX:4", ["is no host name"]),
    "every error": ("a:x b, c[1", ["'a:x'", "'b,'", "'c[1'"]),
}


@pytest.mark.parametrize("name", BAD_LISTS)
def test_a_bad_list_is_explained(name: str) -> None:
    text, fragments = BAD_LISTS[name]
    with pytest.raises(UserError, match="NODES") as refused:
        from_nodes([text], None)
    assert [fragment for fragment in fragments if fragment not in str(refused.value)] == [], refused.value


names = st.builds(
    "{}{}{}".format,
    st.sampled_from(["gpu", "nid", "rack1n", "x1000c0s", "n-"]),
    st.one_of(st.integers(0, 120).map(str), st.integers(0, 120).map("{:04d}".format)),
    st.sampled_from(["", "", "-ib", ".site.edu", "b0n1"]),
)


@EXAMPLES
@given(st.sets(names, min_size=1, max_size=30))
def test_what_clustershell_folds_is_unfolded(hosts: set[str]) -> None:
    folded = str(NodeSet.fromlist(sorted(hosts), resolver=RESOLVER_NOGROUP))
    found = from_nodes([folded], 2).hosts
    assert sorted(host.name for host in found) == sorted(hosts), folded
    in_slurm = from_slurm({"SLURM_JOB_NODELIST": folded, "SLURM_TASKS_PER_NODE": f"2(x{len(hosts)})"}, None).hosts
    assert in_slurm == found


@EXAMPLES
@given(st.lists(st.tuples(names, st.integers(1, 1024)), min_size=1, max_size=8, unique_by=lambda pair: pair[0]))
def test_a_list_goes_through_a_hostfile_unchanged(pairs: list[tuple[str, int]]) -> None:
    text = make([",".join(f"{name}:{count}" for name, count in pairs)], "auto", "auto", {}, DAY)
    assert slots_of(parse(text, "made")) == pairs


NODES, TASKS = "SLURM_JOB_NODELIST", "SLURM_TASKS_PER_NODE"


def lines_of(folder: Path, text: str) -> str:
    (folder / "listed").write_text(text)
    return str(folder / "listed")


IN_SLURM = {NODES: "s1", TASKS: "1"}
IN_LSF = {"LSB_MCPU_HOSTS": "l1 2"}


def test_auto_takes_nodes_then_the_first_system_that_the_environment_shows(tmp_path: Path) -> None:
    in_pbs = {"PBS_NODEFILE": lines_of(tmp_path, "p1\n")}
    everything = IN_SLURM | IN_LSF | in_pbs
    for nodes, environment, name in (
        (["n1:1"], everything, "n1"),
        ([], everything, "s1"),
        ([], IN_LSF | in_pbs, "l1"),
        ([], in_pbs | {NODES: ""}, "p1"),
    ):
        assert allocate(nodes, "auto", None, environment).hosts[0].name == name
    assert allocate([], "pbs", None, everything).hosts[0].name == "p1", "the one that is asked for"


@pytest.mark.parametrize(
    ("nodes", "system", "slots", "fragments"),
    [
        ([], "auto", "auto", [NODES, "LSB_DJOB_HOSTFILE", "LSB_MCPU_HOSTS", "PBS_NODEFILE", "NODES such as"]),
        ([], "nodes", "auto", ["--from nodes", "gpu[01-04,07]:4"]),
        ([], "sge", "auto", ["--from 'sge'", "slurm, lsf, pbs, nodes or auto"]),
        (["a:1"], "slurm", "auto", ["--from slurm", "'a:1'", "one of the two"]),
        (["a"], "auto", "0", ["--slots '0'", "auto, or a number from 1 to 1024"]),
        (["a"], "auto", "four", ["--slots 'four'"]),
        (["a"], "auto", "1025", ["--slots '1025'"]),
        (["a"], "auto", "\uff19", ["--slots"]),
    ],
)
def test_a_wrong_request_is_explained(nodes: list[str], system: str, slots: str, fragments: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        make(nodes, system, slots, {}, DAY)
    assert [fragment for fragment in fragments if fragment not in str(refused.value)] == [], refused.value


def test_the_file_says_where_it_comes_from_and_nothing_that_was_not_asked(tmp_path: Path) -> None:
    path = lines_of(tmp_path, "a\nb\n")
    text = make([], "pbs", "auto", {"PBS_NODEFILE": path, "WANDB_API_KEY": "secret", "USER": "somebody"}, DAY)
    assert "2026-11-24" in text and f"PBS_NODEFILE={path}" in text and "--slots N" in text
    assert "secret" not in text and "somebody" not in text.replace(path, "")
    assert "left out: batch2, the launch node" in make([], "lsf", "6", {"LSB_MCPU_HOSTS": "batch2 1 h1 42"}, DAY)
    many = " ".join(f"h{number} 42" for number in range(4000))
    assert max(map(len, make([], "lsf", "6", {"LSB_MCPU_HOSTS": many}, DAY).splitlines())) < 400


def test_a_path_with_a_line_end_stays_a_comment(tmp_path: Path) -> None:
    folder = tmp_path / "odd\nx slots=9 \udcff"
    folder.mkdir()
    text = make([], "pbs", "auto", {"PBS_NODEFILE": lines_of(folder, "a\n")}, DAY)
    assert slots_of(parse(text, "made")) == [("a", 1)]


MADE: dict[str, tuple[list[str], str, Mapping[str, str]]] = {
    "one_node": (["node1:4"], "auto", {}),
    "two_nodes": (["gpu[01-02]:4"], "auto", {}),
    "slurm_allocation": (
        [],
        "auto",
        {
            NODES: "nid[001234-001236,001240]",
            "SLURM_GPUS_PER_NODE": "a100:4",
            "SLURM_GPUS_ON_NODE": "4",
            TASKS: "1(x4)",
        },
    ),
    "summit": ([], "6", {"LSB_MCPU_HOSTS": "batch2 1 h41n08 42 h41n09 42"}),
}


def test_every_example_is_tested() -> None:
    assert {path.name for path in HOSTFILES.iterdir()} == MADE.keys()


@pytest.mark.parametrize("name", MADE)
def test_an_example_is_what_is_made_and_deepspeed_reads_it(name: str) -> None:
    nodes, slots, environment = MADE[name]
    made = make(nodes, "auto", slots, environment, DAY)
    text = (HOSTFILES / name).read_text()
    assert text.endswith(made)
    ours = text.removesuffix(made).splitlines()
    assert ours and all(line.startswith("#") for line in ours)
    found = read(HOSTFILES / name)
    assert slots_of(found) == list(fetch_hostfile(str(HOSTFILES / name)).items())
    assert found == parse(made, "made")
