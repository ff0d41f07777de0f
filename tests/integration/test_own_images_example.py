"""The example of docs/own-images.md, as it stands there: saved, trained and evaluated by the commands beside it."""

import json
import re
import shlex
from pathlib import Path

from tests.integration.cli import run_cli

PAGE = Path(__file__).parents[2] / "docs" / "own-images.md"


def block(text: str, language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return str(found)


def test_your_own_images_and_losses(tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    (tmp_path / "my_images.py").write_text(block(page, "python"))
    (tmp_path / "my_run.toml").write_text(block(page, "toml"))
    commands = re.findall(r"^    PYTHONPATH=\. lartpc-ds (.*)$", page, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["train", "evaluate"]
    for command in commands:
        finished = run_cli(tmp_path, *shlex.split(command), environment={"PYTHONPATH": "."})
        assert (finished.code, finished.err) == (0, ""), finished.out + finished.err
    (figures,) = (json.loads(path.read_text()) for path in (tmp_path / "runs/discs").glob("evaluation-*.json"))
    assert figures["counted"] == "pixels" and figures["balanced_accuracy"]["value"] > 0.8
