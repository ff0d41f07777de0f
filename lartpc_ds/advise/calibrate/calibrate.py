"""`lartpc-ds calibrate`: measure this machine, as the ranks of a job will find it, and write a hardware file.

Every figure comes from processes as a job has them: as many at once as share the machine, memory with the allocator
pinned, the engine's own work from a tiny run through the production path. Between machines one all-reduce is timed,
that of the preflight; without hosts a 10 Gbit/s network is assumed, and the file says so.
"""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import torch
from deepspeed.accelerator import get_accelerator
from rich.console import Console

from lartpc_ds.advise.calibrate.calibration_rank import LARGE_BYTES
from lartpc_ds.advise.calibrate.calibration_report import print_hardware
from lartpc_ds.advise.short_runs.short_run import prepared, run_ranks
from lartpc_ds.config import recipes
from lartpc_ds.costs.calibration import ETHERNET, links_of, links_of_all_reduce, rates_of
from lartpc_ds.costs.hardware import Hardware, Links, Rates, save
from lartpc_ds.costs.kernels import SIZES, Sizes
from lartpc_ds.errors import UserError
from lartpc_ds.exact.kernels.host_memory import container_limit_bytes
from lartpc_ds.jobs.hosts.reach import reach_for
from lartpc_ds.jobs.preflight.preflight import Need, preflight
from lartpc_ds.jobs.preflight.preflight_report import explain
from lartpc_ds.jobs.site import forwarded, of_hostfile
from lartpc_ds.jobs.supervise.command import check_count
from lartpc_ds.jobs.together import KEPT, PINNED, run_together
from lartpc_ds.layout import Layout

__all__ = ["calibrate"]

_RANK = "lartpc_ds.advise.calibrate.calibration_rank"
_STEPS = 8
_TINY_RUN = (
    "data.simulate.events=16",
    "data.split={train=1.0,validation=0.0}",
    "data.downsample=8",
    "data.batch=1",
    "model.width=4",
    "model.stem_stride=[2,8]",
    'train.ds_config="zero2_bf16"',
    "train.epochs=100",
    f"train.max_steps={_STEPS}",
)
"""Changes of the quickstart: images of 30 x 256 and 45 thousand weights leave little but the engine.

What its time depends on is said here, so that a change of the recipe does not change what a calibration measures."""
_QUIET_LOAD = 0.5
"""Processes per core over the last minute: OpenMP's threads wait for each other, so one stranger halves every rate."""


def calibrate(
    out: Path,
    console: Console,
    *,
    devices: int | None = None,
    hostfile: Path | None = None,
    launcher: str | None = None,
    sizes: Sizes | None = None,
) -> Hardware:
    """Measure this machine and write what was found.

    Args:
        out: the hardware file to write.
        console: shows the progress and the figures.
        devices: how many ranks share this machine; None: every GPU, or two ranks of a CPU.
        hostfile: names hosts, between which messages are measured, too.
        launcher: how the hosts are reached; None: by whichever launcher is found.
        sizes: of the measured tensors; None: those that a figure needs.

    Raises:
        UserError: the file exists, its folder does not, this machine has fewer devices, or a host cannot take part.
    """
    _check_target(out)
    device = get_accelerator().device_name()
    if device not in SIZES:
        raise UserError(f"calibrate: this machine has {device}; known are {', '.join(SIZES)}: copy and edit a preset")
    devices = _default_devices(device) if devices is None else devices
    check_count(devices, f"--devices {devices}")
    across, told = _across(hostfile, launcher, console)
    load = os.getloadavg()[0]
    if load > _QUIET_LOAD * len(os.sched_getaffinity(0)):
        told = f"{told}; other work was running (load {load:.1f}): calibrate again on a quiet machine"
        console.print("other work is running here: the figures will be those of a busy machine", soft_wrap=True)
    sizes = sizes or SIZES[device]
    shared = sorted({1, devices}) if device == "cpu" else [1]
    measured = [device, "--sizes", json.dumps(asdict(sizes))]
    rates, peak_bytes, reserved_bytes = _rates(shared, measured, console)
    within = across if devices == 1 else _within(devices, measured, console)
    if devices == 1:
        told = f"{told}; one device alone: `within` is taken from `across`"
    hardware = Hardware(
        name=platform.node(),
        source=f"lartpc-ds calibrate, {date.today()}, {_device_name(device)}; {told}",
        device="cpu" if device == "cpu" else "cuda",
        devices_per_node=devices,
        memory_bytes=_memory_bytes(device),
        process_bytes=peak_bytes,
        reserved_bytes=reserved_bytes,
        overlaps=device != "cpu",
        rates=rates,
        within=within,
        across=across,
    )
    save(hardware, out)
    print_hardware(console, hardware)
    console.print(str(out), markup=False, highlight=False, soft_wrap=True)
    return hardware


def _check_target(out: Path) -> None:
    if out.exists():
        raise UserError(f"--out {out}: exists; choose another --out")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: no such folder {out.parent}; make it first")


def _default_devices(device: str) -> int:
    return min(2, len(os.sched_getaffinity(0))) if device == "cpu" else int(get_accelerator().device_count())


def _rates(shared: list[int], measured: list[str], console: Console) -> tuple[tuple[Rates, ...], int, int]:
    """The rates for each number of ranks, what a process has beside tensors, and what a device keeps for itself."""
    with console.status("what convolutions need for themselves", spinner="line"):
        scratch_shares = run_together(_RANK, ["scratch", *measured], 1, PINNED)[0]
    rates, peak_bytes, reserved_bytes = [], 0, 0
    for ranks in shared:
        with console.status(f"kernels, {ranks} rank(s) at once", spinner="line"):
            kernels = run_together(_RANK, ["kernels", *measured], ranks, KEPT)
        with console.status(f"the engine, {ranks} rank(s)", spinner="line"), TemporaryDirectory() as scratch:
            config, ds = recipes.load("quickstart", _TINY_RUN)
            folder = prepared(config, ds, Layout(data=ranks), Path(scratch) / "run", Console(quiet=True))
            slowest = _slowest(run_ranks(folder, "engine", ranks, {}))
            if ranks == shared[-1]:  # more ranks have more buffers of messages
                peak_bytes = int(_slowest(run_ranks(folder, "engine", ranks, PINNED))["peak_bytes"])
        rates.append(rates_of(ranks, kernels, scratch_shares, slowest))
        reserved_bytes = kernels[0].get("reserved_bytes", 0)
    return tuple(rates), peak_bytes, reserved_bytes


def _slowest(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The largest value of each figure that any rank found."""
    return {name: max(one[name] for one in found) for name in found[0]}


def _within(devices: int, measured: list[str], console: Console) -> Links:
    with console.status(f"messages between {devices} ranks", spinner="line"):
        seconds = run_together(_RANK, ["links", *measured], devices, {})[0]
    return links_of(seconds, devices, LARGE_BYTES)


def _across(hostfile: Path | None, launcher: str | None, console: Console) -> tuple[Links, str]:
    """The links between machines, and where they are from."""
    if hostfile is None:
        return ETHERNET, "`across` is NOT measured: a 10 Gbit/s network is assumed, edit it or give --hostfile"
    site = of_hostfile(hostfile, "", "", launcher)
    if len(site.hosts) < 2 or site.launcher is None:
        raise UserError(f"--hostfile {hostfile}: has one host; name two or more, to measure what is between them")
    with console.status(f"an all-reduce over {len(site.hosts)} hosts", spinner="line"):
        findings = preflight(site.hosts, reach_for(site.launcher), Need(environment=forwarded(os.environ)))
    if not findings.ok:
        raise UserError("\n".join([f"--hostfile {hostfile}:", *explain(findings)]))
    speeds = [host.speed for host in findings.hosts if host.speed is not None]
    latency = max(speed["latency_seconds"] for speed in speeds)
    slowest = min(speed["bytes_per_second"] for speed in speeds)
    told = f"`across` from an all-reduce over {len(site.hosts)} hosts, one process each"
    return links_of_all_reduce(latency, slowest, len(site.hosts)), told


def _device_name(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()}, {len(os.sched_getaffinity(0))} cores"
    return f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def _memory_bytes(device: str) -> int:
    if device != "cpu":
        return int(get_accelerator().total_memory(0))
    total = int(psutil.virtual_memory().total)
    return min(total, container_limit_bytes() or total)
