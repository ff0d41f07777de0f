"""The `deepspeed` command line of a job on this machine or on other hosts, and the environment that it runs in."""

import base64
import json
import os
import re
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deepspeed.accelerator import get_accelerator

from lartpc_ds.config.ds_config import DeepSpeedConfig, compiles_adam, precision
from lartpc_ds.errors import UserError
from lartpc_ds.jobs.hosts.hostfile import render
from lartpc_ds.jobs.site import Site

__all__ = [
    "Command",
    "check_accelerator",
    "check_count",
    "check_devices",
    "command_of",
    "default_devices",
    "shared_cores",
    "write_hostfile",
]

_WORKER = "lartpc_ds.training.worker"
_BARE = re.compile(r"[\w@+=:,./-]*")
_QUOTED = re.compile(r"[\w@+=:,./ -]*")


@dataclass(frozen=True, slots=True)
class Command:
    """The arguments of a command, and the variables to set (or, with None, to unset) in this process's environment."""

    arguments: tuple[str, ...]
    variables: Mapping[str, str | None]

    def environment(self) -> dict[str, str]:
        """The whole environment of the command."""
        merged = {**os.environ, **self.variables}
        return {name: value for name, value in merged.items() if value is not None}


def default_devices() -> int:
    """The number of ranks without `--devices`: one per GPU of this machine, or one CPU rank."""
    accelerator = get_accelerator()
    return 1 if accelerator.device_name() == "cpu" else int(accelerator.device_count())


def shared_cores() -> int | None:
    """The number of cores that the ranks of this machine share; None if each computes on a device of its own."""
    return len(os.sched_getaffinity(0)) if get_accelerator().device_name() == "cpu" else None


def check_devices(devices: int, ds: DeepSpeedConfig) -> None:
    """Check that this machine can run this number of ranks with this configuration.

    Raises:
        UserError: there are more ranks than GPUs, fp16 on a CPU, or CPU offload without a C++ compiler.
    """
    check_count(devices, f"--devices {devices}")
    check_accelerator(get_accelerator().device_name(), ds)
    compiler = os.environ.get("CXX", "g++")
    if compiles_adam(ds) and shutil.which(compiler) is None:
        raise UserError(
            "zero_optimization.offload_optimizer: DeepSpeed compiles its CPU Adam at first use and finds no C++ "
            f"compiler ({compiler}); install one (Debian: apt-get install g++), or set "
            "ds.zero_force_ds_cpu_optimizer=false and ds.optimizer.params.torch_adam=true"
        )


def check_count(devices: int, setting: str) -> None:
    """Check that this machine has this number of devices, which `setting` asks for.

    Raises:
        UserError: the machine has fewer.
    """
    accelerator = get_accelerator()
    on_cpu = accelerator.device_name() == "cpu"
    if devices < 1 or (not on_cpu and devices > accelerator.device_count()):
        most = "any number above 0" if on_cpu else f"1 to {accelerator.device_count()}"
        raise UserError(f"{setting}: this machine allows {most}")


def check_accelerator(name: str, ds: DeepSpeedConfig) -> None:
    """Check that devices of this kind, by DeepSpeed's name, can compute in the precision of the configuration.

    Raises:
        UserError: the precision is fp16 and the devices are CPUs.
    """
    if name == "cpu" and precision(ds) == "fp16":
        raise UserError(
            "torch_autocast.dtype = 'float16': fp16 needs CUDA, and there is none here; "
            "take a ..._bf16 or ..._fp32 configuration, for example --set train.ds_config=zero0_bf16"
        )


def command_of(site: Site, mode: str, folder: Path, logs: Path, options: Sequence[str] = ()) -> Command:
    """The command that starts `python -m lartpc_ds.training.worker MODE FOLDER --logs LOGS` on every rank."""
    worker = (mode, str(folder), "--logs", str(logs), "--job", site.job, *options)
    return _local(site, worker) if site.launcher is None else _on_hosts(site, site.launcher, logs, worker)


def write_hostfile(site: Site, logs: Path) -> None:
    """Write the hostfile that `command_of` names, with the hosts that filters have left."""
    # a host with device 2 has at least three slots; --include says which of them are used
    whole = [type(host)(host.name, tuple(range(max(host.devices) + 1))) for host in site.hosts]
    _hostfile(logs).write_text(render(whole, ["the hosts of this run, after --include and --exclude"]))


def _hostfile(logs: Path) -> Path:
    return logs / "hostfile"


def _local(site: Site, worker: Sequence[str]) -> Command:
    accelerator = get_accelerator()
    # ranks must not see a device that this process, which has checked everything, does not see
    variables: dict[str, str | None] = {"DS_ACCELERATOR": accelerator.device_name()}
    if accelerator.device_name() == "cpu":
        devices = [str(rank) for rank in range(site.world_size)]
        variables["CUDA_VISIBLE_DEVICES"] = None
    else:
        # the launcher would count from the first device of the machine, and take devices of other jobs
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(accelerator.device_count())))
        names = visible.split(",")
        devices = [names[device] for device in site.hosts[0].devices]
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    world = base64.urlsafe_b64encode(json.dumps({"localhost": devices}).encode()).decode()
    arguments = [sys.executable, "-u", "-m", "lartpc_ds.jobs.supervise.bare", "deepspeed.launcher.launch"]
    arguments += ["--world_info", world, "--master_port", str(_free_port()), "--no_local_rank", "--module", _WORKER]
    return Command((*arguments, *worker), variables)


def _on_hosts(site: Site, launcher: str, logs: Path, worker: Sequence[str]) -> Command:
    """The command over ssh or a scheduler; ranks read the variables of this environment from `control.json`."""
    if launcher == "pdsh":
        _check_words([sys.executable, os.getcwd()], _BARE)
        _check_words(worker, _QUOTED)
    arguments = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(_hostfile(logs))]
    arguments += ["--launcher", launcher, "--force_multi", "--no_ssh_check", "--no_local_rank"]
    arguments += ["--master_addr", site.master_addr, "--master_port", str(site.master_port)]
    variables: dict[str, str | None] = {}
    if site.chooses_devices:
        chosen = (f"{host.name}:{','.join(map(str, host.devices))}" for host in site.hosts)
        arguments += ["--include", "@".join(chosen)]
    if launcher == "openmpi":
        # ranks that are bound to one core each could not use their threads
        arguments.append("--launcher_args=--bind-to none --map-by slot")
    if launcher == "slurm":
        names = ",".join(host.name for host in site.hosts)
        arguments.append(
            f"--launcher_args=--nodes={len(site.hosts)} --ntasks-per-node={site.hosts[0].slots} --nodelist={names} "
            "--distribution=block --cpu-bind=none --kill-on-bad-exit=0"
        )
        # since Slurm 22.05 srun does not take this from sbatch
        if "SLURM_CPUS_PER_TASK" in os.environ and "SRUN_CPUS_PER_TASK" not in os.environ:
            variables["SRUN_CPUS_PER_TASK"] = os.environ["SLURM_CPUS_PER_TASK"]
        return Command((*arguments, str(Path(__file__).with_name("rank.py")), *worker), variables)
    return Command((*arguments, "--module", _WORKER, *worker), variables)


def _check_words(words: Sequence[str], safe: re.Pattern[str]) -> None:
    """Check words that DeepSpeed gives to a shell on each host; it quotes only spaces in the arguments of the worker.

    Raises:
        UserError: the shell would read one of them as something else.
    """
    for word in words:
        if not safe.fullmatch(word):
            blanks = "spaces and " if safe is _QUOTED else ""
            raise UserError(
                f"{word!r}: over pdsh this path may have letters, digits, {blanks}@ + = : , . / _ - only; choose "
                "another --run-dir, current folder or place of the environment"
            )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
