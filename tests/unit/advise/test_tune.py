"""A tuning without its jobs: its trials, what a failure is called, what its folder keeps, what a winner gets."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lartpc_ds.advise.search.planner import problem_of
from lartpc_ds.advise.search.search import Plan, Row
from lartpc_ds.advise.short_runs.short_run import shortened
from lartpc_ds.advise.tune.tune_folder import TuneFolder
from lartpc_ds.advise.tune.tune_job import failure_of
from lartpc_ds.advise.tune.tune_trials import Trial, make_trials, named, parse_stages
from lartpc_ds.advise.tune.tune_winner import write_winner
from lartpc_ds.config import recipes
from lartpc_ds.config.run import MemoryConfig
from lartpc_ds.costs.hardware import Hardware
from lartpc_ds.costs.problem import Candidate, Cost, MemoryParts, Problem, TimeParts
from lartpc_ds.errors import UserError
from lartpc_ds.layout import Layout
from lartpc_ds.report.tuning import TrialResult
from tests.machine import GIB, machine

TILES = Candidate(Layout(rows=2), zero=2, memory=MemoryConfig(lean_norm=True))
STAGES = Candidate(Layout(pipe=2), accumulate=4, zero=1)
DATA = Candidate(Layout(data=2), zero=3)


def cost(problem: Problem, candidate: Candidate, hardware: Hardware, ranks_per_node: int) -> Cost:
    weights = GIB // (1 + candidate.zero)
    return Cost(MemoryParts(weights, 0, 0, 0, 0, 0), TimeParts(2.0, 0, 0, 0), candidate.global_batch)


def plan(*candidates: Candidate, fits: bool = True) -> Plan:
    whole = Cost(MemoryParts(3 * GIB, 0, 0, 0, 0, 0), TimeParts(2.0, 0, 0, 0), 1)
    rows = [Row(candidate, whole, fits, True, False) for candidate in candidates]
    return Plan(rows, rows[0] if fits else None, [], 2 * GIB, 2 * GIB, whole)


def trials(found: Plan, *, layouts: int = 3, stages: tuple[int, ...] = (0, 1, 2, 3)) -> tuple[list[Trial], list[str]]:
    config, ds = recipes.load("microboone-full", ["train.max_steps=50"])
    problem = problem_of(config, ds)
    return make_trials(problem, found, machine(), layouts=layouts, stages=stages, ranks_per_node=2, cost=cost)


def test_every_layout_is_tried_with_every_stage_that_goes_with_it() -> None:
    found, left_out = trials(plan(TILES, replace(TILES, zero=3), replace(TILES, batch=2), STAGES, DATA), layouts=2)
    assert [trial.name for trial in found] == [
        *(f"rows 2, lean norms, zero {stage}" for stage in (0, 1, 2, 3)),
        *(f"pipe 2, accumulate 4, zero {stage}" for stage in (0, 1)),
    ]
    assert len(left_out) == 2 and all(told.startswith("pipe 2, accumulate 4, zero") for told in left_out)
    assert "ZeRO-2 does not go with pipeline stages" in left_out[0]
    assert [trial.predicted_peak_bytes for trial in found[:2]] == [GIB, GIB // 2]
    assert found[0].layout == Layout(rows=2) and found[0].config.memory.lean_norm
    assert [trial.ds["zero_optimization"]["stage"] for trial in found] == [0, 1, 2, 3, 0, 1]


def test_an_optimizer_is_not_offloaded_from_stage_0() -> None:
    found, left_out = trials(plan(replace(DATA, offload=True)), stages=(0, 2))
    assert [trial.name for trial in found] == ["data 2, zero 2 offload"]
    assert "ZeRO-0 shares nothing" in left_out[0]


def test_where_nothing_fits_nothing_is_tried() -> None:
    with pytest.raises(UserError, match="Nothing fits"):
        trials(plan(TILES, fits=False))
    with pytest.raises(UserError, match=r"--zero-stages: none goes with.*\n.*ZeRO-3 does not go"):
        trials(plan(STAGES), stages=(3,))


@pytest.mark.parametrize("text", ["", "4", "-1", "0,,1", "one", "0;1", "1.5"])
def test_stages_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="--zero-stages"):
        parse_stages(text)


def test_stages_in_any_order() -> None:
    assert parse_stages("3, 0,1,0") == (0, 1, 3)


def test_names_tell_candidates_apart() -> None:
    one = Candidate(Layout())
    others = [
        replace(one, batch=2),
        replace(one, accumulate=2),
        replace(one, zero=1),
        replace(one, offload=True),
        replace(one, memory=MemoryConfig(stream_strips=4)),
        replace(one, gather_at="never"),
        replace(one, overlap=False),
        replace(one, layout=Layout(pipe=2)),
        replace(one, layout=Layout(pipe=2), cuts=("layer2_0",)),
    ]
    assert len({named(candidate) for candidate in [one, *others]}) == 1 + len(others)


def test_the_short_run_trains_on_all_events_and_evaluates_none() -> None:
    (trial, *_), _ = trials(plan(TILES))
    short = shortened(trial.config, 3)
    assert (short.train.max_steps, short.train.epochs, short.data.split.train) == (4, None, 1.0)
    assert (short.data.split.validation, short.train.eval_every, short.layout) == (0.0, 0, trial.config.layout)


@pytest.mark.parametrize(
    ("report", "told"),
    [
        ("rank 1 (process 7 on a) was killed: out of memory, or from outside; see rank1.log", "out of memory, or"),
        ("the deepspeed launcher was killed, from outside or for lack of memory (exit code 0)", "out of memory, or"),
        (
            "Traceback ...\nRuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried\n\n"
            "rank 0 failed first; the logs of all ranks are in logs",
            "out of memory: RuntimeError: [enforce fail]",
        ),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\nrank 0 failed first", "out of memory: "),
        ("numpy._core._exceptions._ArrayMemoryError: Unable to\nrank 0 failed first; the logs", "out of memory: "),
        ("Traceback ...\nValueError: no\n\nrank 3 failed first; the logs of all ranks", "ValueError: no"),
        ("data.files: is empty", "data.files: is empty"),
    ],
)
def test_a_failure_in_a_line(report: str, told: str) -> None:
    found = failure_of(report)
    assert found.startswith(told) and "\n" not in found and len(failure_of(report * 100)) <= 160


class TestFolder:
    """What a tuning leaves behind and goes on from."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> TuneFolder:
        return TuneFolder(tmp_path / "tune")

    def test_gives_back_what_was_written(self, folder: TuneFolder) -> None:
        found, _ = trials(plan(TILES, STAGES))
        result = TrialResult(found[1].name, 1, 2.0, GIB, 2.5, GIB + 1)
        with folder.claimed():
            folder.write_plan({"steps": 3, "stages": (0, 1)}, ["events.h5"], found)
        folder.append(found[1], result)
        with folder.results_file.open("a") as stream:
            stream.write('{"key": "cut sho')
        assert folder.read_plan({"steps": 3, "stages": (0, 1)}) == (("events.h5",), found)
        assert folder.results() == {found[1].key: result}
        assert len({trial.key for trial in found}) == len(found)

    def test_refuses_another_tuning(self, folder: TuneFolder) -> None:
        with folder.claimed():
            folder.write_plan({"steps": 3, "run": {"data": {"batch": 1}}}, [], [])
        with pytest.raises(UserError, match=r"another tuning:\n  run\.data\.batch: was 1, is 2\n.*another --out"):
            folder.read_plan({"steps": 3, "run": {"data": {"batch": 2}}})

    @pytest.mark.parametrize("content", [b"", b"half", b"{}", b"\xff"])
    def test_refuses_a_damaged_plan(self, folder: TuneFolder, content: bytes) -> None:
        with folder.claimed():
            folder.write_plan({"steps": 3}, [], [])
        folder.plan_file.write_bytes(content)
        with pytest.raises(UserError, match=r"--resume: .*: tune\.json .*another --out"):
            folder.read_plan({"steps": 3})

    def test_refuses_other_events_than_the_first_trials_had(self, folder: TuneFolder) -> None:
        with folder.claimed():
            folder.simulated_file.write_bytes(b"events")
            folder.write_plan({"steps": 3}, [], [])
        folder.read_plan({"steps": 3})
        folder.simulated_file.write_bytes(b"Events")
        with pytest.raises(UserError, match=r"simulated\.h5 has another content"):
            folder.read_plan({"steps": 3})

    def test_a_garbled_result_is_left_out_and_takes_no_other_with_it(self, folder: TuneFolder) -> None:
        found, _ = trials(plan(TILES, STAGES))
        with folder.claimed():
            folder.write_plan({}, [], found)
        results = [TrialResult(trial.name, 1, 2.0, GIB) for trial in found[:2]]
        folder.append(found[0], results[0])
        with folder.results_file.open("ab") as stream:
            stream.write(b'\xff\n[1]\n{"key": "a"}\n{"key": "cut sho')
        folder.append(found[1], results[1])
        assert folder.results() == {trial.key: one for trial, one in zip(found, results, strict=False)}

    def test_is_claimed_once_and_given_up_without_a_plan(self, folder: TuneFolder) -> None:
        with pytest.raises(UserError, match="in vain"), folder.claimed():
            raise UserError("in vain")
        assert not folder.path.exists()
        with folder.claimed():
            folder.write_plan({}, [], [])
        with pytest.raises(UserError, match="--resume"), folder.claimed():
            pass
        assert folder.plan_file.exists()

    def test_is_locked_against_a_second_one(self, folder: TuneFolder) -> None:
        with folder.claimed():
            folder.write_plan({}, [], [])
        with folder.locked(), pytest.raises(UserError, match="a tuning is running"), folder.locked():
            pass


def test_the_winner_is_written_once_and_overwrites_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = trials(plan(TILES))
    winner = found[1]
    (tmp_path / "ds_configs").mkdir()
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    taken = tmp_path / "ds_configs" / "zero1_bf16_tuned-mine.json"
    taken.write_text("mine")
    toml, path = write_winner(winner, "runs/mine.toml", tmp_path / "out")
    assert (toml, path) == (tmp_path / "out" / "mine-tuned.toml", taken.with_name("zero1_bf16_tuned-mine-2.json"))
    assert taken.read_text() == "mine"
    config, ds = recipes.load(str(toml))
    assert config.model_copy(update={"train": winner.config.train}) == winner.config
    assert ds == winner.ds == json.loads(path.read_text())
    assert write_winner(winner, "runs/mine.toml", tmp_path / "out") == (toml, path)
    assert len(list((tmp_path / "ds_configs").iterdir())) == 2


def test_without_ds_configs_the_winner_stays_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = trials(plan(replace(DATA, offload=True)), stages=(3,))
    monkeypatch.chdir(tmp_path)
    _, path = write_winner(found[0], "microboone-full", tmp_path)
    assert path == tmp_path / "zero3_offload_bf16_tuned-microboone-full.json"
