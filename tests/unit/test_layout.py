import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lartpc_ds.errors import UserError
from lartpc_ds.layout import Layout, tile_bounds
from tests.examples import examples

SETTINGS = examples(200)


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


layouts = st.builds(Layout, *(st.integers(1, 5) for _ in range(4)))


@SETTINGS
@given(layouts)
def test_ranks_and_coordinates_are_one_to_one(layout: Layout) -> None:
    places = [layout.coordinates(rank) for rank in range(layout.world_size)]
    assert len(set(places)) == layout.world_size
    assert [layout.rank(at) for at in places] == list(range(layout.world_size))


@SETTINGS
@given(layouts)
def test_groups_part_the_ranks_and_cross_in_one_rank(layout: Layout) -> None:
    for rank in range(layout.world_size):
        at, tile, data = layout.coordinates(rank), layout.tile_group(rank), layout.data_group(rank)
        assert set(tile) & set(data) == {rank}
        assert tile.index(rank) == at.row * layout.cols + at.col and data.index(rank) == at.data
        assert len(tile) == layout.tiles and len(data) == layout.data
        assert {layout.tile_group(one) for one in tile} == {tile}
        assert {layout.data_group(one) for one in data} == {data}
        assert {(layout.coordinates(one).pipe, layout.coordinates(one).data) for one in tile} == {(at.pipe, at.data)}
        assert {layout.coordinates(one)._replace(data=at.data) for one in data} == {at}


@SETTINGS
@given(layouts)
def test_a_stage_and_a_pipe_cross_in_one_rank(layout: Layout) -> None:
    for rank in range(layout.world_size):
        at, stage, pipe = layout.coordinates(rank), layout.stage_group(rank), layout.pipe_group(rank)
        assert set(stage) & set(pipe) == {rank} and pipe.index(rank) == at.pipe
        assert len(stage) * layout.pipe == layout.world_size and len(pipe) == layout.pipe
        assert set(layout.tile_group(rank)) | set(layout.data_group(rank)) <= set(stage)
        assert {layout.coordinates(one).pipe for one in stage} == {at.pipe}
        assert {layout.coordinates(one)._replace(pipe=at.pipe) for one in pipe} == {at}


@SETTINGS
@given(st.integers(1, 20_000), st.integers(1, 16))
def test_tiles_cover_the_axis_in_nearly_equal_parts(size: int, parts: int) -> None:
    if size < parts:
        with pytest.raises(UserError, match=f"{size} pixels cannot be cut into {parts} tiles"):
            tile_bounds(size, parts)
        return
    bounds = tile_bounds(size, parts)
    assert (bounds[0], bounds[-1], len(bounds)) == (0, size, parts + 1)
    lengths = [stop - start for start, stop in itertools.pairwise(bounds)]
    assert min(lengths) >= 1
    # rounding both ends to the grain, at most a fiftieth of a fair share, or to a whole pixel
    assert max(lengths) <= max(size / parts * 1.02, size / parts + 1)


@pytest.mark.parametrize(("size", "parts", "grain"), [(9600, 6, 32), (3456, 2, 32), (3600, 4, 16), (517, 2, 4)])
def test_large_tiles_start_where_strides_do(size: int, parts: int, grain: int) -> None:
    assert all(bound % grain == 0 for bound in tile_bounds(size, parts)[1:-1])
