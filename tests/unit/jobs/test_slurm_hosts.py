"""Hosts and slots of a Slurm job, from its environment."""

import pytest

from lartpc_ds.errors import UserError
from lartpc_ds.jobs.hosts.hostfile import Host
from lartpc_ds.jobs.hosts.slurm_hosts import from_slurm


def slots_of(hosts: tuple[Host, ...]) -> list[tuple[str, int]]:
    assert all(host.devices == tuple(range(host.slots)) for host in hosts)
    return [(host.name, host.slots) for host in hosts]


def each(names: str, slots: int) -> list[tuple[str, int]]:
    return [(name, slots) for name in names.split()]


NODES, TASKS = "SLURM_JOB_NODELIST", "SLURM_TASKS_PER_NODE"
ASKED, HERE, TOTAL = "SLURM_GPUS_PER_NODE", "SLURM_GPUS_ON_NODE", "SLURM_GPUS"
SLURM = {
    "NERSC": ({NODES: "nid[001234-001236]", ASKED: "4"}, each("nid001234 nid001235 nid001236", 4)),
    "Frontier": ({NODES: "frontier[00001,00417]", HERE: "8"}, each("frontier00001 frontier00417", 8)),
    "one node": ({NODES: "gpu7", TASKS: "1", HERE: "2"}, each("gpu7", 2)),
    "a type of GPU": ({NODES: "a[1-2]", ASKED: "a100:4", HERE: "4", TASKS: "1(x2)"}, each("a1 a2", 4)),
    "two types in a node": ({NODES: "a[1-2]", ASKED: "a100:2,v100:2"}, each("a1 a2", 4)),
    "a total that fits": ({NODES: "a[1-2]", HERE: "4", TOTAL: "a100:8"}, each("a1 a2", 4)),
    "no GPUs": ({NODES: "c[1-3]", TASKS: "4(x2),2"}, [("c1", 4), ("c2", 4), ("c3", 2)]),
    "GPUs: none": ({NODES: "c[1-2]", TASKS: "3(x2)", HERE: "0"}, each("c1 c2", 3)),
    "counts in Slurm's order": (
        {NODES: "n[3,1-2],m1", TASKS: "8,1(x2),5"},
        [("n3", 8), ("n1", 1), ("n2", 1), ("m1", 5)],
    ),
    "two brackets": ({NODES: "r[1-2]n[1-2]", TASKS: "1(x4)"}, each("r1n1 r1n2 r2n1 r2n2", 1)),
    "not a heterogeneous job": ({NODES: "a", TASKS: "2", "SLURM_HET_SIZE": "1"}, each("a", 2)),
}


@pytest.mark.parametrize("name", SLURM)
def test_a_slurm_job(name: str) -> None:
    environment, hosts = SLURM[name]
    assert slots_of(from_slurm(environment, None).hosts) == hosts
    assert slots_of(from_slurm(environment, 7).hosts) == [(host, 7) for host, _ in hosts]


BAD_SLURM = {
    "no job": ({}, [NODES, "not set", "NODES such as"]),
    "blank": ({NODES: " "}, ["not set, or empty"]),
    "a bad list": ({NODES: "a[1-", TASKS: "1"}, [NODES, "'a[1-'", "brackets must pair"]),
    "no counts": ({NODES: "a[1-2]"}, [ASKED, HERE, TASKS, "--slots N"]),
    "tasks of fewer nodes": ({NODES: "a[1-3]", TASKS: "4(x2)"}, ["4(x2)", "2 node(s)", "names 3", "--slots N"]),
    "tasks of more nodes": ({NODES: "a[1-2]", TASKS: "4(x999999999)"}, ["999999999 node(s)"]),
    "tasks that are none": ({NODES: "a", TASKS: "4(x)"}, [TASKS, "'4(x)'", "such as 4(x2),2"]),
    "no task": ({NODES: "a[1-2]", TASKS: "1,0"}, ["0 slots on a2", TASKS]),
    "GPUs that are none": ({NODES: "a", HERE: "0-3"}, [HERE, "'0-3'", "a100:2,v100:2"]),
    "asked and here differ": ({NODES: "a[1-2]", ASKED: "4", HERE: "1"}, [f"{ASKED}=4", f"{HERE}=1", "--slots N"]),
    "GPUs differ between nodes": ({NODES: "a[1-2]", HERE: "4", TOTAL: "6"}, [f"{TOTAL}='6'", f"{HERE}=4", "a:4 b:2"]),
    "heterogeneous": ({NODES: "a", TASKS: "1", "SLURM_HET_SIZE": "2"}, ["SLURM_HET_SIZE='2'", "give NODES"]),
    "a mad count": ({NODES: "a", HERE: "4096"}, ["4096 slots on a", f"{HERE}=4096"]),
}


@pytest.mark.parametrize("name", BAD_SLURM)
def test_a_slurm_job_that_does_not_say_enough(name: str) -> None:
    environment, fragments = BAD_SLURM[name]
    with pytest.raises(UserError) as refused:
        from_slurm(environment, None)
    assert [fragment for fragment in fragments if fragment not in str(refused.value)] == [], refused.value


def test_a_number_of_slots_settles_what_slurm_leaves_open() -> None:
    for environment in ({NODES: "a[1-2]"}, {NODES: "a[1-2]", HERE: "4", TOTAL: "6"}, {NODES: "a[1-2]", TASKS: "?"}):
        assert slots_of(from_slurm(environment, 4).hosts) == each("a1 a2", 4)
