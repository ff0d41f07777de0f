import ast
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import lartpc_ds
from lartpc_ds.jobs.hosts.reach import Outcome, run_python
from lartpc_ds.jobs.preflight import probe
from lartpc_ds.jobs.preflight.probe import Request, script
from tests.unit.jobs.test_reach import Shell


def request(folder: Path, **changes: object) -> Request:
    base = Request(
        first_host="localhost",
        folder=str(folder),
        environment={"PYTHONPATH": str(Path(lartpc_ds.__file__).parents[1])},
        files=[],
        run_folder=None,
        token=None,
        call_back=[],
        call_back_port=1,
        call_back_word="word",
        devices=False,
    )
    return Request(**{**base, **changes})  # type: ignore[typeddict-item]


def run(asked: Request) -> Outcome:
    """Over standard input, as ssh would bring it."""
    return run_python(Shell('exec "$@"'), "beta", script(asked), 60)


def answer(asked: Request) -> probe.Answer:
    done = run(asked)
    assert done.code == 0 and len(done.answers()) == 2, done
    return done.answers()[1][1]  # type: ignore[return-value]


def test_the_probe_needs_the_standard_library_only() -> None:
    tree = ast.parse(Path(probe.__file__).read_text())
    roots = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    roots |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert roots <= sys.stdlib_module_names | {"__future__"}


def test_an_old_python_still_says_its_version(tmp_path: Path) -> None:
    text = script(request(tmp_path))
    head = text[: text.index("names = ")]
    ast.parse(text.replace("exec(", "print("), feature_version=(3, 7))  # what follows the head is one quoted string
    done = subprocess.run([sys.executable, "-I", "-"], input=head, capture_output=True, text=True, check=True)
    assert set(ast.literal_eval(done.stdout)) == {"time", "python"}


@pytest.mark.slow
def test_this_machine_as_seen_by_the_probe(tmp_path: Path) -> None:
    data = tmp_path / "events.h5"
    data.write_bytes(b"1234567")
    os.utime(data, (1_000_000_000.9, 1_000_000_000.9))
    (tmp_path / "token").write_text("secret")
    found = answer(
        request(tmp_path, files=[str(data), "/no/such"], run_folder=str(tmp_path), token="token", devices=True)
    )
    assert found["first_addresses"] == ["127.0.0.1"] and found["source"] == "127.0.0.1"
    psutils = {address.address for entries in psutil.net_if_addrs().values() for address in entries}
    probes = {address for addresses in found["interfaces"].values() for address in addresses}
    assert "127.0.0.1" in found["interfaces"]["lo"] and probes <= psutils
    assert found["files"] == {str(data): [7, 1_000_000_000], "/no/such": "No such file or directory"}
    assert (found["token"], found["token_read"]) == ("secret", True) and not (tmp_path / "token").exists()
    assert found["free_bytes"] > 0 and len(set(found["ports"])) == 2
    packages, devices = found["packages"], found["devices"]
    assert isinstance(packages, dict) and isinstance(devices, dict)
    assert packages["lartpc_ds"].startswith(f"{lartpc_ds.__version__} (sources ")
    assert set(packages) == {"lartpc_ds", "torch", "deepspeed"} and devices["count"] >= 1
    assert devices["kind"] != "cpu" or (devices["count"], devices["backend"]) == (len(os.sched_getaffinity(0)), "gloo")


def test_the_variables_and_the_folder_of_the_ranks_decide_what_is_imported(tmp_path: Path) -> None:
    (tmp_path / "torch-9.9.dist-info").mkdir()
    (tmp_path / "torch-9.9.dist-info" / "METADATA").write_text("Name: torch\nVersion: 9.9\n")
    (tmp_path / "lartpc_ds.py").write_text("raise ImportError('half a copy')\n")
    packages = answer(request(tmp_path, environment={"PYTHONPATH": str(tmp_path)}))["packages"]
    assert isinstance(packages, dict)
    assert packages["torch"] == "9.9" and packages["lartpc_ds"] == "missing: half a copy"


def test_other_sources_of_the_same_version_differ(tmp_path: Path) -> None:
    (tmp_path / "lartpc_ds").mkdir()
    (tmp_path / "lartpc_ds" / "__init__.py").write_text(f"__version__ = {lartpc_ds.__version__!r}\n")
    ours, theirs = (answer(request(folder))["packages"] for folder in (Path("/"), tmp_path))
    assert isinstance(ours, dict) and isinstance(theirs, dict)
    assert ours["lartpc_ds"].split()[0] == theirs["lartpc_ds"].split()[0] and ours != theirs


def test_what_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = answer(
        request(tmp_path / "gone", first_host="no-such-host.invalid", run_folder=str(tmp_path / "x"), token="token")
    )
    assert found["folder"] == "no such folder"
    assert isinstance(found["first_addresses"], str) and found["source"] == found["first_addresses"]
    assert (found["token"], found["token_read"]) == ("no such folder", False)
    monkeypatch.setattr(probe, "_TOKEN_SECONDS", 0.0)
    here = probe.answer(request(tmp_path, run_folder=str(tmp_path), token="token"))
    assert (here["token"], here["token_read"]) == ("not the same folder", False)


def test_an_import_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lartpc_ds.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(probe, "_CHILD_SECONDS", 1)
    found = probe.answer(request(tmp_path, environment={"PYTHONPATH": str(tmp_path)}))
    assert found["packages"] == "importing the packages took more than 1 s"
