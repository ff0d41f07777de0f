"""The example of README.md, as it stands there: saved, trained and evaluated by the commands beside it."""

import json
import re
import shlex
from pathlib import Path

from tests.integration.cli import run_cli

README = Path(__file__).parents[2] / "README.md"


def block(section: str, language: str) -> str:
    (text,) = re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return str(text)


def test_your_own_images_and_losses(tmp_path: Path) -> None:
    section = README.read_text(encoding="utf-8").split("## Your own images and losses\n")[1].split("\n## ")[0]
    (tmp_path / "my_images.py").write_text(block(section, "python"))
    (tmp_path / "my_run.toml").write_text(block(section, "toml"))
    commands = re.findall(r"^    PYTHONPATH=\. lartpc-ds (.*)$", section, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["train", "evaluate"]
    for command in commands:
        finished = run_cli(tmp_path, *shlex.split(command), environment={"PYTHONPATH": "."})
        assert (finished.code, finished.err) == (0, ""), finished.out + finished.err
    (figures,) = (json.loads(path.read_text()) for path in (tmp_path / "runs/discs").glob("evaluation-*.json"))
    assert figures["counted"] == "pixels" and figures["balanced_accuracy"]["value"] > 0.8
