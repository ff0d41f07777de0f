"""The overview of a run that `train` prints before anything runs: what is trained, on what, and how long."""

import numpy as np
from rich.console import Console
from rich.table import Table

from lartpc_ds.config.ds_config import CompletedConfig, compiles_adam, offload_device, precision
from lartpc_ds.config.run import RunConfig
from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.data.event_index import EventIndex
from lartpc_ds.jobs.resolve import ResolvedRun
from lartpc_ds.jobs.site import Site, crossings, placement_advice
from lartpc_ds.jobs.surveyed import print_findings
from lartpc_ds.training.prepare import Job, job_lit, job_strips, stages_of, tile_shares
from lartpc_ds.training.sources import preprocessing

__all__ = ["print_overview"]

_AXES = ("planes", "wires", "ticks")
_OWN_AXES = ("channels", "rows", "columns")
"""The axes of a user's own images."""


def print_overview(console: Console, folder: RunFolder, resolved: ResolvedRun, site: Site) -> None:
    """Print the findings about the events, and one small table about the run."""
    print_findings(console, resolved.findings)
    table = Table(show_header=False, box=None, pad_edge=False, title="plan", title_justify="left", title_style="bold")
    for name, text in _rows(folder, resolved, site):
        table.add_row(name, text, style=None)
    console.print(table)


def _rows(folder: RunFolder, resolved: ResolvedRun, site: Site) -> list[tuple[str, str]]:
    config, ds, job, index = resolved.config, resolved.ds, resolved.job, resolved.index
    rows, cols = preprocessing(config, job.image_shape).shape
    layout = job.layout
    zero = f"ZeRO-{ds['zero_optimization']['stage']}"
    optimizer = ds["optimizer"]
    unused = int(np.sum((index.split == "") & (index.label < 0)))
    planes, wires, ticks = _AXES if config.data.target is None else _OWN_AXES
    events = config.data.batch * config.train.accumulate * layout.data
    scheduler = ds.get("scheduler", {"type": "constant"})["type"]
    return [
        ("run folder", str(folder.path)),
        ("events", f"{len(index)} {_where(config, index)}" + _unused(unused)),
        *[(f"  {split}", _counts(index, split)) for split in ("train", "validation", "test")],
        ("image", f"{job.planes} {planes} x {rows} {wires} x {cols} {ticks}"),
        ("model", f"{config.model.target or config.model.name}, {job.parameters / 1e6:.2f} M parameters"),
        ("layout", f"{layout.world_size} rank(s): {layout}"),
        *_hosts(job, site),
        *_tiles(config, job, precision(ds)),
        *_strips(config, job),
        *_lit(config, job),
        *_kept(config),
        *_stages(config, ds, job),
        ("DeepSpeed", f"{config.train.ds_config}: {zero}, {precision(ds)}, optimizer offload {offload_device(ds)}"),
        *_compilation(ds),
        (
            "global batch",
            f"{events} events = batch {config.data.batch} x accumulate {config.train.accumulate} x data {layout.data}",
        ),
        ("optimizer", f"{optimizer['type']}, learning rate {optimizer['params']['lr']:.3g}, {scheduler}"),
        ("steps", str(job.max_steps)),
    ]


def _hosts(job: Job, site: Site) -> list[tuple[str, str]]:
    """The hosts, and which halos of an event cross the network between them."""
    if site.launcher is None:
        return []
    lines = [("  hosts", f"{', '.join(f'{host.name} {host.slots}' for host in site.hosts)}, by {site.launcher}")]
    for (first, second), number in crossings(job.layout, site.rank_hosts).items():
        lines.append(("", f"halos of {number} pair(s) of neighbouring tiles cross the network, {first} - {second}"))
    if len(lines) > 1 and (advice := placement_advice(job.layout, site)):
        lines.append(("", advice))
    return lines


def _tiles(config: RunConfig, job: Job, dtype: str) -> list[tuple[str, str]]:
    """The part of an event that each tile of a group owns, and what it sends and computes."""
    if job.layout.tiles == 1:
        return []
    events = config.data.batch * config.train.accumulate
    _, wires, ticks = _AXES if config.data.target is None else _OWN_AXES
    return [
        (
            f"  tile {number}",
            f"{wires} {share.rows[0]}-{share.rows[1]}, {ticks} {share.cols[0]}-{share.cols[1]}, {share.work:.1%} of "
            f"the work, halo {2 * events * share.halo_bytes / 2**20:.2f} MiB a step",
        )
        for number, share in enumerate(tile_shares(config, job, dtype))
    ]


def _kept(config: RunConfig) -> list[tuple[str, str]]:
    """The activations of a step that are not kept."""
    levers = []
    if config.memory.recompute == "block":
        levers.append("blocks keep their inputs and run once more in the backward pass")
    if config.memory.recompute == "auto":
        levers.append("blocks run once more in the backward pass where their maps would not fit in memory")
    if config.memory.lean_norm:
        levers.append("norms keep one map of two")
    return [("  activations", "; ".join(levers))] if levers else []


def _strips(config: RunConfig, job: Job) -> list[tuple[str, str]]:
    """The part of the network that runs in strips, and what that costs."""
    plan = job_strips(config, job)
    if plan is None:
        return []
    largest = max(stop - start for start, stop in (strip.rows for strip in plan.strips))
    return [
        (
            "  streaming",
            f"{plan.front[0]} to {plan.front[-1]} in {len(plan.strips)} strips of at most {largest} of {plan.rows} "
            f"rows (overlap {plan.overlap:.1%}); whole maps from {plan.until}",
        )
    ]


def _lit(config: RunConfig, job: Job) -> list[tuple[str, str]]:
    """The part of the network that runs on distinct patches."""
    plan = job_lit(config, job)
    if plan is None:
        return []
    last = plan.blocks[plan.covered - 1].name
    until = {"auto": "whole maps from the block that is cheapest for each micro-batch", "never": "never on whole maps"}
    return [
        (
            "  lit",
            f"distinct patches of {plan.rows.patch} x {plan.cols.patch} pixels, in at most {plan.blocks[0].name} to "
            f"{last}; {until.get(plan.until, f'whole maps from {plan.until}')}",
        )
    ]


def _stages(config: RunConfig, ds: CompletedConfig, job: Job) -> list[tuple[str, str]]:
    """The blocks of each pipeline stage, and the time and memory that a model predicts for it."""
    on = " on whole maps" if config.memory.lit_block != 0 else ""
    return [
        (
            f"  stage {number}",
            f"{share.first} to {share.last} ({share.blocks} blocks), about {share.time:.0%} of the time{on}, "
            f"{share.bytes / 2**20:.0f} MiB a rank with the activations of {share.copies} micro-batch(es)",
        )
        for number, share in enumerate(stages_of(config, ds, job))
    ]


def _compilation(ds: CompletedConfig) -> list[tuple[str, str]]:
    note = "the first use on a machine compiles DeepSpeed's CPU Adam, about 2 minutes"
    return [("", note)] if compiles_adam(ds) else []


def _unused(number: int) -> str:
    return f", {number} of no class in data.classes (not used)" if number else ""


def _where(config: RunConfig, index: EventIndex) -> str:
    files = len({who.file for who in index.ids})
    return f"in {files} file(s)" if config.data.target is None else f"of {config.data.target}"


def _counts(index: EventIndex, split: str) -> str:
    labels = index.label[index.positions(split)]
    if len(labels) == 0:
        return "none"
    if (labels < 0).all():  # the pixels have classes, and the events have none
        return str(len(labels))
    counts = np.bincount(labels, minlength=len(index.class_names))
    return f"{len(labels)}: " + ", ".join(f"{name} {n}" for name, n in zip(index.class_names, counts, strict=True))
