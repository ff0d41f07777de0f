"""What one rank does with a run folder: read it, set everything up, train or evaluate, and write the results.

The order of the code is the order of events: join the job, build the model, wrap it in the engine, restore a
checkpoint, loop, report.
"""

import json
import platform
import tomllib
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import lartpc_ds
from lartpc_ds.config.ds_config import CompletedConfig
from lartpc_ds.config.run import RunConfig
from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.costs.memory import PeakMemory
from lartpc_ds.data.dataset import EventDataset
from lartpc_ds.data.event_index import read_index
from lartpc_ds.data.integrity import write_atomically
from lartpc_ds.data.source import Source
from lartpc_ds.data.staging import stage
from lartpc_ds.exact.apply import apply
from lartpc_ds.exact.grid.groups import Groups
from lartpc_ds.exact.grid.tiles import Clock, Tiles
from lartpc_ds.exact.memory.light import RunBlocks
from lartpc_ds.exact.spatialize import TilePlan
from lartpc_ds.training import checkpoint, engine
from lartpc_ds.training.checkpoint_files import latest
from lartpc_ds.training.evaluation import EvaluationRequest, evaluate_dataset, write_predictions
from lartpc_ds.training.loop import Stopped, fit
from lartpc_ds.training.prepare import Job, Run, lit_of, make_loss, make_model, plan_of, strips_of, with_files
from lartpc_ds.training.sources import augmentation, preprocessing, reopen_source
from lartpc_ds.training.stage_engine import StageEngine
from lartpc_ds.training.weights import load_weights

__all__ = ["evaluate", "open_run", "train"]


def open_run(folder: RunFolder) -> tuple[Run, CompletedConfig]:
    """The run as the command line has written it, and its DeepSpeed JSON.

    Nothing is checked here: ranks trust what the command line has verified.
    """
    config = RunConfig.parse(tomllib.loads(folder.config_file.read_text()), str(folder.config_file))
    job = Job.from_dict(json.loads(folder.job_file.read_text()))
    index = read_index(folder.events_file, job.classes)
    facts = {"job": job.as_dict(), "config": config.model_dump(mode="json"), "versions": versions()}
    return Run(folder, config, job, index, folder.record().run, facts), json.loads(folder.ds_config_file.read_text())


def versions() -> dict[str, str]:
    """The versions of all software that shapes a number."""
    packages = {name: metadata.version(name) for name in ("torch", "deepspeed", "numpy", "h5py")}
    return {"lartpc_ds": lartpc_ds.__version__, "python": platform.python_version(), **packages}


def train(folder: RunFolder, *, resume: bool, stop_requested: Callable[[], bool]) -> bool:
    """Train to the end or to a stop request; return whether the training was stopped early."""
    run, ds = open_run(folder)
    groups, device = engine.start(run.job.layout, run.config.launch.timeout_minutes)
    memory = PeakMemory(device)  # counts from here: after imports, before the model
    torch.manual_seed(run.config.train.seed)
    model = make_model(run.config, run.job.planes, len(run.job.classes))
    if run.config.model.weights is not None:
        load_weights(model, Path(run.config.model.weights), "model.weights")
    for monitor in (ds.get("tensorboard"), ds.get("csv_monitor")):
        if monitor is not None:  # a relative path means the run folder, wherever the launcher was started
            monitor["output_path"] = str(folder.path / monitor.get("output_path", ""))
    plan, tiles, run_blocks = _on_tiles(model, run, groups)
    # random numbers that no key decides are still the same on all tiles of an event
    torch.manual_seed(run.config.train.seed + groups.data_rank)
    loss = make_loss(run.config, run.job, plan, run.index, tiles)
    if run.job.stages:
        trainer: engine.Engine = StageEngine(model, run.job.stages, ds, groups, device, loss, tiles, run_blocks)
        del model  # it holds the blocks of other stages
    else:
        trainer = engine.Engine(model.to(device), ds, groups, device, loss, tiles)
    start = latest(folder.checkpoints) if resume else None
    progress = checkpoint.Progress() if start is None else checkpoint.load(trainer, start)
    source = reopen_source(_staged(run.config), run.index, run.job.image_shape, run.job.task)
    held_out = run.index.positions("validation")
    try:
        predictions = fit(
            trainer,
            run,
            _dataset(run, source, run.index.positions("train"), plan, groups),
            _dataset(run, source, held_out, plan, groups) if len(held_out) else None,
            progress,
            memory,
            stop_requested,
        )
    except Stopped:
        engine.finish()
        return True
    if groups.rank == 0:
        if predictions is not None:
            write_predictions(
                folder.free_name("predictions", ".csv"), run.index, held_out, predictions, run.job.classes
            )
        write_atomically(folder.done_file, f"{run.job.max_steps} steps\n")
    engine.finish()
    return False


def _staged(config: RunConfig) -> RunConfig:
    """The configuration with its event files on this host's own disk, if it asks for that."""
    if config.launch.stage_to is None:
        return config
    return with_files(config, stage(config.data.files, config.launch.stage_to))


def evaluate(folder: RunFolder, request: EvaluationRequest) -> None:
    """Evaluate a checkpoint on the events that `request` names, and write predictions and figures where it says."""
    run, ds = open_run(folder)
    config, job = with_files(run.config, request.files), replace(run.job, layout=request.layout)
    index = read_index(request.events, job.classes)
    run = replace(run, config=config, job=job, index=index)
    groups, device = engine.start(job.layout, run.config.launch.timeout_minutes)
    model = make_model(config, job.planes, len(job.classes))
    load_weights(model, request.checkpoint / "model.pt", "checkpoint")
    plan, tiles, _ = _on_tiles(model.to(device), run, groups)
    forward = engine.inference(model, ds, device)
    positions = np.array(request.positions, np.int64)
    dataset = _dataset(run, reopen_source(config, index, job.image_shape, job.task), positions, plan, groups)
    loss = make_loss(config, job, plan, run.index, tiles)
    figures, predictions = evaluate_dataset(forward, dataset, run, groups, loss, device)
    if groups.rank == 0:
        if predictions is not None:
            write_predictions(request.predictions, index, positions, predictions, job.classes)
        write_atomically(request.evaluation, json.dumps(figures.as_dict(), indent=2, allow_nan=False) + "\n")
    engine.finish()


def _on_tiles(model: nn.Module, run: Run, groups: Groups) -> tuple[TilePlan, Tiles, RunBlocks | None]:
    """Make `model` run on this rank's tile, in strips, or on what is lit; also return what `apply` returns.

    All are planned on the plain model; what is applied first stands innermost.
    """
    config = run.config
    image = (run.job.planes, *preprocessing(config, run.job.image_shape).shape)
    plan = plan_of(config, run.job.layout, model, image)
    strips = strips_of(config, run.job.layout, model, image)
    first = groups.layout.coordinates(groups.rank).pipe == 0  # later stages have whole maps only
    lit = lit_of(config, run.job.layout, model, image, run.job.stages) if first else None
    clock = Clock(config.train.seed)
    tiles = groups.tiles(norm_scope=config.model.norm_scope, overlap=config.layout.overlap, clock=clock)
    return plan, tiles, apply(model, config.memory, plan, tiles, strips, lit)


def _dataset(run: Run, source: Source, positions: NDArray[np.int64], plan: TilePlan, groups: Groups) -> EventDataset:
    """The images of this rank's tile, and of those only what its pipeline stage needs."""
    at = groups.layout.coordinates(groups.rank)
    rows, cols = plan.tile(at.row, at.col)
    # scores may be cut into tiles at other bounds than images are; targets follow the scores
    target_tile = None if plan.output is None else plan.output.tile(at.row, at.col)
    needs = {"images": at.pipe == 0, "targets": at.pipe == groups.layout.pipe - 1}
    lit = run.config.memory.lit_block != 0
    return EventDataset(source, positions, rows, cols, target_tile, augmentation(run.config), **needs, sparse=lit)
