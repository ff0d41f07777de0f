"""A made-up machine with round figures."""

from lartpc_ds.costs.hardware import ConvolutionRate, Hardware, Link, Links, Rates

FLOPS_PER_SECOND, BYTES_PER_SECOND = 100e12, 2e12
GIB = 2**30


def links(bytes_per_second: float, latency_seconds: float = 1e-5) -> Links:
    link = Link(latency_seconds=latency_seconds, bytes_per_second=bytes_per_second)
    return Links(send=link, all_reduce=link, all_gather=link)


def rates(ranks: int = 1, operator_seconds: float = 0.0) -> Rates:
    """Every convolution and matrix at one rate, everything else at that of memory."""
    convolutions = tuple(
        ConvolutionRate(
            precision=precision,
            way=way,
            kernel=3,
            in_channels=64,
            out_channels=64,
            flops_per_second=FLOPS_PER_SECOND,
        )
        for precision in ("fp32", "bf16", "fp16")
        for way in ("forward", "input", "weight")
    )
    return Rates(
        ranks=ranks,
        convolutions=convolutions,
        matmul_flops_per_second={"fp32": FLOPS_PER_SECOND, "bf16": FLOPS_PER_SECOND, "fp16": FLOPS_PER_SECOND},
        traffic_bytes_per_second=BYTES_PER_SECOND,
        operator_seconds=operator_seconds,
    )


def machine(memory_bytes: int = 40 * GIB, devices_per_node: int = 4) -> Hardware:
    """Devices with fast links inside a machine and slow ones between machines."""
    return Hardware(
        name="made-up",
        source="round figures, for tests",
        device="cuda",
        devices_per_node=devices_per_node,
        memory_bytes=memory_bytes,
        overlaps=True,
        rates=(rates(),),
        within=links(200e9),
        across=links(20e9),
    )
