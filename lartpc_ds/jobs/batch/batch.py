"""`lartpc-ds submit`: a job script for Slurm, LSF or PBS that starts, stops and resumes one run.

The scripts are the files in `templates/`, in which `@name@` stands for a value. Rejected: the template syntaxes of
Python, because the shell uses `$`, `%` and `{}` itself, and a template should read like the script. Every value from a
user is one checked word, or is quoted for the shell. A script has only the logic of signals and requeueing, which must
work when `train` has ended; all other decisions are made by `lartpc-ds`.
"""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lartpc_ds.config import recipes
from lartpc_ds.config.batch import BatchConfig
from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.costs.stages import check_zero
from lartpc_ds.errors import UserError
from lartpc_ds.jobs.batch.directives import SYSTEMS, directives

__all__ = ["SubmitRequest", "submit", "write_script"]

_TEMPLATES = Path(__file__).parent / "templates"
_LAUNCHERS = {"slurm": ("slurm", "pdsh", "openmpi"), "lsf": ("pdsh", "openmpi"), "pbs": ("pdsh", "openmpi")}
"""The launchers on each system, the default first; only Slurm has srun."""


@dataclass(frozen=True, slots=True)
class SubmitRequest:
    """The arguments and options of `submit`."""

    run: str
    system: str
    overrides: Sequence[str] = ()
    run_dir: Path | None = None
    out: Path | None = None
    launcher: str | None = None
    now: bool = False


def submit(request: SubmitRequest) -> None:
    """Write the script, and print how to submit it; with `now`, submit it.

    Raises:
        UserError: something cannot work, and nothing was written; or the batch system refuses the script.
    """
    system = SYSTEMS.get(request.system)
    if system is None:
        raise UserError(f"--system {request.system!r}: must be one of {', '.join(SYSTEMS)}")
    if request.now and shutil.which(system.command) is None:
        raise UserError(
            f"--now: no {system.command} on this machine; submit from a login node of the cluster, or leave out --now"
        )
    path = write_script(request)
    quoted = shlex.quote(str(path))
    print(path)
    if not request.now:
        print(f"submit it with: {system.command} {'<' if system.from_stdin else ''}{quoted}")
        return
    with path.open() as script:
        arguments = [system.command] if system.from_stdin else [system.command, str(path)]
        done = subprocess.run(arguments, stdin=script, capture_output=True, text=True)
    print(done.stdout, end="")
    if done.returncode != 0:
        raise UserError(f"{system.command} refused {path}: {done.stderr.strip()}")


def write_script(request: SubmitRequest) -> Path:
    """Check the run as `train` does before it reads events, and write its script; returns the path of the script.

    Raises:
        UserError: the run cannot work on this number of ranks, or a file is in the way.
    """
    config, ds = recipes.load(request.run, request.overrides)
    source = f"batch.nodes x batch.ranks_per_node = {config.batch.nodes} x {config.batch.ranks_per_node}"
    check_zero(config, ds, config.layout.fit(config.batch.ranks, source))
    launchers = _LAUNCHERS[request.system]
    launcher = request.launcher or _default_launcher(request.system, config.batch)
    if launcher is not None and launcher not in launchers:
        raise UserError(f"--launcher {launcher!r}: on {request.system} it must be one of {', '.join(launchers)}")
    stem = recipes.stem_of(request.run)
    run_dir = (request.run_dir or Path("runs") / f"{stem}-{request.system}").absolute()
    _check_folder(run_dir)
    path = (request.out or Path(f"{stem}.{request.system}.sh")).absolute()
    text = _script(request, config.batch, launcher, run_dir, path)
    _write(path, text)
    return path


def _default_launcher(system: str, batch: BatchConfig) -> str | None:
    """The launcher of `system`; None where the job has one host, on which `train` takes the devices that it sees.

    Slurm shows a step its devices, so srun is used on one host as well as on several.
    """
    return None if system != "slurm" and batch.nodes == 1 else _LAUNCHERS[system][0]


def _script(request: SubmitRequest, batch: BatchConfig, launcher: str | None, run_dir: Path, path: Path) -> str:
    run = request.run if request.run in recipes.names() else str(Path(request.run).absolute())
    overrides = [word for text in request.overrides for word in ("--set", text)]
    values = {
        "arguments": shlex.join([run, *overrides]),
        "command": shlex.join([sys.executable, "-m", "lartpc_ds"]),
        "directives": "\n".join(directives(request.system, batch)),
        "folder": shlex.quote(str(Path.cwd())),
        "launcher": "" if launcher is None else f" --launcher {launcher}",
        "name": _job_name(recipes.stem_of(request.run)),
        "prologue": "\n".join(batch.prologue) or ":",
        "run_dir": shlex.quote(str(run_dir)),
        "script": shlex.quote(str(path)),
        "signal_seconds": str(batch.signal_seconds),
        "slots": str(batch.ranks_per_node),
        "system": request.system,
        "timer": _timer(batch),
    }
    for part in ("prepare", "run"):
        values[part] = _fill(part, values)
    return _fill(request.system, values)


def _fill(template: str, values: dict[str, str]) -> str:
    text = (_TEMPLATES / f"{template}.sh").read_text()
    return re.sub(r"@(\w+)@", lambda match: values[match[1]].rstrip("\n"), text)


def _job_name(stem: str) -> str:
    """A name that every system accepts: it begins with a letter, and has at most the 15 characters of old PBS."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", stem)[:15]
    return name if name[:1].isalpha() else f"run-{name}"[:15]


def _timer(batch: BatchConfig) -> str:
    if batch.time_seconds is None:
        return "# (set batch.time to have a checkpoint before the end of the job: its end is unknown otherwise)"
    seconds = batch.time_seconds - batch.signal_seconds
    return f'lartpc_ds=(timeout --foreground --preserve-status --signal=USR1 {seconds} "${{lartpc_ds[@]}}")'


def _check_folder(run_dir: Path) -> None:
    """Refuse a folder that is no run: the script would move it away like an unfinished run."""
    if RunFolder(run_dir).is_begun:
        print(f"{run_dir} holds a run; the job will resume it", file=sys.stderr)
    elif run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
        raise UserError(f"--run-dir {run_dir}: exists, and is not a run folder; choose another")


def _write(path: Path, text: str) -> None:
    if not path.parent.is_dir():
        raise UserError(f"{path}: no such folder {path.parent}; make it first")
    if path.exists() and (not path.is_file() or path.read_text() != text):
        raise UserError(f"{path}: exists and differs from what would be written; remove it, or choose another --out")
    path.write_text(text)
