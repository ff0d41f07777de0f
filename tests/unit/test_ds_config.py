import copy
import re
from pathlib import Path
from typing import Any

import pytest
from deepspeed.runtime.config import DeepSpeedConfig

from lartpc_ds.config import RunConfig
from lartpc_ds.ds_config import check, complete, find, precision, read
from lartpc_ds.errors import UserError
from lartpc_ds.layout import Layout

FOLDER = Path(__file__).parents[2] / "ds_configs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
NAME = re.compile(r"zero(?P<stage>[0-3])(?P<offload>_offload)?_(?P<precision>fp32|bf16|fp16)")
STAGE_3_KEYS = {"sub_group_size"} | {
    f"stage3_{key}"
    for key in ("prefetch_bucket_size", "param_persistence_threshold", "max_live_parameters", "max_reuse_distance")
}


def tree() -> dict[str, Any]:
    return read("zero2_bf16")


def problems(changed: dict[str, Any]) -> list[str]:
    """Lines of the message; the first names the source."""
    with pytest.raises(UserError) as caught:
        check(changed, "my.json")
    first, *lines = str(caught.value).splitlines()
    assert first == "my.json (DeepSpeed configuration):"
    return [line.strip() for line in lines]


def changed(path: str, value: Any) -> dict[str, Any]:
    whole = tree()
    *sections, key = path.split(".")
    section = whole
    for name in sections:
        section = section.setdefault(name, {})
    section[key] = value
    return whole


def test_every_strategy_is_shipped() -> None:
    strategies = ["zero0", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"]
    assert sorted(f"{strategy}_{kind}" for strategy in strategies for kind in ("bf16", "fp16", "fp32")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_file_says_what_its_name_says_and_nothing_else(name: str) -> None:
    found = read(name)
    check(found, name)
    said = NAME.fullmatch(name)
    assert said is not None
    stage, offload, kind = int(said["stage"]), said["offload"] is not None, said["precision"]

    expected = read("zero0_fp32")  # the plainest; every other is this one, changed as the name says
    zero = expected["zero_optimization"]
    zero["stage"] = stage
    if stage == 3:
        assert all(found["zero_optimization"][key] > 0 for key in STAGE_3_KEYS)
        zero |= {key: read("zero3_fp32")["zero_optimization"][key] for key in STAGE_3_KEYS}
        zero["stage3_gather_16bit_weights_on_model_save"] = False
    if offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": False, "ratio": 1.0}
        expected["zero_force_ds_cpu_optimizer"] = True  # DeepSpeed's own CPU Adam,
        expected["optimizer"]["params"]["torch_adam"] = False  # in place of torch's
    expected["torch_autocast"]["enabled"] = kind != "fp32"
    expected["torch_autocast"]["dtype"] = "float16" if kind == "fp16" else "bfloat16"
    assert found == expected
    assert precision(found) == kind


def test_clipping_and_buckets_are_explicit() -> None:
    plain = read("zero0_fp32")
    assert plain["gradient_clipping"] == 1.0
    assert {"tensorboard", "csv_monitor", "communication_data_type"} <= set(plain)
    assert {"reduce_bucket_size", "allgather_bucket_size", "overlap_comm"} <= set(plain["zero_optimization"])


@pytest.mark.parametrize("name", NAMES)
def test_deepspeed_accepts_every_completed_file(name: str) -> None:
    config = RunConfig.parse({"data": {"batch": 3}, "train": {"max_steps": 9, "accumulate": 2}}, "run")
    parsed = DeepSpeedConfig(complete(read(name), config, Layout(), max_steps=9))
    assert parsed.train_batch_size == 6
    assert parsed.gradient_clipping == 1.0
    assert parsed.zero_optimization_stage == int(name[4])


UNKNOWN = """gradient_clippping zero_optimization.stagee zero_optimization.offload_optimizer.devise torch_autocast.enable
optimizer.parameters optimizer.params.learning_rate scheduler.params.warmup_steps tensorboard.enabld csv_monitor.path
wandb.projekt flops_profiler.depth comms_logger.verbos""".split()


@pytest.mark.parametrize("path", UNKNOWN)
def test_an_unknown_key_is_refused_at_every_level(path: str) -> None:
    assert any(line.startswith(f"{path}: ") and "unknown" in line for line in problems(changed(path, 1)))


def test_an_unknown_parameter_comes_with_the_known_ones() -> None:
    (line,) = problems(changed("optimizer.params.beta", 0.9))
    assert "optimizer.params.beta: unknown for AdamW" in line and "betas" in line and "weight_decay" in line
    (line,) = problems(changed("scheduler.params.warmup", 1))
    assert "scheduler.params.warmup: unknown for WarmupCosineLR" in line and "warmup_num_steps" in line
    (line,) = problems(changed("clipping", 1))
    assert "gradient_clipping" in line


OWNERS = {
    "train_batch_size": "data.batch, train.accumulate and layout.data",
    "train_micro_batch_size_per_gpu": "data.batch",
    "gradient_accumulation_steps": "train.accumulate",
    "activation_checkpointing": "the run TOML",
    "pipeline": "layout.pipe",
    "bf16": "torch_autocast with dtype bfloat16",
    "fp16": "torch_autocast with dtype float16",
}


@pytest.mark.parametrize(("key", "owner"), OWNERS.items())
def test_a_key_with_another_owner_is_refused_naming_it(key: str, owner: str) -> None:
    (line,) = problems(changed(key, {}))
    assert line.startswith(f"{key}: belongs to {owner}") and line.endswith("remove it")


def test_clipping_may_not_be_left_to_deepspeed() -> None:
    without = tree()
    del without["gradient_clipping"]
    assert problems(without) == ["gradient_clipping: Field required"]


def test_every_problem_is_reported_at_once() -> None:
    wrong = changed("optimizer.params.lr", 0)
    wrong |= {"gradient_clipping": -1, "bf16": {}, "typo": 1, "steps_per_print": "often"}
    wrong["zero_optimization"]["stage"] = 5
    wrong["scheduler"]["type"] = "Cosine"
    expected = "bf16 gradient_clipping optimizer.params.lr scheduler.type steps_per_print typo zero_optimization.stage"
    assert sorted(line.partition(":")[0] for line in problems(wrong)) == expected.split()


IMPOSSIBLE = {
    "optimizer": [3],
    "optimizer.type": ["Adamm", "lr_scheduler"],
    "optimizer.params.lr": [0, True, "1e-3", float("nan"), float("inf")],
    "scheduler.type": ["CosineAnnealingLR"],
    "scheduler.params.total_num_steps": ["many", 2.5],
    "torch_autocast.enabled": ["true", 1],
    "torch_autocast.dtype": ["bf16"],
    "zero_optimization": [2],
    "zero_optimization.stage": ["2", True, 4],
    "gradient_clipping": [-1, "1", float("nan")],
    "steps_per_print": [0],
}


@pytest.mark.parametrize(("path", "value"), [(path, value) for path, values in IMPOSSIBLE.items() for value in values])
def test_a_value_that_cannot_work_is_refused(path: str, value: Any) -> None:
    assert any(line.startswith(f"{path}: ") for line in problems(changed(path, value)))


def test_a_torch_optimizer_brings_its_own_parameters() -> None:
    whole = changed("optimizer", {"type": "SGD", "params": {"lr": 0.1, "momentum": 0.9, "nesterov": True}})
    whole["scheduler"] = {"type": "constant", "params": {}}
    before = copy.deepcopy(whole)
    check(whole, "my.json")
    assert whole == before
    whole["optimizer"]["params"]["betas"] = [0.9, 0.99]
    (line,) = problems(whole)
    assert line.startswith("optimizer.params.betas: unknown for SGD; allowed: ") and "momentum" in line


def test_a_name_or_a_path_finds_a_file(tmp_path: Path) -> None:
    assert find("zero0_fp32") == FOLDER / "zero0_fp32.json"
    mine = tmp_path / "mine.json"
    mine.write_text('{"steps_per_print": 1}')
    assert read(str(mine)) == {"steps_per_print": 1}
    with pytest.raises(UserError, match=r"'zero4'.*zero0_bf16.*zero3_offload_fp32"):
        find("zero4")
    with pytest.raises(UserError, match="no such file"):
        find(str(tmp_path / "other.json"))


UNREADABLE = {
    b'{"a": 1,}': "not JSON",
    b"": "not JSON",
    b"\xff\xfe\x00": "not JSON",
    b"[1]": "must hold a JSON object, not list",
    b'{"a": 1, "b": 2, "a": 3}': "key given twice: a$",
    b'{"x": {"b": 1, "b": 1}}': "key given twice: b$",
}


@pytest.mark.parametrize(("content", "message"), UNREADABLE.items())
def test_an_unreadable_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read(str(path))
    assert str(path) in str(caught.value)


def completed(train: dict[str, Any], layout: Layout, start: dict[str, Any] | None = None) -> dict[str, Any]:
    config = RunConfig.parse({"data": {"batch": 4}, "train": {"max_steps": 200, **train}}, "run")
    return complete(tree() if start is None else start, config, layout, max_steps=200)


def test_batches_count_tile_ranks_as_deepspeed_does() -> None:
    found = completed({"accumulate": 3}, Layout(pipe=2, data=5, rows=2, cols=3))
    assert found["train_micro_batch_size_per_gpu"] == 4
    assert found["gradient_accumulation_steps"] == 3
    assert found["train_batch_size"] == 4 * 3 * 5 * 6


@pytest.mark.parametrize(("law", "factor"), [("linear", 6.0), ("sqrt", 6.0**0.5), ("none", 1.0)])
def test_the_learning_rate_grows_with_the_events_of_a_step(law: str, factor: float) -> None:
    start = changed("scheduler", {"type": "WarmupLR", "params": {"warmup_max_lr": 0.002, "warmup_num_steps": "auto"}})
    train = {"accumulate": 3, "lr_scaling": law, "lr_reference_batch": 10}
    found = completed(train, Layout(data=5, rows=2), start)  # 4 x 3 x 5 = 60 events, whatever the tiles
    assert found["optimizer"]["params"]["lr"] == pytest.approx(0.001 * factor)
    assert found["scheduler"]["params"]["warmup_max_lr"] == pytest.approx(0.002 * factor)


def test_auto_is_filled_from_the_length_of_the_run() -> None:
    start = tree()
    before = copy.deepcopy(start)
    filled = completed({}, Layout(), start)["scheduler"]["params"]
    assert start == before
    assert filled == {**before["scheduler"]["params"], "total_num_steps": 200, "warmup_num_steps": 10}
    start["scheduler"]["params"] |= {"total_num_steps": 50, "warmup_num_steps": 0}
    assert completed({}, Layout(), start)["scheduler"] == start["scheduler"]


def test_a_constant_schedule_is_none_for_deepspeed() -> None:
    assert "scheduler" not in completed({}, Layout(), changed("scheduler", {"type": "constant", "params": {}}))
