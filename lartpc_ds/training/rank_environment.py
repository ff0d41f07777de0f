"""Which rank a process is, and the environment variables that it needs before torch is imported.

DeepSpeed's own launcher sets RANK and the variables that go with it. Under mpirun and srun DeepSpeed would ask mpi4py,
but the schedulers' own variables say the same without it. The variables that the command line gives to every rank come
through its control point. Rejected: passing them through the launchers, because each launcher quotes and filters
variables in its own way.
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
"""Where each variable comes from under launchers that start ranks without DeepSpeed's launcher."""


def rank_variables(environment: Mapping[str, str], point: ControlPoint, cores: int) -> dict[str, str]:
    """The variables to set in a rank's environment; `cores` counts the cores that the ranks of its host share.

    Raises:
        UserError: the launcher has not set what says which rank this is.
    """
    variables = dict(point.environment)
    if point.launcher in SCHEDULERS:
        names = SCHEDULERS[point.launcher]
        missing = [name for name in names.values() if name not in environment]
        if missing:
            raise UserError(
                f"--launcher {point.launcher}: {', '.join(missing)} is not set in a rank, so that launcher has not "
                f"started it; was it started by hand, or is another mpirun or srun on the PATH?"
            )
        variables |= {name: environment[source] for name, source in names.items()}
        variables |= {"MASTER_ADDR": point.master_addr, "MASTER_PORT": str(point.master_port)}
    local_size = int(variables.get("LOCAL_SIZE") or environment.get("LOCAL_SIZE") or 1)
    if variables.get("DS_ACCELERATOR", environment.get("DS_ACCELERATOR")) == "cpu":
        # the ranks of a host share its cores; torch would take all of them in every rank
        variables.setdefault("OMP_NUM_THREADS", environment.get("OMP_NUM_THREADS", str(max(1, cores // local_size))))
    return variables
