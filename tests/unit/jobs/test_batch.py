"""What `submit` writes and refuses; `test_batch_scripts.py` runs the scripts."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lartpc_ds.errors import UserError
from lartpc_ds.jobs.batch.batch import SubmitRequest, submit, write_script

SYSTEMS = ("slurm", "lsf", "pbs")
COMMANDS = {"slurm": "sbatch", "lsf": "bsub", "pbs": "qsub"}
ASKED = (
    *('batch.account="lar"', 'batch.partition="gpu"', 'batch.time="1-02:30:00"', "batch.nodes=2"),
    *("batch.ranks_per_node=4", "batch.cpus_per_rank=8", 'batch.gres="some=4"', 'batch.constraint="a100"'),
)


@pytest.fixture(autouse=True)
def work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder whose name needs quotes; holds my.toml."""
    folder = tmp_path / "my work's $HOME"
    folder.mkdir()
    (folder / "my.toml").write_text("train.max_steps = 3\n")
    monkeypatch.chdir(folder)
    return folder


def written(system: str, *overrides: str, run: str = "my.toml", launcher: str | None = None) -> str:
    path = write_script(SubmitRequest(run, system, overrides, launcher=launcher))
    return path.read_text()


def directives(text: str) -> list[str]:
    """Lines that a batch system reads: before the first command."""
    lines = text.splitlines()
    head = lines[: next(number for number, line in enumerate(lines) if line and not line.startswith("#"))]
    return [line for line in head if re.match("#(SBATCH|BSUB|PBS) ", line)]


def test_slurm_is_asked_for_what_the_configuration_says() -> None:
    lines = written("slurm", *ASKED, 'batch.qos="high"', 'batch.lines=["#SBATCH --exclusive"]')
    assert directives(lines) == [
        "#SBATCH --job-name=my",
        "#SBATCH --output=my-%j.log",
        "#SBATCH --open-mode=append",
        "#SBATCH --requeue",
        "#SBATCH --signal=B:USR1@300",
        "#SBATCH --account=lar",
        "#SBATCH --partition=gpu",
        "#SBATCH --qos=high",
        "#SBATCH --time=1-02:30:00",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=4",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --gres=some=4",
        "#SBATCH --constraint=a100",
        "#SBATCH --exclusive",
    ]


def test_lsf_is_asked_for_what_the_configuration_says() -> None:
    assert directives(written("lsf", *ASKED, "batch.signal_seconds=301", 'batch.lines=["#BSUB -x"]')) == [
        "#BSUB -J my",
        "#BSUB -o my-%J.log",
        "#BSUB -r",
        '#BSUB -Q "75"',
        "#BSUB -n 8",
        '#BSUB -R "span[ptile=4]"',
        "#BSUB -P lar",
        "#BSUB -q gpu",
        '#BSUB -R "affinity[core(8)]"',
        '#BSUB -gpu "some=4"',
        '#BSUB -R "select[a100]"',
        "#BSUB -W 26:30",
        '#BSUB -wa "USR1"',
        '#BSUB -wt "6"',
        "#BSUB -x",
    ]


def test_pbs_is_asked_for_what_the_configuration_says() -> None:
    text = written("pbs", *ASKED, 'batch.lines=["#PBS -l filesystems=home"]')
    assert directives(text) == [
        "#PBS -N my",
        "#PBS -j oe",
        "#PBS -r y",
        "#PBS -l select=2:ncpus=32:mpiprocs=4:some=4:a100",
        "#PBS -l place=scatter",
        "#PBS -A lar",
        "#PBS -q gpu",
        "#PBS -l walltime=26:30:00",
        "#PBS -l filesystems=home",
    ]
    assert f"--signal=USR1 {26 * 3600 + 1800 - 300} " in text


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("asked", [(), ASKED])
def test_a_script_is_bash_with_every_place_filled(system: str, asked: tuple[str, ...]) -> None:
    layout = ("layout.rows=2",) if asked else ()
    text = written(system, *asked, *layout)
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    assert not re.findall(r"@\w+@", text)
    assert f"lartpc_ds=({shlex.quote(sys.executable)} -m lartpc_ds)" in text
    assert "\n\n\n" not in text


@pytest.mark.parametrize(
    ("system", "default", "others"),
    [("slurm", "slurm", ["pdsh", "openmpi"]), *((s, "pdsh", ["openmpi"]) for s in ("lsf", "pbs"))],
)
def test_the_launcher_is_the_systems_or_the_users(system: str, default: str, others: list[str], work: Path) -> None:
    for launcher in (None, *others):
        assert f" --launcher {launcher or default} " in written(system, "batch.nodes=2", launcher=launcher)
        (work / f"my.{system}.sh").unlink()


@pytest.mark.parametrize("system", SYSTEMS)
def test_one_host_needs_a_launcher_under_slurm_only(system: str, work: Path) -> None:
    assert ("--launcher" in written(system)) == (system == "slurm")
    (work / f"my.{system}.sh").unlink()
    assert " --launcher openmpi " in written(system, launcher="openmpi")


@pytest.mark.parametrize(("system", "launcher"), [("lsf", "slurm"), ("pbs", "slurm"), ("slurm", "mpich")])
def test_a_launcher_that_is_not_there_is_refused(system: str, launcher: str) -> None:
    with pytest.raises(UserError, match=f"--launcher '{launcher}': on {system} it must be one of .*pdsh"):
        written(system, launcher=launcher)


def test_a_recipe_keeps_its_name_and_a_file_gets_its_whole_path(work: Path) -> None:
    assert " train quickstart " in written("slurm", run="quickstart")
    assert f" train {shlex.quote(str(work / 'my.toml'))} " in written("slurm")


def test_an_option_of_another_system_is_not_dropped() -> None:
    with pytest.raises(UserError, match=r"batch\.qos = 'high': PBS has no such option.*batch\.lines"):
        written("pbs", 'batch.qos="high"')
    with pytest.raises(UserError, match=r"batch\.lines: '#SBATCH -x' is not for LSF, whose lines begin with #BSUB"):
        written("lsf", 'batch.lines=["#SBATCH -x"]')


def test_the_layout_must_fit_the_ranks_that_are_asked_for() -> None:
    with pytest.raises(UserError, match=r"needs 4 ranks.*but batch\.nodes x batch\.ranks_per_node = 3 x 2 is 6"):
        written("slurm", "batch.nodes=3", "batch.ranks_per_node=2", "layout.rows=4")
    with pytest.raises(UserError, match="ZeRO-2 does not go with pipeline stages"):
        written("slurm", "batch.nodes=2", "layout.pipe=2", "train.ds_config=zero2_bf16")


def test_a_script_that_was_edited_is_kept(work: Path) -> None:
    script = work / "my.slurm.sh"
    text = written("slurm")
    assert written("slurm") == text  # the same again is no loss
    script.write_text(text + "# mine\n")
    with pytest.raises(UserError, match=r"my\.slurm\.sh: exists and differs"):
        written("slurm")
    assert script.read_text() == text + "# mine\n"


def test_a_run_folder_must_be_new_or_a_run(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = work / "other"
    folder.mkdir()
    request = SubmitRequest("my.toml", "slurm", run_dir=folder)
    write_script(request)
    (folder / "thesis.tex").touch()
    with pytest.raises(UserError, match="other: exists, and is not a run folder"):
        write_script(request)
    assert capsys.readouterr().err == ""
    (folder / "job.json").touch()
    write_script(request)
    assert "will resume it" in capsys.readouterr().err


def test_a_folder_for_the_script_must_be_there(work: Path) -> None:
    with pytest.raises(UserError, match=r"no such folder .*missing"):
        write_script(SubmitRequest("my.toml", "slurm", out=Path("missing/my.sh")))


@pytest.mark.parametrize("stem", ["2026 run", "a-very-long-name-of-a-run", "ünï"])
def test_every_system_takes_the_jobs_name(work: Path, stem: str) -> None:
    (work / f"{stem}.toml").write_text("train.max_steps = 3\n")
    found = re.search(r"^#PBS -N (.*)$", written("pbs", run=f"{stem}.toml"), re.MULTILINE)
    assert found and re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]{0,14}", found[1])


@pytest.mark.parametrize("system", SYSTEMS)
def test_submit_says_how_and_does_it_now(
    system: str, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    monkeypatch.setenv("PATH", f"{bin_folder}:/usr/bin:/bin")
    stub = bin_folder / COMMANDS[system]
    script = work / f"my.{system}.sh"

    submit(SubmitRequest("my.toml", system))
    path, command = capsys.readouterr().out.splitlines()
    assert path == str(script)
    arguments = shlex.split(command.removeprefix("submit it with: ").replace("<", "< "))
    assert arguments == [COMMANDS[system], *(["<"] if system == "lsf" else []), str(script)]

    stub.write_text('#!/bin/sh\ncat "${1:--}" >received\necho Submitted job 7\n')
    stub.chmod(0o755)
    submit(SubmitRequest("my.toml", system, now=True))
    assert capsys.readouterr().out.splitlines() == [str(script), "Submitted job 7"]
    assert (work / "received").read_text() == script.read_text()

    stub.write_text("#!/bin/sh\necho invalid account >&2\nexit 1\n")
    with pytest.raises(UserError, match=f"{COMMANDS[system]} refused .*: invalid account"):
        submit(SubmitRequest("my.toml", system, now=True))


def test_submitting_needs_the_systems_command(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="--now: no qsub on this machine"):
        submit(SubmitRequest("my.toml", "pbs", now=True))
    assert not (work / "my.pbs.sh").exists()
    with pytest.raises(UserError, match="--system 'sge': must be one of slurm, lsf, pbs"):
        submit(SubmitRequest("my.toml", "sge"))
