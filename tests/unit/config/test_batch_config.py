import tomllib
from pathlib import Path
from typing import Any

import pytest

from lartpc_ds.config.run import RunConfig
from lartpc_ds.config.run_folder import RunFolder
from lartpc_ds.errors import UserError


def parse(**batch: Any) -> RunConfig:
    return RunConfig.parse({"train": {"max_steps": 1}, "batch": batch}, "my.toml")


def test_a_whole_section_is_kept_as_written(tmp_path: Path) -> None:
    batch = {
        "account": "neutrino",
        "partition": "gpu",
        "qos": "high",
        "time": "1-12:00:00",
        "nodes": 4,
        "ranks_per_node": 2,
        "cpus_per_rank": 8,
        "gres": "gpu:a100:2",
        "constraint": "[rack1|rack2]&nvme",
        "prologue": ["module load cuda/12.4", 'source "$HOME/my env/bin/activate"'],
        "lines": ["#SBATCH --exclusive", '#SBATCH --comment="two words"'],
        "signal_seconds": 600,
    }
    config = parse(**batch)
    assert config.batch.model_dump(mode="json") == batch
    assert config.batch.ranks == 8
    folder = RunFolder(tmp_path / "run")
    folder.claim()
    folder.write(config, {}, {})
    assert RunConfig.parse(tomllib.loads(folder.config_file.read_text()), "saved") == config


def test_a_run_saved_before_there_was_the_section_still_opens() -> None:
    assert RunConfig.parse({"train": {"max_steps": 1}}, "config.toml") == parse()


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("00:10:00", 600),
        ("2:00:00", 7200),
        ("02:00:01", 7201),
        ("36:30:00", 36 * 3600 + 1800),
        ("1-00:00:00", 86400),
        ("10-23:59:59", 10 * 86400 + 86399),
    ],
)
def test_a_time_is_hours_or_days_and_hours(time: str, seconds: int) -> None:
    assert parse(time=time).batch.time_seconds == seconds


@pytest.mark.parametrize(
    "time",
    ["2:00", "120", "02:60:00", "02:00:60", "1-24:00:00", "-1:00:00", "1-2:00", "00:00:00", "2h", "", "02:00:00 "],
)
def test_another_time_is_refused(time: str) -> None:
    with pytest.raises(UserError, match=r"batch\.time: must be"):
        parse(time=time)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            (key, value)
            for key in ("account", "partition", "qos", "gres", "constraint")
            for value in ("", "a b", "a\nb")
        ),
        ("account", "x #SBATCH"),
        ("partition", "$(reboot)`"),
        ("constraint", '"gpu"'),
        ("nodes", 0),
        ("nodes", "2"),
        ("ranks_per_node", 0),
        ("cpus_per_rank", 0),
        ("signal_seconds", 0),
        ("signal_seconds", 65536),
        ("prologue", ["module load a\nmodule load b"]),
        ("prologue", ["  "]),
        ("lines", ["--exclusive"]),
        ("lines", ["#SBATCH"]),
        ("lines", ["#SBATCH --exclusive\nreboot"]),
        ("lines", ["module load cuda"]),
        ("node", 2),
    ],
)
def test_what_would_make_another_script_is_refused(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"my\.toml:\n  batch\.{key}"):
        parse(**{key: value})


def test_the_signal_must_come_within_the_time() -> None:
    with pytest.raises(UserError, match=r"batch: signal_seconds = 300 is not below time = '00:05:00'"):
        parse(time="00:05:00")
    parse(time="00:05:00", signal_seconds=299)
