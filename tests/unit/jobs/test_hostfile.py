"""Hostfiles and filters, each against DeepSpeed's own parser."""

import re
from pathlib import Path

import pytest
from deepspeed.launcher.runner import fetch_hostfile, parse_inclusion_exclusion
from hypothesis import given
from hypothesis import strategies as st

from lartpc_ds.errors import UserError
from lartpc_ds.jobs.hosts.hostfile import Host, parse, read, render, select
from tests.examples import examples

EXAMPLES = examples(300)


def whole(**slots: int) -> tuple[Host, ...]:
    return tuple(Host(name, tuple(range(count))) for name, count in slots.items())


def by_deepspeed(folder: Path, text: str) -> list[tuple[str, int]]:
    (folder / "hosts").write_bytes(text.encode())
    return list(fetch_hostfile(str(folder / "hosts")).items())


GOOD = {
    "one host": ("worker-0 slots=16\n", [("worker-0", 16)]),
    "no newline at the end": ("a slots=1", [("a", 1)]),
    "the order is the file's": ("z slots=1\na slots=2\n", [("z", 1), ("a", 2)]),
    "comments and blank lines": ("# rack 1\n\n  # and 2\na slots=4\n   \n", [("a", 4)]),
    "comment after an entry": ("a slots=4 # new cable\nb slots=4# old\n", [("a", 4), ("b", 4)]),
    "unicode in a comment": ("# Zürich, 机架\na slots=4 # ü\n", [("a", 4)]),
    "CRLF": ("a slots=4\r\nb slots=2\r\n", [("a", 4), ("b", 2)]),
    "old Mac line ends": ("a slots=4\rb slots=2\r", [("a", 4), ("b", 2)]),
    "tabs": ("\ta\tslots=4\t\nb \t slots=2\n", [("a", 4), ("b", 2)]),
    "blanks at both ends": ("  a slots=4   \n", [("a", 4)]),
    "FQDN": ("gpu01.hpc.example.edu slots=4\n", [("gpu01.hpc.example.edu", 4)]),
    "IPv4": ("10.0.0.1 slots=8\n", [("10.0.0.1", 8)]),
    "NERSC": ("nid001234 slots=4\nnid001235 slots=4\n", [("nid001234", 4), ("nid001235", 4)]),
    "Frontier": ("frontier00001 slots=8\n", [("frontier00001", 8)]),
    "Summit": ("h41n08 slots=6\nh41n09 slots=6\n", [("h41n08", 6), ("h41n09", 6)]),
    "Cray xname": ("x1000c0s0b0n0 slots=4\n", [("x1000c0s0b0n0", 4)]),
    "underscore": ("my_node_ slots=1\n", [("my_node_", 1)]),
    "mixed slots": ("a100 slots=8\nv100 slots=4\n", [("a100", 8), ("v100", 4)]),
    "leading zeros": ("a slots=08\n", [("a", 8)]),
    "names that only start alike": ("n1 slots=1\nn10 slots=1\nn1.b slots=1\n", [("n1", 1), ("n10", 1), ("n1.b", 1)]),
    "the most": ("a slots=1024\n", [("a", 1024)]),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_file_is_read_as_deepspeed_reads_it(tmp_path: Path, name: str) -> None:
    text, hosts = GOOD[name]
    assert by_deepspeed(tmp_path, text) == hosts
    found = read(tmp_path / "hosts")
    assert [(host.name, host.slots) for host in found] == hosts
    assert all(host.devices == tuple(range(host.slots)) for host in found)


BAD = {
    "empty": ("", ["hosts: names no host", "NAME slots=N"]),
    "only comments": ("# a slots=4\n", ["names no host"]),
    "no slots": ("a\n", ["line 1, 'a': no number of slots; write a slots=N"]),
    "slots in a comment": ("a # slots=4\n", ["no number of slots; write a slots=N"]),
    "MPICH's host:4": ("a:4\n", ["line 1, 'a:4'", "the form of another program; write a slots=4"]),
    "host:4 with slots": ("a:4 slots=4\n", ["write a slots=4"]),
    "a bare number": ("a 4\n", ["'4' is not slots=N", "write a slots=4"]),
    "PBS's cpus": ("a cpus=4\n", ["'cpus=4' is not slots=N", "write a slots=4"]),
    "blanks around =": ("a slots = 4\n", ["'slots = 4'", "no blanks around =", "write a slots=4"]),
    "capitals": ("a SLOTS=4\n", ["'SLOTS=4'", "small letters", "write a slots=4"]),
    "no value": ("a slots=\n", ["'slots=' is not slots=N", "write a slots=N"]),
    "negative": ("a slots=-1\n", ["'slots=-1' is not slots=N"]),
    "zero": ("a slots=0\n", ["at least one slot", "delete the line"]),
    "zeros": ("a slots=000\n", ["at least one slot"]),
    "too many": ("a slots=1025\n", ["slots=1025", "1 to 1024"]),
    "digits without end": (f"a slots={'9' * 5000}\n", ["more than any host has"]),
    "OpenMPI's max_slots": ("a slots=4 max_slots=8\n", ["silently ignore 'max_slots=8'", "delete it"]),
    "two hosts a line": ("a slots=4 b slots=4\n", ["silently ignore 'b slots=4'"]),
    "a fraction": ("a slots=4.5\n", ["'slots=4.5' is not a number of slots"]),
    "letters after the number": ("a slots=4x\n", ["'slots=4x' is not a number of slots"]),
    "a comma after the number": ("a slots=4, b\n", ["is not a number of slots"]),
    "no name": ("slots=4\n", ["no name before the slots; write NAME slots=4"]),
    "brackets": ("gpu[01-04] slots=4\n", ["'gpu[01-04]'", "one host a line", "hostfile make"]),
    "comma": ("a,b slots=4\n", ["'a,b'", "one host a line"]),
    "user@host": ("root@a slots=4\n", ["'root@a'", "~/.ssh/config"]),
    "IPv6": ("fe80::1 slots=4\n", ["'fe80::1'", "IPv6", "/etc/hosts"]),
    "an option for ssh": ("-oProxyCommand=x slots=4\n", ["is no host name"]),
    "unicode name": ("gpü slots=4\n", [r"'gp\xfc'", "is no host name"]),
    "unicode digits": ("a slots=\uff14\n", ["is not slots=N"]),
    "no-break space": ("a\u00a0slots=4\n", [r"'a\xa0slots=4'"]),
    "a form feed": ("a slots=4\x0cb slots=4\n", ["is not a number of slots"]),
    "byte-order mark": ("\ufeffa slots=4\n", ["byte-order mark"]),
    "too long a name": (f"{'a' * 254} slots=4\n", ["at most 253"]),
    "a duplicate": ("a slots=4\n\nb slots=1\na slots=2\n", ["line 4, 'a slots=2': line 1 names this host already"]),
    "a duplicate but for case": ("gpu1 slots=4\nGPU1 slots=4\n", ["line 2", "line 1 names this host already"]),
    "a good line before": ("a slots=4\nb\n", ["line 2, 'b'"]),
    "JSON": ('{"a": 4}\n', ["line 1"]),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_explained(name: str) -> None:
    text, fragments = BAD[name]
    with pytest.raises(UserError) as refused:
        parse(text, "hosts")
    message = str(refused.value)
    assert message.startswith("hosts: ")
    assert [fragment for fragment in fragments if fragment not in message] == [], message
    assert max(map(len, message.splitlines())) < 400 and message.isascii()


def test_every_error_is_reported_at_once_and_nothing_else() -> None:
    with pytest.raises(UserError) as refused:
        parse("a slots=4\nb slots=0\n# c\nd:2\n\nA slots=1\ne slots=2\ne slots=3 # again\n", "hosts")
    lines = str(refused.value).splitlines()
    assert [re.match(r"  line (\d+),", line)[1] for line in lines[1:]] == ["2", "4", "6", "8"]  # type: ignore[index]


@pytest.mark.parametrize("text", ["a slots=4 max_slots=8\n", "a slots=4x\n", "a slots=4 b slots=4\n", "a slots=0\n"])
def test_what_is_stricter_than_deepspeed_is_so_on_purpose(tmp_path: Path, text: str) -> None:
    assert by_deepspeed(tmp_path, text)
    with pytest.raises(UserError):
        parse(text, "hosts")


lines = st.builds(
    "{}{}{}slots={}{}{}".format,
    st.sampled_from(["", "", "", " ", "\t", "#", "\x0c", "\u00a0"]),
    st.sampled_from(["a", "b", "n1", "n1.c", "x-y", "a:1", "", "a#", "é", "-a"]),
    st.sampled_from([" ", " ", "\t", " \t ", "", "\u00a0", "\x0b"]),
    st.sampled_from(["1", "2", "13", "07", "0", "", "-1", "٣", "99999"]),
    st.sampled_from(["", "", "", " ", "#c", " # d", "x", ".5", " b slots=1", " max_slots=8", "\x0c", "\u00a0# e"]),
    st.sampled_from(["\n", "\n", "\r\n", "\r", "\n\n", "\n \n", "\u2028", "\x85"]),
)


@EXAMPLES
@given(text=st.lists(lines, max_size=3).map("".join))
def test_deepspeed_reads_the_same_in_whatever_is_accepted(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    try:
        found = parse(text, "hosts")
    except UserError:
        return
    assert [(host.name, host.slots) for host in found] == by_deepspeed(tmp_path_factory.getbasetemp(), text)


labels = st.from_regex(r"[a-z0-9]([a-z0-9_.-]{0,6}[a-z0-9])?", fullmatch=True)
pools = st.dictionaries(labels, st.integers(1, 1024), min_size=1, max_size=6).map(lambda pool: whole(**pool))


@EXAMPLES
@given(hosts=pools, comments=st.lists(st.text(max_size=20), max_size=3))
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, hosts: tuple[Host, ...], comments: list[str]
) -> None:
    text = render(hosts, comments)
    assert text.isascii()
    assert parse(text, "hosts") == hosts
    assert by_deepspeed(tmp_path_factory.getbasetemp(), text) == [(host.name, host.slots) for host in hosts]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing: cannot read this hostfile: No such file"):
        read(tmp_path / "missing")
    with pytest.raises(UserError, match=r"cannot read this hostfile: Is a directory"):
        read(tmp_path)
    (tmp_path / "latin1").write_bytes("a slots=4\r\n# Zürich\r\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin1, line 2: is not UTF-8"):
        read(tmp_path / "latin1")


HOSTS = whole(a=4, b=2, c=1)
FILTERS = [
    ("", "", {"a": (0, 1, 2, 3), "b": (0, 1), "c": (0,)}),
    ("b", "", {"b": (0, 1)}),
    ("c@a", "", {"a": (0, 1, 2, 3), "c": (0,)}),
    ("b@a:3,1", "", {"a": (1, 3), "b": (0, 1)}),
    ("a:0@a:2", "", {"a": (0, 2)}),
    ("a:1,1", "", {"a": (1,)}),
    ("", "a", {"b": (0, 1), "c": (0,)}),
    ("", "a:0,2@b:1", {"a": (1, 3), "b": (0,), "c": (0,)}),
    ("", "b:0,1", {"a": (0, 1, 2, 3), "c": (0,)}),
]


@pytest.mark.parametrize(("include", "exclude", "left"), FILTERS)
def test_a_filter_leaves_what_deepspeed_leaves(include: str, exclude: str, left: dict[str, tuple[int, ...]]) -> None:
    assert {host.name: host.devices for host in select(HOSTS, include, exclude)} == left
    assert deepspeed_select(include, exclude) == left


def deepspeed_select(include: str, exclude: str) -> dict[str, tuple[int, ...]]:
    pool = {host.name: host.slots for host in HOSTS}
    return {name: tuple(slots) for name, slots in parse_inclusion_exclusion(pool, include, exclude).items()}


@pytest.mark.parametrize(
    ("include", "exclude", "fragments"),
    [
        ("a", "b", ["--include 'a' and --exclude 'b'", "one of the two"]),
        ("d", "", ["--include 'd'", "no host 'd'", "it has a, b, c"]),
        ("a:4", "", ["'a:4': a has no slot 4; it has 0, 1, 2, 3"]),
        ("", "b:0,7,9", ["--exclude 'b:0,7,9'", "b has no slot 7, 9; it has 0, 1"]),
        ("a:", "", ["'a:': slots must be numbers between commas, as in a:0,1"]),
        ("a:x", "", ["'a:x': slots must be numbers"]),
        ("a:0-3", "", ["'a:0-3': slots must be numbers"]),
        ("a:0:1", "", ["'a:0:1': slots must be numbers"]),
        ("a,b", "", ["no host 'a,b'"]),
        ("a@", "", ["no host ''"]),
        (" a", "", ["no host ' a'"]),
        ("a@a:0", "", ["both as a whole and by slots"]),
        ("", "a:0@a", ["both as a whole and by slots"]),
        ("", "a@b@c", ["--exclude 'a@b@c'", "leaves no slot"]),
        ("a:9@d@b:x", "", ["'a:9'", "'d'", "'b:x'"]),
    ],
)
def test_a_wrong_filter_is_explained(include: str, exclude: str, fragments: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        select(HOSTS, include, exclude)
    assert [fragment for fragment in fragments if fragment not in str(refused.value)] == [], refused.value


def test_a_filter_of_a_filtered_pool_knows_what_is_left() -> None:
    left = select(HOSTS, "a:1,3", "")
    assert select(left, "", "a:3") == (Host("a", (1,)),)
    with pytest.raises(UserError, match="a has no slot 0; it has 1, 3"):
        select(left, "a:0", "")


filters = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from(["", "", ":0", ":1", ":0,1", ":2,0,3", ":4", ":", ":x"])).map(
        "".join
    ),
    max_size=4,
).map("@".join)


@EXAMPLES
@given(filters, st.booleans())
def test_filters_agree_with_deepspeed(text: str, includes: bool) -> None:
    include, exclude = (text, "") if includes else ("", text)
    whole_and_slots = {t for t in text.split("@") if ":" not in t} & {
        t.split(":")[0] for t in text.split("@") if ":" in t
    }
    try:
        theirs = deepspeed_select(include, exclude)
    except ValueError:
        theirs = {}
    if theirs and not whole_and_slots:
        assert {host.name: host.devices for host in select(HOSTS, include, exclude)} == theirs
    else:
        with pytest.raises(UserError):
            select(HOSTS, include, exclude)
