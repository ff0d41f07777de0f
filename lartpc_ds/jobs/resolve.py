"""Checks of a whole run, fresh or as it was saved, whose result is all that its ranks need.

A command that starts ranks calls this first: `prepare_run` for a new run folder, `reopen_run` for one to go on with.
"""

from dataclasses import dataclass, replace

from rich.console import Console

from lartpc_ds.config import ds_config
from lartpc_ds.config.ds_config import AskedConfig, CompletedConfig
from lartpc_ds.config.run import RunConfig
from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.data.event_index import EventIndex, write_index
from lartpc_ds.data.integrity import write_atomically
from lartpc_ds.errors import UserError
from lartpc_ds.jobs.differences import differences, shortly
from lartpc_ds.jobs.embedded import simulated_events
from lartpc_ds.jobs.surveyed import surveyed_index
from lartpc_ds.layout import Layout
from lartpc_ds.training.prepare import Job, lit_before, make_job, with_files
from lartpc_ds.training.session import open_run
from lartpc_ds.training.sources import index_events, open_source

__all__ = ["ResolvedRun", "prepare_run", "reopen_run", "resolve"]

# a resumed run may be longer, and may evaluate and save more often; any other change would make it another run
_MAY_CHANGE = {
    *("train.max_steps", "train.epochs", "train.eval_every", "train.checkpoint_every", "data.workers"),
    "max_steps",  # the key of the job, which follows from the first two
}
# these sections may change, too: where and how a run runs, and the schedule, which is as long as the run
_SECTIONS_MAY_CHANGE = ("batch.", "launch.", "ds.scheduler.")


@dataclass(frozen=True, slots=True)
class ResolvedRun:
    """A run that has passed every check."""

    config: RunConfig
    ds: CompletedConfig
    job: Job
    index: EventIndex
    findings: tuple[str, ...] = ()
    """What was found when every event was looked at, in sentences."""


def prepare_run(
    config: RunConfig,
    ds: AskedConfig,
    layout: Layout,
    folder: RunFolder,
    console: Console,
    *,
    look: bool = False,
) -> ResolvedRun:
    """Check a fresh run and write what its ranks read into `folder`, which must be claimed.

    With `look` every event is looked at first, as is due for a run that is more than a measurement of speed. In a run
    that computes only what is lit this happens anyway, because its events are dealt out by what they cost.
    """
    resolved = resolve(config, ds, layout, folder, console, look=look)
    write_index(resolved.index, folder.events_file)
    if resolved.findings:
        write_atomically(folder.findings_file, "".join(f"{line}\n" for line in resolved.findings))
    folder.write(resolved.config, resolved.ds, resolved.job.as_dict())
    return resolved


def resolve(
    config: RunConfig, ds: AskedConfig, layout: Layout, folder: RunFolder, console: Console, *, look: bool
) -> ResolvedRun:
    """Check a fresh run, as `prepare_run` does; into `folder` goes nothing but the events that it simulates."""
    if not config.data.files and config.data.target is None:
        config = simulated_events(config, folder.simulated_file, console)
    source = open_source(config)
    lit = lit_before(config, ds, layout, source)
    looked = look or lit is not None
    index, findings = surveyed_index(config, ds, source, console, lit) if looked else (index_events(config, source), ())
    job = make_job(config, ds, layout, source, index, lit)
    return ResolvedRun(config, ds_config.complete(ds, config, layout, job.max_steps), job, index, findings)


def reopen_run(folder: RunFolder, config: RunConfig, ds: AskedConfig, layout: Layout) -> ResolvedRun:
    """The run as it was saved, with the changes that a resumed run may have.

    Raises:
        UserError: the configurations are those of another run than the one in the folder.
    """
    run, saved_ds = open_run(folder)
    if not config.data.files and config.data.target is None:  # the simulated events lie in the folder
        config = with_files(config, run.config.data.files)
    job = make_job(config, ds, layout, open_source(config), run.index)
    if layout == run.job.layout:  # their balance may have changed since, which matters to no number
        job = replace(job, stages=run.job.stages)
    fresh_ds = ds_config.complete(ds, config, layout, job.max_steps)
    changed = [
        f"{key}: was {shortly(old)}, is {shortly(new)}"
        for key, old, new in [
            *differences(run.config.model_dump(mode="json"), config.model_dump(mode="json")),
            *differences(run.job.as_dict(), job.as_dict()),
            *differences(saved_ds, fresh_ds, "ds."),
        ]
        if key not in _MAY_CHANGE and not key.startswith(_SECTIONS_MAY_CHANGE)
    ]
    if changed:
        raise UserError(
            "\n  ".join([f"--resume: {folder.path} holds another run:", *changed])
            + "\nGive the options that the run was started with, or choose another --run-dir to start anew"
        )
    findings = folder.findings_file.read_text().splitlines() if folder.findings_file.exists() else []
    return ResolvedRun(config, fresh_ds, job, run.index, tuple(findings))
