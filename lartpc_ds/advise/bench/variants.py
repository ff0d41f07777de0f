"""One variant of a benchmark, in a process of its own: `python -m lartpc_ds.advise.bench.variants ours|plain RUN_DIR`.

`ours` is the production path, from the run folder to the metrics lines. `plain` is what a physicist would write by hand
for the same network, events, precision and optimizer, without this project's engine. Both read the same run folder.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from lartpc_ds.config.run import MemoryConfig
from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.costs.memory import PeakMemory
from lartpc_ds.data.dataset import EventDataset
from lartpc_ds.exact.apply import apply
from lartpc_ds.exact.grid.tiles import Alone, Tiles
from lartpc_ds.layout import Layout
from lartpc_ds.training import session
from lartpc_ds.training.prepare import make_model, plan_of, strips_of
from lartpc_ds.training.sources import preprocessing, reopen_source

__all__ = ["main"]


def ours(folder: RunFolder) -> list[dict[str, Any]]:
    """Train as `lartpc-ds train` does, without the launcher; the metrics lines of the steps."""
    session.train(folder, resume=False, stop_requested=lambda: False)
    return [line for line in folder.metrics() if "loss" in line]


def plain(folder: RunFolder) -> list[dict[str, Any]]:
    """The hand-written loop; with the run's levers on activations, if it has any, on the same model."""
    run, ds = session.open_run(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    memory = PeakMemory(device)
    model = make_model(run.config, run.job.planes, len(run.job.classes)).to(device).train()
    if run.config.memory != MemoryConfig():
        image = (run.job.planes, *preprocessing(run.config, run.job.image_shape).shape)
        tiles = Tiles(1, 1, Alone(), Alone(), Alone())
        plan = plan_of(run.config, Layout(), model, image)
        strips = strips_of(run.config, Layout(), model, image)
        apply(model, run.config.memory, plan, tiles, strips)
    params = {key: ds["optimizer"]["params"][key] for key in ("lr", "betas", "eps", "weight_decay")}
    optimizer = torch.optim.AdamW(model.parameters(), **params)
    positions = run.index.positions("train")
    source = reopen_source(run.config, run.index, run.job.image_shape, run.job.task)
    dataset = EventDataset(source, positions)
    loader = DataLoader(dataset, batch_size=run.config.data.batch, shuffle=True, drop_last=True)
    autocast = ds["torch_autocast"]
    lines: list[dict[str, Any]] = []
    started = time.perf_counter()
    while len(lines) < run.job.max_steps:
        for images, labels, _ in loader:
            images = images.to(device).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, getattr(torch, autocast["dtype"]), enabled=autocast["enabled"]):
                scores = model(images)
            loss = nn.functional.cross_entropy(scores.float(), labels.to(device))
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), ds["gradient_clipping"])
            optimizer.step()
            optimizer.zero_grad()
            loss_value, now = loss.item(), time.perf_counter()
            lines.append({"loss": loss_value, "step_seconds": now - started, "peak_bytes": memory.peak_bytes()})
            started = now
            if len(lines) == run.job.max_steps:
                break
    return lines


def main() -> None:
    """Run one variant and print its lines as one JSON list."""
    name, path = sys.argv[1], Path(sys.argv[2])
    lines = {"ours": ours, "plain": plain}[name](RunFolder(path))
    print(json.dumps(lines))


if __name__ == "__main__":
    main()
