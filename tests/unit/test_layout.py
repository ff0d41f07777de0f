import itertools

import pytest

from lartpc_ds.errors import UserError
from lartpc_ds.layout import Layout


@pytest.mark.parametrize(
    "layout", [Layout(), Layout(2, 3, 2, 2), Layout(data=4), Layout(1, 2, 3, 1), Layout(3, 1, 1, 2)]
)
def test_the_rightmost_axis_varies_fastest(layout: Layout) -> None:
    axes = (range(size) for size in (layout.pipe, layout.data, layout.rows, layout.cols))
    coordinates = list(itertools.product(*axes))  # in rank order
    assert layout.world_size == len(coordinates)
    assert [layout.data_rank(rank) for rank in range(layout.world_size)] == [data for _, data, _, _ in coordinates]


@pytest.mark.parametrize("rank", [-1, 12])
def test_a_rank_outside_the_world_is_our_bug(rank: int) -> None:
    with pytest.raises(AssertionError):
        Layout(1, 3, 2, 2).data_rank(rank)


@pytest.mark.parametrize(
    ("devices", "axes", "expected"),
    [
        (1, {}, Layout()),
        (6, {}, Layout(data=6)),
        (12, {"rows": 2, "cols": 3}, Layout(1, 2, 2, 3)),
        (8, {"pipe": 2, "data": 4}, Layout(2, 4, 1, 1)),
    ],
)
def test_data_takes_the_ranks_that_are_left(devices: int, axes: dict[str, int], expected: Layout) -> None:
    assert Layout.fit(devices, **axes) == expected


@pytest.mark.parametrize(
    ("devices", "axes", "message"),
    [
        (3, {"data": 2}, r"data 2 .* needs 2 ranks, but --devices is 3"),
        (1, {"data": 2}, r"data 2 .* needs 2 ranks, but --devices is 1"),
        (5, {"rows": 2}, r"rows 2 .* needs 2 ranks or a multiple, but --devices is 5"),
        (3, {"rows": 2, "cols": 2}, r"needs 4 ranks or a multiple, but --devices is 3"),
        (0, {}, r"needs 1 ranks or a multiple, but --devices is 0"),
    ],
)
def test_axes_that_do_not_fill_the_devices_are_refused(devices: int, axes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Layout.fit(devices, **axes)


def test_a_layout_reads_as_the_product_of_its_axes() -> None:
    assert str(Layout(2, 3, 4, 5)) == "pipe 2 x data 3 x rows 4 x cols 5"
