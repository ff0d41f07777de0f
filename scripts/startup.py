"""Seconds from `lartpc-ds train` to its first step: `python scripts/startup.py [RUN] [--repeats N] [--with FOLDER]`.

Prints a JSON line a run: wall seconds, and CPU seconds of the command line and of all its processes up to the moment at
which the first step is in `metrics.jsonl`. CPU seconds do not depend on what else the machine does. `--with` measures
other checkouts in turn with this one. Each run is in a folder that is thrown away, and is stopped after its first step.
"""

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

HERE = Path(__file__).parents[1]
POLL_SECONDS = 0.05


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", default="quickstart")
    parser.add_argument("--devices", default="2")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--with", action="append", default=[], type=Path, metavar="FOLDER", dest="others")
    arguments = parser.parse_args()
    options = [arguments.run, "--devices", arguments.devices, *(f"--set={text}" for text in arguments.set)]
    checkouts = [HERE, *(path.resolve() for path in arguments.others)]
    measured: dict[Path, list[dict[str, float]]] = {path: [] for path in checkouts}
    for _ in range(arguments.repeats):
        for path in checkouts:
            measured[path].append(first_step(path, options))
            print(json.dumps({"checkout": str(path), **measured[path][-1]}), flush=True)
    for path, runs in measured.items():
        medians = {name: round(statistics.median(run[name] for run in runs), 2) for name in runs[0]}
        print(json.dumps({"checkout": str(path), "median of": len(runs), **medians}))


def first_step(checkout: Path, options: list[str]) -> dict[str, float]:
    """Train with the code of `checkout` until the first step."""
    with tempfile.TemporaryDirectory() as scratch:
        environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        metrics = Path(scratch) / "run/metrics.jsonl"
        started = time.perf_counter()
        command = [sys.executable, "-m", "lartpc_ds", "train", *options, "--run-dir", "run"]
        with (Path(scratch) / "out").open("w+") as out:
            process = psutil.Popen(command, cwd=scratch, env=environment, stdout=out, stderr=out)
            while not (metrics.exists() and metrics.stat().st_size):
                if process.poll() is not None:
                    out.seek(0)
                    sys.exit(f"ended before its first step:\n{out.read()}")
                time.sleep(POLL_SECONDS)
            wall = time.perf_counter() - started
            own, everybody = cpu_seconds(process)
            process.send_signal(signal.SIGTERM)
            with suppress(psutil.TimeoutExpired):
                process.wait(60)
            with suppress(psutil.NoSuchProcess):
                process.kill()
    return {"wall_seconds": wall, "cpu_seconds": everybody, "command_line_cpu_seconds": own}


def cpu_seconds(process: psutil.Process) -> tuple[float, float]:
    """Of a process alone, and with all that it has started, ended ones included."""
    own, everybody = 0.0, 0.0
    for one in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            mine = times.user + times.system
            everybody += mine + times.children_user + times.children_system
            own += mine if one == process else 0
    return own, everybody


if __name__ == "__main__":
    main()
