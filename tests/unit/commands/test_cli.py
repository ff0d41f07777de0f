import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from lartpc_ds import __version__
from lartpc_ds.commands.cli import app, main
from lartpc_ds.config import recipes

SET, DEVICES, VERBOSE = "--set", "--devices", "--verbose"
HOSTS = ("--hostfile", "--launcher", "--include", "--exclude")
# Adding an option? It may not repeat a config key; then add it here and to the documentation.
OPTIONS = {
    "train": {SET, "--run-dir", DEVICES, *HOSTS, "--resume", "--dry-run", VERBOSE},
    "plan": {
        *("--devices", "--memory", "--per-node", "--hardware", "--global-batch", "--lit-share"),
        *(SET, "--json", "--write", "--out"),
    },
    "submit": {"--system", SET, "--run-dir", "--out", "--launcher", "--now"},
    "evaluate": {"--files", "--checkpoint", DEVICES, *HOSTS},
    "report": set(),
    "tune": {"--steps", "--zero-stages", "--stages", "--layouts", DEVICES, "--hardware", "--out", "--resume", SET},
    "scale": {
        *("--ranks", "--mode", "--strong", "--weak", "--models", "--hostfile", "--launcher", "--steps", "--repeats"),
        *("--out", "--resume", SET),
    },
    "calibrate": {"--out", DEVICES, "--hostfile", "--launcher"},
    "simulate": {"--detector", "--events", "--classes", "--momentum", "--seed", "--workers"},
    "inspect": {"--product", "--truth", SET, "--json"},
    "display": {"--event", "--out", "--full", "--product", "--truth"},
    "config list": set(),
    "config init": set(),
    "hostfile make": {"--from", "--slots", "--out"},
    "hostfile check": {"--include", "--exclude", "--launcher", "--run", "--run-dir"},
    "bench step": {SET, "--repeats", "--steps", "--json"},
    "bench tiles": {SET, "--rows", "--cols", "--repeats", "--steps", "--json"},
    "bench lit": {SET, "--repeats", "--steps", "--json"},
    "bench memory": {"--set", "--repeats", "--steps", "--json"},
    "bench planner": {"--hardware", "--only", "--measured", "--repeats", "--steps", "--json"},
    "bench compare": {SET, "--ranks", "--only", "--repeats", "--steps", "--json"},
    "bench pipeline": {"--set", "--stages", "--measure", "--repeats", "--steps", "--json"},
    "bench cosmictagger": {"--json"},
    "bench handmade": {SET, "--json"},
}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit code of the command line in this process."""
    monkeypatch.setattr(sys, "argv", ["lartpc-ds", *arguments])
    monkeypatch.setattr("logging.disable", lambda _: None)
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def in_a_process(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "lartpc_ds", *arguments], capture_output=True, text=True)


def options_of(command: object, name: str = "") -> dict[str, set[str]]:
    if hasattr(command, "commands"):
        below = (options_of(sub, f"{name} {key}") for key, sub in command.commands.items())
        return {path: options for tree in below for path, options in tree.items()}
    params = command.params  # type: ignore[attr-defined]  # click's, of which typer carries its own copy
    return {name.strip(): {opt for param in params for opt in param.opts if opt.startswith("-")} - {"--help"}}


def test_commands_and_options_are_frozen() -> None:
    assert options_of(typer.main.get_command(app)) == OPTIONS


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["--version"],
        ["bench", "step", "--help"],
        ["plan", "--help"],
        ["tune", "--help"],
        ["scale", "--help"],
        ["hostfile", "make", "a:1"],
    ],
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['lartpc-ds', *{arguments!r}]\n"
        "from lartpc_ds.commands.cli import main\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    assert not ended.code, ended.code\n"
        "heavy = {'torch', 'deepspeed', 'h5py', 'numpy', 'matplotlib'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "lartpc-ds" in done.stdout


def test_the_module_is_the_command() -> None:
    done = in_a_process("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"lartpc-ds {__version__}\n", "")


def test_a_users_mistake_is_one_message_and_exit_code_2() -> None:
    done = in_a_process("config", "init", "no-such-recipe")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("lartpc-ds: ") and "quickstart" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["train"], ["trian"], ["train", "quickstart", "--epochs", "3"], ["config", "x"]])
def test_an_unknown_command_or_option_is_the_users_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert run(monkeypatch, *arguments) == 2
    assert "Usage:" in capsys.readouterr().err


def test_config_list_names_the_recipes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "config", "list") == 0
    assert capsys.readouterr().out.split() == recipes.names()


def test_config_init_copies_a_recipe_with_its_comments(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "config", "init", "sbnd") == 0
    assert capsys.readouterr().out == "sbnd.toml\n"
    assert (tmp_path / "sbnd.toml").read_text() == recipes.path_of("sbnd").read_text()
    assert run(monkeypatch, "config", "init", "sbnd", "other.toml") == 0
    assert recipes.load("other.toml") == recipes.load("sbnd")


def test_config_init_overwrites_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    target = tmp_path / "mine.toml"
    target.write_text("mine")
    assert run(monkeypatch, "config", "init", "sbnd", str(target)) == 2
    assert "mine.toml: exists" in capsys.readouterr().err
    assert target.read_text() == "mine"


def test_config_init_into_a_folder_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, "config", "init", "sbnd", str(tmp_path / "missing" / "mine.toml")) == 2
    assert "missing" in capsys.readouterr().err


def test_hostfile_make_prints_or_writes_a_new_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for variable in ("SLURM_HET_SIZE", "SLURM_GPUS", "SLURM_GPUS_PER_NODE"):  # the tests may run in a job
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu[01-02]")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    assert run(monkeypatch, "hostfile", "make") == 0
    shown = capsys.readouterr().out
    assert [line for line in shown.splitlines() if line[0] != "#"] == ["gpu01 slots=4", "gpu02 slots=4"]
    target = tmp_path / "hosts"
    assert run(monkeypatch, "hostfile", "make", "--from", "slurm", "--slots", "auto", "--out", str(target)) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert target.read_text() == shown
    assert run(monkeypatch, "hostfile", "make", "a:1", "b:2", "--out", str(target)) == 2
    assert "hosts: exists" in capsys.readouterr().err
    assert target.read_text() == shown


@pytest.mark.parametrize("momentum", ["0.2", "0.2-1.0", "low:high", "1.0:0.2", "-1:1", "0:1", "nan:1", "0.2:inf"])
def test_a_momentum_range_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, momentum: str
) -> None:
    out = tmp_path / "out.h5"
    arguments = ["simulate", str(out), "--detector", "argoneut", "--events", "1", f"--momentum={momentum}"]
    assert run(monkeypatch, *arguments) == 2
    assert "momentum" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_inspect_ends_with_code_2_for_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "inspect", "missing.h5", "--json") == 2
    assert "missing.h5" in json.loads(capsys.readouterr().out.splitlines()[-1])["problems"][0]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "quickstart", "--set", "train.epoch=1"], "train.epoch: unknown key"),
        (["train", "quickstart", "--devices", "0"], "--devices 0"),
        (["train", "quickstart", "--resume"], "--run-dir"),
        (["train", "sbnd", "--set", 'data.files=["missing.h5"]'], "missing.h5"),
        (["evaluate", "missing"], "missing"),
        (["report", "missing"], "not a run folder"),
        (["display", "missing.h5"], "missing.h5"),
        (["plan", "missing", DEVICES, "2"], "RUN = 'missing'"),
        (["plan", "quickstart", DEVICES, "2", "--hardware", "missing"], "--hardware 'missing'"),
        (["plan", "quickstart", DEVICES, "2", "--lit-share", "2"], "--lit-share '2'"),
        (["hostfile", "make", "gpu[1-2]", "--out", "hosts"], "Write gpu[1-2]:N"),
        (["hostfile", "make", "a:1", "--out", "missing/hosts"], "no such folder missing"),
        (["hostfile", "check", "missing"], "missing"),
        (["tune", "missing", "--steps", "1"], "RUN = 'missing'"),
        (["tune", "quickstart", "--steps", "1", "--zero-stages", "1,4"], "--zero-stages '1,4'"),
        (["tune", "quickstart", "--steps", "1", "--stages", "1,4"], "--zero-stages '1,4'"),
        (["tune", "quickstart", "--steps", "1", "--resume"], "--out DIR"),
        (["tune", "quickstart", "--steps", "1", "--out", "none", "--resume"], "no tuning in it"),
        (["tune", "quickstart", "--steps", "1", "--hardware", "missing"], "--hardware 'missing'"),
        (["scale", "missing"], "RUN = 'missing'"),
        (["scale", "quickstart", "--ranks", "0"], "--ranks '0'"),
        (["scale", "quickstart", "--mode", "x"], "--mode 'x'"),
        (["scale", "quickstart", "--mode", "tiles", "--weak"], "--weak with --mode tiles"),
        (["scale", "quickstart", "--models", "resnet19"], "--models 'resnet19'"),
        (["scale", "quickstart", "--hostfile", "missing"], "missing"),
        (["scale", "quickstart", "--launcher", "slurm"], "give --hostfile FILE"),
        (["scale", "quickstart", "--resume"], "--out DIR"),
        (["scale", "quickstart", "--out", "none", "--resume"], "no scaling study in it"),
        (["bench", "planner", "--only", "resnet19"], "--only 'resnet19'"),
        (["bench", "planner", "--measured", "missing"], "--measured missing"),
        (["calibrate", "--out", "missing/here.toml"], "no such folder missing"),
        (["calibrate", "--devices", "0"], "--devices 0"),
        (["bench", "step", "missing"], "RUN = 'missing'"),
        (["bench", "tiles", "missing"], "RUN = 'missing'"),
        (["bench", "memory", "missing"], "RUN = 'missing'"),
        (["bench", "pipeline", "missing"], "RUN = 'missing'"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    named: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("lartpc-ds: ") and named in shown
    assert not [path for path in tmp_path.rglob("*") if path.is_file() or path.name.startswith("sbnd")]
