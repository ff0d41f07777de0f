from pathlib import Path

import pytest

from lartpc_ds.config.launch import LaunchConfig
from lartpc_ds.errors import UserError
from lartpc_ds.jobs.hosts.hostfile import Host
from lartpc_ds.jobs.site import Site, crossings, first_slots, here, of_hostfile, placement_advice, with_environment
from lartpc_ds.layout import Layout


def site(*slots: int) -> Site:
    return Site(tuple(Host(f"n{number}", tuple(range(count))) for number, count in enumerate(slots)), "pdsh")


@pytest.fixture
def hostfile(tmp_path: Path) -> Path:
    path = tmp_path / "hosts"
    path.write_text("alpha slots=4\nbeta slots=4\ngamma slots=2\n")
    return path


def test_ranks_follow_the_order_of_the_hosts(hostfile: Path) -> None:
    found = of_hostfile(hostfile, "", "", None)
    assert (found.launcher, found.world_size) == ("pdsh", 10)
    assert found.rank_hosts == ["alpha"] * 4 + ["beta"] * 4 + ["gamma"] * 2
    assert here(3).world_size == 3 and here(3).launcher is None


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_this_machine_alone_needs_no_launcher(tmp_path: Path, name: str) -> None:
    (tmp_path / "hosts").write_text(f"{name} slots=3\nbeta slots=1\n")
    assert of_hostfile(tmp_path / "hosts", name, "", None).launcher is None
    assert of_hostfile(tmp_path / "hosts", name, "", "pdsh").launcher == "pdsh"
    assert of_hostfile(tmp_path / "hosts", "", "", None).launcher == "pdsh"
    assert of_hostfile(tmp_path / "hosts", "beta", "", None).launcher == "pdsh"  # one host, but not this one


def test_filters_of_whole_hosts_suit_every_launcher(hostfile: Path) -> None:
    for launcher in ("pdsh", "openmpi", "slurm"):
        found = of_hostfile(hostfile, "", "gamma", launcher)
        assert [host.name for host in found.hosts] == ["alpha", "beta"] and not found.chooses_devices
    assert of_hostfile(hostfile, "alpha:0,1@gamma", "", "slurm").world_size == 4  # the first two will do


@pytest.mark.parametrize("launcher", ["openmpi", "slurm"])
def test_a_launcher_that_ignores_a_choice_of_devices_is_refused(hostfile: Path, launcher: str) -> None:
    assert of_hostfile(hostfile, "alpha:1,3", "", "pdsh").chooses_devices
    with pytest.raises(UserError, match=rf"--include alpha:1,3: chooses devices.*--launcher {launcher} ignores"):
        of_hostfile(hostfile, "alpha:1,3", "", launcher)
    with pytest.raises(UserError, match=rf"--exclude alpha:0@gamma: .*--launcher {launcher} ignores"):
        of_hostfile(hostfile, "", "alpha:0@gamma", launcher)


def test_srun_wants_even_slots(hostfile: Path) -> None:
    with pytest.raises(UserError, match=r"--launcher slurm: .*alpha 4, beta 4, gamma 2"):
        of_hostfile(hostfile, "", "", "slurm")


def test_the_first_slots_fill_host_after_host(hostfile: Path) -> None:
    whole = of_hostfile(hostfile, "", "", "pdsh")
    for ranks, slots in ((1, [1]), (4, [4]), (6, [4, 2]), (10, [4, 4, 2])):
        first = first_slots(whole, ranks)
        assert [host.slots for host in first.hosts] == slots
        assert first.launcher == "pdsh" and first.job != whole.job
    even = of_hostfile(hostfile, "alpha@beta", "", "slurm")
    assert first_slots(even, 8).world_size == 8
    with pytest.raises(UserError, match=r"--launcher slurm: .*alpha 4, beta 2"):
        first_slots(even, 6)


def test_an_unknown_launcher_names_those_there_are(hostfile: Path) -> None:
    with pytest.raises(UserError, match="--launcher mvapich: must be one of pdsh, openmpi, slurm"):
        of_hostfile(hostfile, "", "", "mvapich")


def test_tiles_on_one_host_send_no_halo_over_the_network() -> None:
    layout = Layout(data=4, rows=2)
    assert crossings(layout, site(4, 4).rank_hosts) == {}
    assert placement_advice(layout, site(4, 4)) is None


def test_a_group_that_straddles_hosts_is_counted_by_pairs_of_tiles() -> None:
    # ranks 0 1 | 2 3 4 5 | 6 7, groups of 2 x 2 tiles: 0 1 2 3 and 4 5 6 7
    assert crossings(Layout(data=2, rows=2, cols=2), site(2, 4, 2).rank_hosts) == {("n0", "n1"): 2, ("n1", "n2"): 2}
    assert crossings(Layout(pipe=2, rows=2), site(1, 1, 1, 1).rank_hosts) == {("n0", "n1"): 1, ("n2", "n3"): 1}


def test_advice_names_the_filter_under_which_no_group_straddles() -> None:
    told = placement_advice(Layout(data=4, rows=2), site(3, 3, 2))
    assert told is not None and told.endswith("--include n0:0,1@n1:0,1@n2:0,1")
    assert placement_advice(Layout(rows=2), site(1, 1)) is None  # nothing can be done, and the plan says what crosses
    told = placement_advice(Layout(rows=4, cols=2), site(4, 4))
    assert told is not None and "no host has 8 slots" in told


def test_the_configuration_gives_ranks_their_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UCX_TLS", "rc")
    monkeypatch.delenv("NOT_SET_HERE", raising=False)
    launch = LaunchConfig(environment={"NCCL_DEBUG": "INFO"}, forward=("UCX_TLS",), hdf5_file_locking="off")
    found = with_environment(site(1), launch).environment
    assert found == {"NCCL_DEBUG": "INFO", "UCX_TLS": "rc", "HDF5_USE_FILE_LOCKING": "FALSE"}
    with pytest.raises(UserError, match=r"launch\.forward: NOT_SET_HERE is not set here"):
        with_environment(site(1), LaunchConfig(forward=("NOT_SET_HERE",)))


@pytest.mark.parametrize("given", [{"environment": {"RANK": "0"}}, {"forward": ("MASTER_ADDR",)}])
def test_what_says_which_rank_a_process_is_cannot_be_given(given: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be left to the launcher"):
        LaunchConfig(**given)
