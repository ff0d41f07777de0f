"""Hardware files: what is written is read again, what is wrong is named, and every preset is one."""

from pathlib import Path

import pytest

from lartpc_ds.costs.hardware import ConvolutionRate, Hardware, Link, Links, Rates, load, preset_names, save
from lartpc_ds.errors import UserError


def rates(ranks: int = 1, flops: float = 1e11) -> Rates:
    convolutions = tuple(
        ConvolutionRate(
            precision="bf16", way=way, kernel=3, in_channels=64, out_channels=64, flops_per_second=flops, depthwise=deep
        )
        for way in ("forward", "input", "weight")
        for deep in (False, True)
    )
    return Rates(
        ranks=ranks,
        convolutions=convolutions,
        matmul_flops_per_second={"fp32": flops},
        traffic_bytes_per_second=2e10,
        operators={"bf16": {"native_batch_norm-fixed": 1e10}},
        operator_seconds=1e-5,
        step_seconds=0.01,
        fresh_bytes_per_second=2e9,
    )


def machine(*several: Rates, device: str = "cpu") -> Hardware:
    link = Link(latency_seconds=1e-5, bytes_per_second=1e9)
    links = Links(send=link, all_reduce=link, all_gather=link)
    figures = {"devices_per_node": 2, "memory_bytes": 2**34, "process_bytes": 10**8, "overlaps": False}
    return Hardware(name="mine", source='a "test"', device=device, rates=several, within=links, across=links, **figures)


def test_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    original = machine(rates(1), rates(2, 5e10))
    save(original, path)
    assert load(str(path)) == original
    assert path.read_text().count("\n") < 90, "a line a convolution, for people to read"


CITED = ["a100-nvlink", "aurora", "frontier", "h100", "p100-summitdev", "perlmutter", "polaris", "v100-summit"]


@pytest.mark.parametrize("name", CITED)
def test_presets_are_hardware_and_say_where_figures_are_from(name: str) -> None:
    assert preset_names() == sorted([*CITED, "cpu"])
    preset = load(name)
    assert preset.device == "cuda" and "cited" in preset.source
    for found in preset.rates:
        peak = max(one.flops_per_second for one in found.convolutions)
        assert peak <= max(found.matmul_flops_per_second.values())
    assert (
        preset.within.all_reduce.bytes_per_second > preset.across.all_reduce.bytes_per_second / preset.devices_per_node
    )


def test_every_preset_can_be_read() -> None:
    for name in preset_names():
        assert {one.way for one in load(name).rates[0].convolutions} == {"forward", "input", "weight"}


def test_volta_has_no_fast_bf16() -> None:
    flops = load("v100-summit").rates[0].matmul_flops_per_second
    assert flops["bf16"] == flops["fp32"] < flops["fp16"] / 2


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('device = "cpu"', 'device = "tpu"', "device"),
        ("overlaps = false", "overlaps = false\nspeed = 3", "speed"),
        ("delay_seconds = 0.0", "delay_seconds = 0.2", "delays_per_second and delay_seconds go together"),
        ("delays_per_second = 0.0", "delays_per_second = -1.0", "delays_per_second"),
        ("traffic_bytes_per_second = 20000000000.0", "traffic_bytes_per_second = -1.0", "traffic_bytes_per_second"),
        ('way = "input"', 'way = "forward"', "no rate for the way input"),
        ("[[rates]]", "[[rates]", "not TOML"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path: Path, old: str, new: str, told: str) -> None:
    path = tmp_path / "wrong.toml"
    save(machine(rates()), path)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError) as raised:
        load(str(path))
    assert told in str(raised.value) and "wrong.toml" in str(raised.value)


def test_a_name_that_is_neither_file_nor_preset() -> None:
    with pytest.raises(UserError, match=r"no-such.*presets: .*h100.*calibrate"):
        load("no-such")


def test_more_ranks_than_were_measured_share_what_the_most_had() -> None:
    two = machine(rates(1), rates(2, 5e10))
    assert two.shared_by(1).convolutions[0].flops_per_second == 1e11
    assert two.shared_by(2).convolutions[0].flops_per_second == 5e10
    four = two.shared_by(4)
    assert (four.ranks, four.convolutions[0].flops_per_second) == (4, 2.5e10)
    assert four.matmul_flops_per_second["fp32"] == 2.5e10
    assert four.operators["bf16"]["native_batch_norm-fixed"] == 5e9
    assert four.fresh_bytes_per_second == 1e9
    assert (four.operator_seconds, four.step_seconds) == (2e-5, 0.02)


def test_a_file_without_delays_has_none(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    save(machine(rates()), path)
    path.write_text("\n".join(line for line in path.read_text().splitlines() if not line.startswith("delay")))
    assert load(str(path)) == machine(rates())
    assert load("a100-nvlink").delays_per_second == load("a100-nvlink").delay_seconds == 0


def test_gpus_do_not_share() -> None:
    assert machine(rates(1), device="cuda").shared_by(8) == rates(1)
