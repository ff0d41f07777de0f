"""The written scripts, run by bash with stand-ins for lartpc-ds and for the batch system's commands.

The stand-in for `train` notes its arguments and signals and does what a file says, as train does it: it claims the run
folder, saves at SIGUSR1 and exits with 75.
"""

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lartpc_ds.jobs.batch.batch import SubmitRequest, write_script

SYSTEMS = ("slurm", "lsf", "pbs")
TRAIN = r"""#!/bin/bash
set -u
cd "$(dirname "$0")" || exit
if [ "$1" = hostfile ]; then
    echo "$*" >>hostfile_calls
    echo "node1 slots=2"
    exit "$(cat hostfile_code)"
fi
printf '%s\n' "$*" >>calls
while [ "$1" != --hostfile ]; do shift; done
cp "$2" hostfile_read
while [ "$1" != --run-dir ]; do shift; done
run_dir=$2
got=0
trap 'echo USR1 >>signals; got=1' USR1
trap 'echo TERM >>signals; got=1' TERM
mkdir -p "$run_dir/logs"
[ -e unprepared ] || touch "$run_dir/job.json"
touch started
if [ -e until_signal ]; then
    until [ "$got" -eq 1 ]; do sleep 0.05; done
    sleep 0.3 # it saves
fi
exit "$(cat code)"
"""
STAND_INS = {
    "lartpc-ds": TRAIN,
    "scontrol": '#!/bin/bash\nhere=$(dirname "$0")\necho "$*" >>"$here/scontrol_calls"\n'
    'if [ "$1" = show ]; then echo "   JobState=$(cat "$here/state") Reason=None"; fi\n',
    "qsub": '#!/bin/bash\necho "$*" >>"$(dirname "$0")/qsub_calls"\n',
}


class Site:
    """A folder with the stand-ins, the script under test, and what they left behind."""

    def __init__(self, root: Path) -> None:
        self.bin = root / "the site's bin"
        self.bin.mkdir()
        for name, text in STAND_INS.items():
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)
        self.say(code=0, hostfile_code=0, state="RUNNING")
        self.work = root / "my $work"
        self.work.mkdir()
        self.run_dir = self.work / "runs" / "my run"
        self.temporary = root / "tmp"
        self.temporary.mkdir()

    def say(self, **files: object) -> None:
        for name, text in files.items():
            (self.bin / name).write_text(str(text))

    def told(self, name: str) -> list[str]:
        """Lines that a stand-in wrote."""
        path = self.bin / name
        return path.read_text().splitlines() if path.exists() else []

    def write(self, system: str, *overrides: str, launcher: str | None = None) -> Path:
        prologue = 'batch.prologue=["lartpc_ds=(lartpc-ds)", "export MARK=$UNBOUND_VARIABLE-here"]'
        overrides = (prologue, "batch.ranks_per_node=2", *overrides)
        return write_script(SubmitRequest("my.toml", system, overrides, run_dir=self.run_dir, launcher=launcher))

    def start(self, script: Path) -> "subprocess.Popen[str]":
        """As a batch system does: in another folder, without a terminal, in a session of its own."""
        environment = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "17",
            "TMPDIR": str(self.temporary),
        }
        (self.bin / "started").unlink(missing_ok=True)
        return subprocess.Popen(
            ["bash", str(script)],
            cwd="/",
            env=environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def finish(self, job: "subprocess.Popen[str]") -> int:
        """Exit code of the script, of whose temporary files and processes nothing is left."""
        output, _ = job.communicate(timeout=60)
        assert "unbound" not in output and "No such" not in output and "not found" not in output, output
        assert list(self.temporary.iterdir()) == []
        with pytest.raises(ProcessLookupError):
            os.killpg(job.pid, 0)
        return job.returncode

    def run(self, script: Path, *, send: Callable[["subprocess.Popen[str]"], None] | None = None) -> int:
        job = self.start(script)
        if send is not None:
            deadline = time.monotonic() + 60
            while not (self.bin / "started").exists():
                assert job.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
            send(job)
        return self.finish(job)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    made = Site(tmp_path)
    (made.work / "my.toml").write_text("train.max_steps = 3\n")
    monkeypatch.chdir(made.work)
    return made


def to_the_script(number: signal.Signals) -> Callable[["subprocess.Popen[str]"], None]:
    return lambda job: job.send_signal(number)


def to_every_process(number: signal.Signals) -> Callable[["subprocess.Popen[str]"], None]:
    return lambda job: os.killpg(job.pid, number)


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_first_turn_starts_and_the_next_one_resumes(site: Site, system: str) -> None:
    override = 'data.classes=["electron", "it\'s"]'
    script = site.write(system, override)
    assert site.run(script) == 0
    assert site.run(script) == 0
    first, second = site.told("calls")
    assert first.startswith(f"train {site.work}/my.toml --set ") and f"--set {override} " in first
    assert first.endswith(f" --run-dir {site.run_dir}")
    assert site.told("hostfile_calls") == [f"hostfile make --from {system} --slots 2"] * 2
    assert site.told("hostfile_read") == ["node1 slots=2"]
    without_hostfile = [[word for word in call.split() if "/tmp." not in word] for call in (first, second)]
    assert without_hostfile[1] == [*without_hostfile[0], "--resume"]
    assert site.told("signals") == site.told("scontrol_calls") == site.told("qsub_calls") == []


@pytest.mark.parametrize(
    ("system", "nodes", "asked", "given"),
    [
        ("slurm", 1, None, "slurm"),
        ("lsf", 1, None, None),
        ("pbs", 1, None, None),
        ("slurm", 2, None, "slurm"),
        ("lsf", 2, None, "pdsh"),
        ("pbs", 2, None, "pdsh"),
        ("lsf", 1, "pdsh", "pdsh"),
        ("pbs", 1, "openmpi", "openmpi"),
    ],
)
def test_only_one_host_of_lsf_and_pbs_needs_no_launcher(
    site: Site, system: str, nodes: int, asked: str | None, given: str | None
) -> None:
    assert site.run(site.write(system, f"batch.nodes={nodes}", launcher=asked)) == 0
    words = site.told("calls")[0].split()
    assert (words[words.index("--launcher") + 1] if "--launcher" in words else None) == given


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("code", [1, 2, 3, 137])
def test_another_exit_code_is_passed_on_and_ends_the_job(site: Site, system: str, code: int) -> None:
    site.say(code=code)
    assert site.run(site.write(system)) == code
    assert site.told("scontrol_calls") == site.told("qsub_calls") == []


@pytest.mark.parametrize("system", SYSTEMS)
def test_without_a_hostfile_nothing_starts(site: Site, system: str) -> None:
    site.say(hostfile_code=2)
    assert site.run(site.write(system)) == 2
    assert site.told("calls") == []


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_warning_reaches_train_and_the_job_is_queued_again(site: Site, system: str) -> None:
    site.say(code=75, until_signal="")
    script = site.write(system)
    assert site.run(script, send=to_the_script(signal.SIGUSR1)) == 75
    assert site.told("signals") == ["USR1"]
    again = {
        "slurm": ("scontrol_calls", ["show job 17", "requeue 17"]),
        "lsf": ("signals", ["USR1"]),  # it requeues by the exit code
        "pbs": ("qsub_calls", [str(script)]),
    }
    name, lines = again[system]
    assert site.told(name) == lines
    (site.bin / "until_signal").unlink()
    site.say(code=0)
    assert site.run(script) == 0
    assert site.told("calls")[1].endswith("--resume")


@pytest.mark.parametrize("system", SYSTEMS)
def test_several_signals_do_not_end_the_wait(site: Site, system: str) -> None:
    def twice(job: "subprocess.Popen[str]") -> None:
        job.send_signal(signal.SIGUSR1)
        time.sleep(0.1)
        job.send_signal(signal.SIGUSR1)

    site.say(code=75, until_signal="")
    assert site.run(site.write(system), send=twice) == 75


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_cancelled_job_saves_and_stays_cancelled(site: Site, system: str) -> None:
    site.say(code=75, until_signal="", state="COMPLETING")
    code = site.run(site.write(system), send=to_every_process(signal.SIGTERM))
    assert code == (143 if system == "lsf" else 75)
    assert set(site.told("signals")) == {"TERM", "USR1"}
    assert "requeue 17" not in site.told("scontrol_calls") and site.told("qsub_calls") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_scancel_to_the_script_alone_saves_and_only_usr1_requeues(site: Site, number: signal.Signals) -> None:
    """`scancel --batch --signal=...`: for Slurm the job is RUNNING all the while, so the script must know."""
    site.say(code=75, until_signal="")
    assert site.run(site.write("slurm"), send=to_the_script(number)) == 75
    assert site.told("signals") == ["USR1"]
    requeued = ["show job 17", "requeue 17"]
    assert site.told("scontrol_calls") == (requeued if number == signal.SIGUSR1 else [])


def test_slurm_requeues_no_job_that_it_is_ending(site: Site) -> None:
    site.say(code=75, until_signal="", state="COMPLETING")
    assert site.run(site.write("slurm"), send=to_the_script(signal.SIGUSR1)) == 75
    assert site.told("scontrol_calls") == ["show job 17"]


def test_pbs_has_a_clock_of_its_own(site: Site) -> None:
    site.say(code=75, until_signal="")
    script = site.write("pbs", 'batch.time="00:00:03"', "batch.signal_seconds=2")
    assert site.run(script) == 75
    assert site.told("signals") == ["USR1"]
    assert site.told("qsub_calls") == [str(script)]


@pytest.mark.parametrize("system", SYSTEMS)
def test_what_a_job_left_that_was_killed_while_it_prepared_is_moved_away(site: Site, system: str) -> None:
    script = site.write(system)
    site.say(unprepared="", code=137)
    assert site.run(script) == 137
    (site.run_dir / "half.h5").touch()
    (site.bin / "unprepared").unlink()
    site.say(code=0)
    assert site.run(script) == 0
    assert not site.told("calls")[1].endswith("--resume")
    assert not (site.run_dir / "half.h5").exists()
    (moved,) = site.run_dir.parent.glob("my run.unfinished-*")
    assert (moved / "half.h5").exists()


def test_a_run_whose_job_is_lost_is_left_to_train_and_not_moved_away(site: Site) -> None:
    (site.run_dir / "checkpoints" / "step_0000005").mkdir(parents=True)
    assert site.run(site.write("slurm")) == 0
    assert site.told("calls")[0].endswith("--resume")
    assert [path.name for path in site.run_dir.parent.iterdir()] == ["my run"]


def test_an_empty_run_folder_is_used(site: Site) -> None:
    site.run_dir.mkdir(parents=True)
    assert site.run(site.write("slurm")) == 0
    assert [path.name for path in site.run_dir.parent.iterdir()] == ["my run"]


def test_the_prologue_may_use_unset_variables(site: Site) -> None:
    script = site.write("slurm")
    (site.bin / "lartpc-ds").write_text(TRAIN.replace("set -u\n", 'echo "$MARK" >"$0.env"\nset -u\n'))
    assert site.run(script) == 0
    assert (site.bin / "lartpc-ds.env").read_text() == "-here\n"


def test_by_default_the_job_runs_the_lartpc_ds_that_wrote_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    python = site.bin / "python"
    python.write_text('#!/bin/bash\nshift 2\nexec "$(dirname "$0")/lartpc-ds" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    script = write_script(SubmitRequest("my.toml", "slurm"))
    assert f"lartpc_ds=({shlex.quote(str(python))} -m lartpc_ds)" in script.read_text()
    assert site.run(script) == 0
    assert site.told("calls")[0].endswith(f"--run-dir {site.work}/runs/my-slurm")
