"""A calibration is shown by the figures that decide most, in one column for each number of ranks."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from lartpc_ds.costs.hardware import Hardware, Link, Rates

__all__ = ["print_hardware"]


def print_hardware(console: Console, hardware: Hardware) -> None:
    """Print the rates of a rank while so many share the machine, and then the links."""
    table = Table(box=None, pad_edge=False)
    table.add_column("per rank")
    for rates in hardware.rates:
        table.add_column("alone" if rates.ranks == 1 else f"of {rates.ranks}", justify="right")
    rows = [dict(_figures(rates)) for rates in hardware.rates]
    for name in rows[0]:
        table.add_row(name, *(row[name] for row in rows))
    console.print(table)
    links = Table(box=None, pad_edge=False)
    for column in ("messages", "within a machine", "between machines"):
        links.add_column(column, justify="left" if column == "messages" else "right")
    for kind in ("send", "all_reduce", "all_gather"):
        links.add_row(kind, _link(getattr(hardware.within, kind)), _link(getattr(hardware.across, kind)))
    console.print(links)
    console.print(f"a process has {hardware.process_bytes / 2**20:.0f} MiB beside its tensors")
    console.print(hardware.source, markup=False, highlight=False, soft_wrap=True)


def _figures(rates: Rates) -> Iterator[tuple[str, str]]:
    for one in rates.convolutions:
        if one.way == "forward" and (one.kernel in (3, 7)) and one.in_channels in (3, 64, 96, 512):
            kind = "depthwise " if one.depthwise else ""
            name = f"{kind}convolution {one.kernel} x {one.kernel}, {one.in_channels} to {one.out_channels}"
            yield f"{name}, {one.precision}", _flops(one.flops_per_second)
    for precision, flops in rates.matmul_flops_per_second.items():
        yield f"matrix product, {precision}", _flops(flops)
    for precision, table in rates.operators.items():
        for name in ("add", "native_batch_norm"):
            if name in table:
                yield f"{name}, {precision}", f"{table[name] / 1e9:.3g} GB/s"
    fresh = rates.fresh_bytes_per_second
    yield "pages of large results", "no cost" if fresh is None else f"{fresh / 1e9:.3g} GB/s"
    yield "any operator", f"{rates.operator_seconds * 1e6:.3g} us"
    yield "the engine's step", f"{rates.step_seconds * 1e3:.3g} ms"


def _flops(value: float) -> str:
    return f"{value / 1e9:.4g} GFLOP/s"


def _link(link: Link) -> str:
    return f"{link.latency_seconds * 1e6:.3g} us, {link.bytes_per_second / 1e9:.3g} GB/s"
