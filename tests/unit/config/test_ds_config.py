import copy
from pathlib import Path
from typing import Any

import pytest
from deepspeed.runtime.config import DeepSpeedConfig

from lartpc_ds.config.ds_config import check, complete, find, precision, read, uncompleted
from lartpc_ds.config.run import RunConfig
from lartpc_ds.errors import UserError
from lartpc_ds.layout import Layout

FOLDER = Path(__file__).parents[3] / "ds_configs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


def problems(tree: dict[str, Any]) -> list[str]:
    with pytest.raises(UserError) as caught:
        check(tree, "my.json")
    first, *lines = str(caught.value).splitlines()
    assert first == "my.json (DeepSpeed configuration):"
    return [line.strip() for line in lines]


def changed(path: str, value: Any) -> dict[str, Any]:
    whole = read("zero2_bf16")
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
    strategy, kind = name.rsplit("_", 1)
    expected = read("zero0_fp32")  # the plainest; every other is this one, changed as the name says
    zero = expected["zero_optimization"]
    zero["stage"] = int(name[4])
    if name.startswith("zero3"):
        of_stage_3 = read("zero3_fp32")["zero_optimization"].items()
        zero |= {key: value for key, value in of_stage_3 if key.startswith(("stage3_", "sub_group"))}
    if strategy.endswith("_offload"):
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": False, "ratio": 1.0}
        expected["zero_force_ds_cpu_optimizer"] = True  # DeepSpeed's own CPU Adam,
        expected["optimizer"]["params"]["torch_adam"] = False  # in place of torch's
    expected["torch_autocast"]["enabled"] = kind != "fp32"
    expected["torch_autocast"]["dtype"] = "float16" if kind == "fp16" else "bfloat16"
    assert found == expected
    assert precision(found) == kind


def test_what_deepspeed_would_decide_is_explicit() -> None:
    plain = read("zero0_fp32")
    assert {"gradient_clipping", "tensorboard", "csv_monitor", "communication_data_type"} <= set(plain)
    assert {"reduce_bucket_size", "allgather_bucket_size", "overlap_comm"} <= set(plain["zero_optimization"])
    del plain["gradient_clipping"]  # absent, DeepSpeed clips at 1.0
    assert problems(plain) == ["gradient_clipping: Field required"]


@pytest.mark.parametrize("name", NAMES)
def test_deepspeed_accepts_every_completed_file(name: str) -> None:
    parsed = DeepSpeedConfig(completed(read(name), Layout(), accumulate=2))
    assert (parsed.train_batch_size, parsed.zero_optimization_stage) == (8, int(name[4]))
    assert parsed.gradient_clipping == read(name)["gradient_clipping"]


UNKNOWN = """gradient_clippping zero_optimization.stagee zero_optimization.offload_optimizer.devise
torch_autocast.enable optimizer.parameters optimizer.params.learning_rate scheduler.params.warmup_steps
tensorboard.enabld csv_monitor.path wandb.projekt flops_profiler.depth comms_logger.verbos""".split()


@pytest.mark.parametrize("path", UNKNOWN)
def test_an_unknown_key_is_refused_at_every_level(path: str) -> None:
    assert any(line.startswith(f"{path}: ") and "unknown" in line for line in problems(changed(path, 1)))


KNOWN = {"clip": "gradient_clipping", "optimizer.params.beta": "betas", "scheduler.params.min": "warmup_min_ratio"}


@pytest.mark.parametrize(("path", "known"), KNOWN.items())
def test_an_unknown_key_comes_with_the_known_ones(path: str, known: str) -> None:
    (line,) = problems(changed(path, 1))
    assert line.startswith(f"{path}: unknown") and known in line.partition("allowed: ")[2]


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
    assert [line.partition(owner)[0] for line in problems(changed(key, {}))] == [f"{key}: belongs to "]


def test_every_problem_is_reported_at_once() -> None:
    wrong = changed("optimizer.params.lr", 0)
    wrong |= {"gradient_clipping": -1, "bf16": {}, "typo": 1, "steps_per_print": "often"}
    wrong["zero_optimization"]["stage"] = 5
    expected = "bf16 gradient_clipping optimizer.params.lr steps_per_print typo zero_optimization.stage"
    assert sorted(line.partition(":")[0] for line in problems(wrong)) == expected.split()


IMPOSSIBLE: dict[str, list[Any]] = {
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
    check(changed("optimizer", {"type": "SGD", "params": {"lr": 0.1, "momentum": 0.9}}), "my.json")
    (line,) = problems(changed("optimizer", {"type": "SGD", "params": {"lr": 0.1, "betas": [0.9, 0.99]}}))
    assert line.startswith("optimizer.params.betas: unknown for SGD; allowed: dampening, ")


def test_a_name_or_a_path_finds_a_file(tmp_path: Path) -> None:
    assert find("zero0_fp32") == FOLDER / "zero0_fp32.json"
    (tmp_path / "mine.json").write_text('{"steps_per_print": 1}')
    assert read(str(tmp_path / "mine.json")) == {"steps_per_print": 1}
    with pytest.raises(UserError, match=r"'zero4'.*zero0_bf16.*zero3_offload_fp32"):
        find("zero4")
    with pytest.raises(UserError, match="no such file"):
        find(str(tmp_path / "other.json"))


UNREADABLE = {
    b'{"a": 1,}': "not JSON",
    b"\xff\xfe\x00": "not JSON",
    b"[1]": "must hold a JSON object, not list",
    b'{"a": 1, "b": 2, "a": 3}': "key given twice: a$",
    b'{"x": {"b": 1, "b": 1}}': "key given twice: b$",
}


@pytest.mark.parametrize(("content", "message"), UNREADABLE.items())
def test_an_unreadable_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "mine.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"mine\.json: .*{message}"):
        read(str(tmp_path / "mine.json"))


def completed(start: dict[str, Any], layout: Layout, **train: Any) -> dict[str, Any]:
    config = RunConfig.parse({"data": {"batch": 4}, "train": {"max_steps": 200, **train}}, "run")
    return complete(start, config, layout, max_steps=200)


def test_batches_count_tile_ranks_as_deepspeed_does() -> None:
    found = completed(read("zero2_bf16"), Layout(pipe=2, data=5, rows=2, cols=3), accumulate=3)
    assert (found["train_micro_batch_size_per_gpu"], found["gradient_accumulation_steps"]) == (4, 3)
    assert found["train_batch_size"] == 4 * 3 * 5 * 6


@pytest.mark.parametrize(("law", "factor"), [("linear", 6.0), ("sqrt", 6.0**0.5), ("none", 1.0)])
def test_the_learning_rate_grows_with_the_events_of_a_step(law: str, factor: float) -> None:
    start = changed("scheduler", {"type": "WarmupLR", "params": {"warmup_max_lr": 0.002, "warmup_num_steps": "auto"}})
    found = completed(start, Layout(data=5, rows=2), accumulate=3, lr_scaling=law, lr_reference_batch=10)  # 60 events
    assert found["optimizer"]["params"]["lr"] == pytest.approx(0.001 * factor)
    assert found["scheduler"]["params"]["warmup_max_lr"] == pytest.approx(0.002 * factor)


def test_auto_is_filled_from_the_length_of_the_run() -> None:
    start = read("zero2_bf16")
    before = copy.deepcopy(start)
    filled = completed(start, Layout())["scheduler"]["params"]
    assert start == before
    assert filled == {**before["scheduler"]["params"], "total_num_steps": 200, "warmup_num_steps": 10}
    start["scheduler"]["params"] |= {"total_num_steps": 50, "warmup_num_steps": 0}
    assert completed(start, Layout())["scheduler"] == start["scheduler"]


def test_a_constant_schedule_is_none_for_deepspeed() -> None:
    assert "scheduler" not in completed(changed("scheduler", {"type": "constant", "params": {}}), Layout())


@pytest.mark.parametrize("law", ["linear", "sqrt", "none"])
@pytest.mark.parametrize("layout", [Layout(), Layout(data=5, rows=2), Layout(data=7, cols=3)], ids=str)
@pytest.mark.parametrize("lr", [1e-3, 0.1, 0.0123456, 1 / 3, 2e-5])
@pytest.mark.parametrize(
    "scheduler",
    [
        {"type": "constant", "params": {}},
        {"type": "WarmupLR", "params": {"warmup_max_lr": 0.002, "warmup_num_steps": 3}},
        read("zero2_bf16")["scheduler"],
    ],
    ids=lambda tree: str(tree["type"]),
)
def test_what_was_completed_can_be_asked_for_again(
    law: str, layout: Layout, lr: float, scheduler: dict[str, Any]
) -> None:
    start = changed("scheduler", scheduler)
    start["optimizer"]["params"]["lr"] = lr
    config = RunConfig.parse({"train": {"max_steps": 200, "accumulate": 3, "lr_scaling": law}}, "run")
    given = complete(start, config, layout, max_steps=200)
    asked = uncompleted(given, config, layout, max_steps=200)
    assert complete(asked, config, layout, max_steps=200) == given
    if lr != 1 / 3:  # which nobody has written
        assert asked == start
