"""`lartpc-ds plan`: which layout, levers and ZeRO stage to take for so many devices of so much memory.

It answers on a login node or a laptop: no device, and no event files where `data.detector` is named, unless the run
computes only what is lit and `--lit-share` does not say how much that is. Rejected as the default machine: this one,
because a plan is made where one waits, not where one trains.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from lartpc_ds.advise.search.lit_events import with_lit_events
from lartpc_ds.advise.search.plan_files import check_free, write_plan
from lartpc_ds.advise.search.plan_report import print_report, tree_of
from lartpc_ds.advise.search.search import BUDGET_SECONDS, CostOf, search
from lartpc_ds.advise.search.sizes import gib, parse_bytes
from lartpc_ds.config import recipes
from lartpc_ds.config.ds_config import AskedConfig
from lartpc_ds.config.run import RunConfig
from lartpc_ds.costs.hardware import Hardware, load
from lartpc_ds.costs.problem import Problem
from lartpc_ds.costs.rank_cost import Costs
from lartpc_ds.errors import UserError
from lartpc_ds.training.prepare import absolute_paths, make_model
from lartpc_ds.training.sources import network_input

__all__ = ["DEFAULT_HARDWARE", "memory_of", "plan", "problem_of"]

DEFAULT_HARDWARE = "a100-nvlink"


def plan(
    run: str,
    console: Console,
    *,
    devices: int,
    memory: str | None = None,
    per_node: int | None = None,
    hardware: str | None = None,
    global_batch: int | None = None,
    lit_share: str | None = None,
    overrides: Sequence[str] = (),
    write: Path | None = None,
    as_json: bool = False,
    cost: CostOf | None = None,
    budget_seconds: float = BUDGET_SECONDS,
) -> int:
    """Run the whole command; returns its exit code: 0, also where nothing fits, which is an answer.

    Args:
        run: the RUN to plan.
        console: for the tables.
        devices: how many the whole job has.
        memory: of one device, as in 40GiB; None: the machine's.
        per_node: how many devices a machine has; None: as the hardware file says.
        hardware: a file or a preset; None: `DEFAULT_HARDWARE`.
        global_batch: events of an optimizer step, exactly; None: any number.
        lit_share: the shares of patches that charge lights, as `parse_shares` reads them; None: as the events say.
        overrides: the `--set`s.
        write: the folder to write the chosen configurations to; None: write nothing.
        as_json: print one line of JSON instead of tables.
        cost: stands for tracing the network.
        budget_seconds: what tracing may take, about.

    Raises:
        UserError: the run, the machine or a file to write is at fault.
    """
    config, ds = recipes.load(run, overrides)
    machine = load(hardware or DEFAULT_HARDWARE)
    ranks_per_node = _per_node(devices, per_node or machine.devices_per_node)
    memory_bytes = memory_of(machine, memory, min(ranks_per_node, devices))
    if write is not None:
        check_free(run, write)
    progress = Console(stderr=True)
    problem = with_lit_events(problem_of(absolute_paths(config, Path.cwd()), ds), lit_share, progress)
    with progress.status("looking at the network") as status:
        found = search(
            problem,
            machine,
            devices,
            memory_bytes,
            ranks_per_node,
            cost=cost or Costs(),
            global_batch=global_batch,
            budget_seconds=budget_seconds,
            say=status.update,
        )
    if not as_json:
        print_report(console, found, machine, problem, devices, assumed=hardware is None)
    if write is not None:
        if found.recommended is None:
            raise UserError("--write: nothing fits, so there is nothing to write")
        command = write_plan(run, overrides, config, ds, found.recommended.candidate, ranks_per_node, write)
        (progress if as_json else console).print(command, markup=False, highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps(tree_of(found, machine, problem, devices)))
    return 0


def problem_of(config: RunConfig, ds: AskedConfig) -> Problem:
    """The problem that a run poses to the planner.

    Raises:
        UserError: the images must say their size and cannot, or there is no such network.
    """
    image, classes = network_input(config)
    return Problem(config, ds, image, partial(make_model, config, image[0], classes))


def memory_of(machine: Hardware, told: str | None, ranks: int) -> int:
    """The bytes of one device: as told, or the machine's; `ranks` of a machine without devices share its memory.

    Raises:
        UserError: `told` is no size, or one of which nothing is left.
    """
    if told is None:
        return machine.memory_bytes // (ranks if machine.device == "cpu" else 1)
    size = parse_bytes(told, "--memory")
    if size <= machine.reserved_bytes:
        raise UserError(
            f"--memory {told!r}: must be more than the {gib(machine.reserved_bytes)} GiB of a device that the driver "
            f"and libraries of {machine.name} take"
        )
    return size


def _per_node(devices: int, ranks_per_node: int) -> int:
    if devices > ranks_per_node and devices % ranks_per_node:
        raise UserError(
            f"--devices {devices}: is no multiple of the {ranks_per_node} devices of a machine; take "
            f"{devices // ranks_per_node * ranks_per_node}, or say --per-node"
        )
    return ranks_per_node
