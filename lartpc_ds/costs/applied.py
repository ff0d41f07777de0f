"""A candidate as the pair of configurations that `lartpc-ds train` reads, and the way back.

What a candidate decides is set and nothing else is touched: optimizer, schedule and buckets stay the user's.
"""

import json
from typing import Any

from lartpc_ds.config import ds_config
from lartpc_ds.config.ds_config import AskedConfig, DeepSpeedConfig
from lartpc_ds.config.run import RunConfig
from lartpc_ds.costs.problem import Candidate
from lartpc_ds.layout import Layout

__all__ = ["applied", "as_written", "keys_of", "offloads"]

_OFFLOADED = {"device": "cpu", "pin_memory": False, "ratio": 1.0}
_KEPT_OF_STAGE_3 = ("sub_group_size", "stage3_")
"""Keys of the shipped ZeRO-3 files that a user's file of another stage lacks."""


def applied(config: RunConfig, ds: DeepSpeedConfig, candidate: Candidate) -> tuple[RunConfig, AskedConfig]:
    """Make the configurations that run `candidate`.

    Args:
        config: of the run, as the user wrote it.
        ds: its DeepSpeed JSON, checked.
        candidate: one way to run it.

    Raises:
        UserError: the candidate contradicts itself, such as cuts that do not fit its stages.
    """
    tree = config.model_dump(mode="json")
    for section, values in keys_of(candidate).items():
        tree[section].update(values)
    return RunConfig.parse(tree, "plan"), _with_zero(ds, candidate)


def keys_of(candidate: Candidate) -> dict[str, dict[str, Any]]:
    """The keys of the run TOML that a candidate decides, by section."""
    layout = candidate.layout
    cuts = candidate.cuts if isinstance(candidate.cuts, str) else list(candidate.cuts)
    return {
        "data": {"batch": candidate.batch},
        "layout": {
            "pipe": layout.pipe,
            "data": layout.data,
            "rows": layout.rows,
            "cols": layout.cols,
            "gather_at": candidate.gather_at,
            "cuts": cuts if layout.pipe > 1 else "balanced",
            "overlap": candidate.overlap,
        },
        "memory": candidate.memory.model_dump(mode="json"),
        "train": {"accumulate": candidate.accumulate},
    }


def as_written(config: RunConfig, ds: DeepSpeedConfig, layout: Layout) -> Candidate:
    """The candidate that the user's own configurations describe, on `layout`."""
    return Candidate(
        layout,
        config.data.batch,
        config.train.accumulate,
        ds["zero_optimization"]["stage"],
        offloads(ds),
        config.memory,
        config.layout.gather_at,
        config.layout.cuts,
        config.layout.overlap,
    )


def offloads(ds: DeepSpeedConfig) -> bool:
    """Whether the states of the optimizer are in the memory of the host."""
    return ds_config.offload_device(ds) != "none"


def _with_zero(ds: DeepSpeedConfig, candidate: Candidate) -> AskedConfig:
    tree: AskedConfig = json.loads(json.dumps(ds))
    zero = tree["zero_optimization"]
    zero["stage"] = candidate.zero
    if candidate.zero == 3:
        shipped = ds_config.read(f"zero3_{ds_config.precision(ds)}")["zero_optimization"]
        zero.update(
            {key: value for key, value in shipped.items() if key.startswith(_KEPT_OF_STAGE_3) and key not in zero}
        )
    else:
        zero.pop("offload_param", None)
    if candidate.offload == offloads(ds):
        return tree
    if candidate.offload:
        zero["offload_optimizer"] = dict(_OFFLOADED)
    else:
        zero.pop("offload_optimizer")
        zero.pop("offload_param", None)
    # DeepSpeed's Adam on the host's cores; torch's on the device, as in the shipped files
    tree["zero_force_ds_cpu_optimizer"] = candidate.offload
    if tree["optimizer"]["type"] in ("Adam", "AdamW"):
        tree["optimizer"]["params"]["torch_adam"] = not candidate.offload
    return tree
