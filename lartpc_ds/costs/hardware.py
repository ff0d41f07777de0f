"""A machine is described by rates, latencies and sizes, which `lartpc-ds calibrate` measures or a preset gives.

They lie in a file of TOML, so that a user reads and corrects it. Rates are those of one rank while `ranks` of them
share the machine: two ranks on two cores have half the arithmetic each, but not half the memory traffic, so both are
measured. Rejected: one peak figure with an efficiency, because a stem of three channels reaches a tenth of what a
convolution of 256 does, and the stem is where whole events spend their time.

On a CPU a large result costs its pages, too: glibc takes what is above 32 MiB from the kernel anew each time, gives the
top of its heap back after each step, and the kernel fills what it gives with zeros, which takes longer than most
operators on it. Rates are therefore those in memory that is in use already, and pages are counted apart, for every map;
one rate for both would be wrong by five, either for a piece or for a map.
"""

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import tomli_w
from pydantic import Field, ValidationError, model_validator

from lartpc_ds.config.section import NonNegative, Positive, Section
from lartpc_ds.errors import UserError

__all__ = ["ConvolutionRate", "Hardware", "Link", "Links", "Precision", "Rates", "Way", "load", "preset_names", "save"]

_PRESETS = Path(__file__).parent / "presets"

Rate = Annotated[float, Field(gt=0)]
Seconds = Annotated[float, Field(ge=0)]
PerSecond = Annotated[float, Field(ge=0)]
Precision = Literal["fp32", "bf16", "fp16"]
Way = Literal["forward", "input", "weight"]
_SMALLEST_MAP = 4 << 20
"""What is larger lives through a pass, and has new pages in each step; what is smaller takes the place of others. With
malloc's own 32 MiB (M_MMAP_THRESHOLD in mallopt(3)) steps of tiles came out a tenth too fast."""


class Link(Section):
    """Messages of one kind, of which n bytes take latency_seconds + n / bytes_per_second."""

    latency_seconds: Seconds
    bytes_per_second: Rate


class Links(Section):
    """Messages between two ranks (`send`), and collectives as `costs.roofline` counts them (ring: 2 (n - 1) / n)."""

    send: Link
    all_reduce: Link
    all_gather: Link


class ConvolutionRate(Section):
    """One measured convolution; others take the rate of the most similar one."""

    precision: Precision
    way: Way
    """The forward pass, or the gradient of the input or of the weight."""
    kernel: Positive
    in_channels: Positive
    out_channels: Positive
    depthwise: bool = False
    flops_per_second: Rate
    scratch_share: Annotated[float, Field(ge=0)] = 0.0
    """What the kernel takes for itself while it runs, over the bytes of the two maps it works on."""


class Rates(Section):
    """The rates of one rank, while `ranks` ranks share a machine and all are busy."""

    ranks: Positive
    matmul_flops_per_second: dict[Precision, Rate]
    traffic_bytes_per_second: Rate
    """What an operator reads and writes per second, if it is not in `operators`."""
    operator_seconds: Seconds
    """The time that any operator takes, however small its tensors are."""
    step_seconds: Seconds = 0.0
    """The engine's own work: the time of an optimizer step beside its passes, in a network of few weights."""
    fresh_bytes_per_second: Rate | None = None
    """The rate at which the system gives memory for a result of more than `fresh_map_bytes`; none: it costs nothing."""
    cached_gain: Annotated[float, Field(ge=1)] = 1.0
    """How much faster an operator is on what a cache holds."""
    fresh_map_bytes: NonNegative = _SMALLEST_MAP
    convolutions: tuple[ConvolutionRate, ...]
    operators: dict[Precision, dict[str, Rate]] = Field(default={})
    """Bytes per second by the precision of the result and the operator's name, `costs.roofline.OperatorCall.name`."""

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        missing = set(get_args(Way)) - {one.way for one in self.convolutions}
        if missing:
            raise ValueError(f"convolutions has no rate for the way {', '.join(sorted(missing))}")
        if not self.matmul_flops_per_second:
            raise ValueError("matmul_flops_per_second must not be empty")
        return self

    def scaled(self, ranks: int) -> Self:
        """The rates for `ranks` ranks that share what `self.ranks` have."""
        share = self.ranks / ranks
        fresh = self.fresh_bytes_per_second
        return self.model_copy(
            update={
                "ranks": ranks,
                "convolutions": tuple(
                    one.model_copy(update={"flops_per_second": one.flops_per_second * share})
                    for one in self.convolutions
                ),
                "matmul_flops_per_second": {k: v * share for k, v in self.matmul_flops_per_second.items()},
                "traffic_bytes_per_second": self.traffic_bytes_per_second * share,
                "fresh_bytes_per_second": None if fresh is None else fresh * share,
                "operators": {
                    precision: {name: rate * share for name, rate in table.items()}
                    for precision, table in self.operators.items()
                },
                "operator_seconds": self.operator_seconds / share,
                "step_seconds": self.step_seconds / share,
            }
        )


class Hardware(Section):
    """A machine, or many equal ones."""

    name: str
    source: str
    """Where the figures are from: measured when and how, or cited."""
    device: Literal["cpu", "cuda"]
    devices_per_node: Positive
    """On a CPU, how many ranks share the machine's cores well."""
    memory_bytes: Positive
    """The memory of a device; on a CPU that of the whole machine, which its ranks share."""
    process_bytes: NonNegative = 0
    """What a rank has at its peak beside tensors and scratch: libraries, buffers of messages, threads."""
    reserved_bytes: NonNegative = 0
    """The part of a device's memory that no tensor can have, such as a CUDA context."""
    overlaps: bool
    """Do messages travel while the device computes? On a CPU the same cores copy them."""
    delays_per_second: PerSecond = 0.0
    """How often a rank that computes is held up at random, by a stalled read or the system; a step waits for it."""
    delay_seconds: Seconds = 0.0
    """How long such a delay is in the mean; 0, like no delays, says that all ranks are always equally fast."""
    rates: tuple[Rates, ...]
    within: Links
    """Messages between ranks of one machine."""
    across: Links
    """Messages between machines; bytes_per_second are those of a whole machine, all its ranks together."""

    @model_validator(mode="after")
    def _has_rates(self) -> Self:
        if not self.rates:
            raise ValueError("rates must not be empty; write the file with `lartpc-ds calibrate`")
        return self

    @model_validator(mode="after")
    def _delays_have_a_length(self) -> Self:
        if bool(self.delays_per_second) != bool(self.delay_seconds):
            raise ValueError("delays_per_second and delay_seconds go together; give both, or none for no delays")
        return self

    def shared_by(self, ranks: int) -> Rates:
        """The rates of a rank while `ranks` share a machine: measured for the nearest number, and scaled to it."""
        nearest = min(self.rates, key=lambda rates: (abs(rates.ranks - ranks), rates.ranks))
        if self.device == "cuda" or nearest.ranks >= ranks:
            return nearest
        return nearest.scaled(ranks)


def preset_names() -> list[str]:
    """Machines that need no calibration."""
    return sorted(path.stem for path in _PRESETS.glob("*.toml"))


def load(name: str) -> Hardware:
    """Read a preset by its name, or a file.

    Raises:
        UserError: neither, or not what `Hardware` describes; names every problem.
    """
    path = _PRESETS / f"{name}.toml"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        raise UserError(
            f"--hardware {name!r}: no such file, and no preset of that name; presets: {', '.join(preset_names())}; "
            "`lartpc-ds calibrate` writes a file for this machine"
        )
    try:
        tree = tomllib.loads(path.read_text())
        return Hardware.model_validate_json(json.dumps(tree, default=str))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not TOML: {error}") from None
    except ValidationError as error:
        problems = [f"  {'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise UserError("\n".join([f"{path}:", *problems])) from None


def save(hardware: Hardware, path: Path) -> None:
    """Write what `load` reads, with one line per convolution, because people read it."""
    tree = hardware.model_dump(mode="json", exclude_none=True)
    parts = [tomli_w.dumps({key: value for key, value in tree.items() if key != "rates"})]
    for rates in tree["rates"]:
        tables = {key: value for key, value in rates.items() if isinstance(value, dict)}
        figures = {key: value for key, value in rates.items() if key not in {*tables, "convolutions"}}
        rows = "".join(f"    {_inline(row)},\n" for row in rates["convolutions"])
        parts += [
            "[[rates]]\n" + tomli_w.dumps(figures) + f"convolutions = [\n{rows}]\n",
            tomli_w.dumps({"rates": tables}),
        ]
    path.write_text("\n".join(parts))


def _inline(row: dict[str, Any]) -> str:
    told = ", ".join(f"{key} = {json.dumps(value)}" for key, value in row.items() if value is not False)
    return f"{{ {told} }}"
