import pytest

from lartpc_ds.errors import UserError
from lartpc_ds.training.control_point import ControlPoint
from lartpc_ds.training.rank_environment import rank_variables

OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
SLURM = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "SLURM_NTASKS_PER_NODE": "2"}


def point(launcher: str | None, **environment: str) -> ControlPoint:
    return ControlPoint(("10.0.0.1",), 5000, "job", "token", launcher, "10.0.0.2", 29500, environment)


@pytest.mark.parametrize(("launcher", "variables"), [("openmpi", OPENMPI), ("slurm", SLURM)])
def test_a_schedulers_variables_say_which_rank_this_is(launcher: str, variables: dict[str, str]) -> None:
    stale = {"RANK": "0", "MASTER_ADDR": "somewhere"}  # of the shell that the job was started from
    found = rank_variables({**stale, **variables}, point(launcher), cores=8)
    assert found == {
        **{"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"},
        **{"MASTER_ADDR": "10.0.0.2", "MASTER_PORT": "29500"},
    }


@pytest.mark.parametrize("launcher", [None, "pdsh"])
def test_deepspeeds_launcher_says_it_itself(launcher: str | None) -> None:
    assert rank_variables({**SLURM, "RANK": "1"}, point(launcher, NCCL_DEBUG="INFO"), 8) == {"NCCL_DEBUG": "INFO"}


def test_a_rank_that_another_launcher_started_is_told_so() -> None:
    with pytest.raises(UserError, match=r"--launcher openmpi: OMPI_COMM_WORLD_RANK, .* not set in a rank"):
        rank_variables(SLURM, point("openmpi"), 8)


def test_ranks_on_cpu_share_the_cores_of_their_host() -> None:
    for local_size, threads in (("1", "8"), ("3", "2"), ("16", "1")):
        found = rank_variables({"LOCAL_SIZE": local_size}, point("pdsh", DS_ACCELERATOR="cpu"), 8)
        assert found["OMP_NUM_THREADS"] == threads
    assert rank_variables(SLURM, point("slurm", DS_ACCELERATOR="cpu"), 8)["OMP_NUM_THREADS"] == "4"
    inherited = {"OMP_NUM_THREADS": "5", "LOCAL_SIZE": "2", "DS_ACCELERATOR": "cpu"}
    assert rank_variables(inherited, point(None), 8)["OMP_NUM_THREADS"] == "5"
    chosen = point("pdsh", DS_ACCELERATOR="cpu", OMP_NUM_THREADS="3")
    assert rank_variables(inherited, chosen, 8)["OMP_NUM_THREADS"] == "3"


def test_ranks_on_gpus_keep_their_threads() -> None:
    assert "OMP_NUM_THREADS" not in rank_variables({"LOCAL_SIZE": "2"}, point("pdsh", DS_ACCELERATOR="cuda"), 8)
