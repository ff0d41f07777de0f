"""Which rank a process is, and the variables that it needs before torch is imported.

DeepSpeed's own launcher sets RANK and its kin. Under mpirun and srun DeepSpeed would ask mpi4py; the schedulers' own
variables say the same without it. What the command line wants every rank to have comes through its control point and
not through the launchers, because each of them quotes and filters variables in its own way.
"""

from collections.abc import Mapping

from lartpc_ds.errors import UserError
from lartpc_ds.training.control_point import ControlPoint

__all__ = ["SCHEDULERS", "rank_variables"]

SCHEDULERS = {
    "openmpi": {
        "RANK": "OMPI_COMM_WORLD_RANK",
        "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
        "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
        "LOCAL_SIZE": "OMPI_COMM_WORLD_LOCAL_SIZE",
    },
    "slurm": {
        "RANK": "SLURM_PROCID",
        "WORLD_SIZE": "SLURM_NTASKS",
        "LOCAL_RANK": "SLURM_LOCALID",
        "LOCAL_SIZE": "SLURM_NTASKS_PER_NODE",
    },
}
"""Launchers that start ranks without DeepSpeed's launcher: where each variable comes from."""


def rank_variables(environment: Mapping[str, str], point: ControlPoint, cores: int) -> dict[str, str]:
    """What to set in a rank's environment; `cores` are those it shares with the other ranks of its host.

    Raises:
        UserError: the launcher has not set what says which rank this is.
    """
    found = dict(point.environment)
    if point.launcher in SCHEDULERS:
        names = SCHEDULERS[point.launcher]
        missing = [name for name in names.values() if name not in environment]
        if missing:
            raise UserError(
                f"--launcher {point.launcher}: {', '.join(missing)} is not set in a rank, so it was not started by "
                f"that launcher; was it started by hand, or is another mpirun or srun on the PATH?"
            )
        found |= {name: environment[source] for name, source in names.items()}
        found |= {"MASTER_ADDR": point.master_addr, "MASTER_PORT": str(point.master_port)}
    local_size = int(found.get("LOCAL_SIZE") or environment.get("LOCAL_SIZE") or 1)
    if found.get("DS_ACCELERATOR", environment.get("DS_ACCELERATOR")) == "cpu":
        # the ranks of a host share its cores; torch would take all of them in every rank
        found.setdefault("OMP_NUM_THREADS", environment.get("OMP_NUM_THREADS", str(max(1, cores // local_size))))
    return found
