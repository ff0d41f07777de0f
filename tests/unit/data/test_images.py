import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lartpc_ds.data.event import Event, EventId, Plane
from lartpc_ds.data.files import open_files
from lartpc_ds.data.images import Preprocessing, densify, isolated_pixels, lit_pixels
from lartpc_ds.errors import UserError


def whole_image(event: Event, pre: Preprocessing) -> np.ndarray:
    """The same by the obvious way: fill, pad, sum blocks in float64, cut low pixels and lone ones, clip."""
    planes = []
    for plane in event.planes:
        full = np.zeros(pre.image_shape)
        offset = (pre.image_shape[0] - plane.shape[0]) // 2
        dense = np.zeros(plane.shape)
        dense.reshape(-1)[plane.ids] = plane.values
        full[offset : offset + plane.shape[0], : plane.shape[1]] = dense
        blocks = [np.arange(0, size, block) for size, block in zip(pre.image_shape, pre.downsample, strict=True)]
        image = np.add.reduceat(np.add.reduceat(full, blocks[0], axis=0), blocks[1], axis=1)
        image = np.where(image < pre.threshold, 0, image) if pre.threshold else image
        lit = image != 0
        for row, col in np.argwhere(lit).tolist():
            if lit[max(row - 2, 0) : row + 3, max(col - 2, 0) : col + 3].sum() < pre.isolated:
                image[row, col] = 0
        planes.append(image if pre.saturate is None else np.minimum(image, pre.saturate))
    return np.stack(planes)


SETTINGS = [
    Preprocessing((9, 10)),
    Preprocessing((11, 13)),
    Preprocessing((11, 13), (2, 3)),
    Preprocessing((9, 10), (4, 1), threshold=15),
    Preprocessing((10, 11), (1, 7), threshold=10, saturate=30.5),
    Preprocessing((9, 10), (9, 10)),
    Preprocessing((9, 10), isolated=6),
    Preprocessing((11, 10), (2, 1), threshold=20, isolated=4, saturate=25.5),
    Preprocessing((11, 13), (1, 2), threshold=20, isolated=4),
    Preprocessing((9, 10), (2, 1), isolated=9),
]


@pytest.mark.parametrize("pre", SETTINGS)
def test_whole_image(make_event, pre):
    image = densify(make_event(3), pre)
    assert image.dtype == np.float32 and image.shape == (2, *pre.shape)
    np.testing.assert_allclose(image, whole_image(make_event(3), pre), rtol=1e-6, atol=1e-5)
    assert np.count_nonzero(image) > 0


@pytest.mark.parametrize("pre", SETTINGS)
def test_every_tile_is_exactly_the_slice_of_the_whole(make_event, pre):
    event = make_event(4)
    whole = densify(event, pre)
    rows, cols = (list(itertools.combinations_with_replacement(range(size + 1), 2)) for size in pre.shape)
    for (row0, row1), (col0, col1) in itertools.product(rows, cols):
        tile = densify(event, pre, (row0, row1), (col0, col1))
        np.testing.assert_array_equal(tile, whole[:, row0:row1, col0:col1], strict=True)


@pytest.mark.parametrize("pre", [pre for pre in SETTINGS if pre.isolated])
def test_the_settings_drop_some_lit_pixels_and_keep_some(make_event, pre):
    for number in (3, 4):
        event = make_event(number)
        dropped = [isolated_pixels(plane, pre) for plane in event.planes]
        for ((_, values), mask), (flat, kept) in zip(dropped, lit_pixels(event, pre), strict=True):
            assert values[~mask].tolist() == kept.tolist() and len(flat) == len(kept)
        count = sum(mask.sum() for _, mask in dropped)
        assert 0 < count < sum(len(mask) for _, mask in dropped)


@pytest.mark.parametrize("pre", SETTINGS)
@pytest.mark.parametrize("tile", [(None, None), ((1, 1), (0, 1)), ((0, 1), (1, 2))])
def test_lit_pixels_are_the_non_zero_pixels_of_the_image(make_event, pre, tile):
    if pre.shape == (1, 1):
        tile = (None, None)
    event = make_event(4)
    image = densify(event, pre, *tile)
    for (flat, values), plane in zip(lit_pixels(event, pre, *tile), image, strict=True):
        assert flat.tolist() == np.flatnonzero(plane).tolist()
        assert values.tolist() == plane.reshape(-1)[flat].tolist() and values.dtype == np.float32


def test_isolated_acts_after_sum_and_threshold_on_all_pixels_at_once():
    ids = np.array([0, 1, 2, 20, 24, 27, 30])  # wire 0: ticks 0, 1, 2; wire 1: ticks 0, 4, 7, 10
    plane = Plane(0, (2, 20), ids, np.array([3, 3, 2, 9, 9, 9, 9], np.float32))
    event = Event(EventId("a.h5", 0, 1, 1, 1), (plane,), np.zeros(0))

    def kept(*options, **more) -> list[list[int]]:
        return np.argwhere(densify(event, Preprocessing((2, 20), *options, **more))[0]).tolist()

    assert kept(isolated=3) == [[0, 0], [0, 1], [0, 2], [1, 0]]
    assert kept(isolated=2, threshold=3) == [[0, 0], [0, 1], [1, 0]]
    assert kept(isolated=3, threshold=9) == [], "what is below the threshold is no neighbour"
    # summed, the columns are 0 and 1 on wire 0; 0, 2, 3 and 5 on wire 1
    assert kept((1, 2), isolated=3) == [[0, 0], [0, 1], [1, 0], [1, 2], [1, 3]]
    assert kept((1, 2), isolated=5) == [[0, 1], [1, 2]]
    narrow = Plane(1, (1, 20), np.array([5]), np.array([9], np.float32))
    both = Event(event.id, (plane, narrow), event.particles)
    assert not densify(both, Preprocessing((2, 20), isolated=2))[1].any(), "a pixel of another plane is no neighbour"


def test_empty_events_have_no_lit_pixels(make_event):
    event = make_event(1, num_pixels=0)
    for pre in (Preprocessing((9, 10), isolated=3), Preprocessing((9, 10), (2, 3), threshold=5)):
        assert [len(values) for _, values in lit_pixels(event, pre)] == [0, 0]
        assert not densify(event, pre).any()


def test_narrow_plane_is_centred_and_starts_at_tick_0():
    planes = tuple(
        Plane(number, shape, np.array([0, shape[0] * shape[1] - 1]), np.array([1, 2], np.float32))
        for number, shape in enumerate([(2, 3), (5, 4)])
    )
    event = Event(EventId("a.h5", 0, 1, 1, 1), planes, np.zeros(0))
    image = densify(event, Preprocessing((5, 6)))
    # 3 spare wires: one below, two above
    assert np.argwhere(image).tolist() == [[0, 1, 0], [0, 2, 2], [1, 0, 0], [1, 4, 3]]


def test_threshold_acts_after_the_sum_and_keeps_what_equals_it():
    plane = Plane(0, (2, 2), np.arange(4), np.array([-3, 2, 1, 5], np.float32))
    event = Event(EventId("a.h5", 0, 1, 1, 1), (plane,), np.zeros(0))
    assert densify(event, Preprocessing((2, 2))).tolist() == [[[-3, 2], [1, 5]]]
    assert densify(event, Preprocessing((2, 2), (1, 2), threshold=6)).tolist() == [[[0], [6]]]
    assert densify(event, Preprocessing((2, 2), (1, 2), threshold=6.5)).tolist() == [[[0], [0]]]
    assert densify(event, Preprocessing((2, 2), saturate=1.5)).tolist() == [[[-3, 1.5], [1, 1.5]]]


@pytest.mark.parametrize(("shape", "plane"), [((8, 10), "plane 1 has 9 x 10"), ((9, 9), "plane 0 has 6 x 10")])
def test_plane_larger_than_the_image(make_event, shape, plane):
    message = (
        rf"made: event 5, {plane} wires x ticks, more than the image of {shape[0]} x {shape[1]}; set data\.detector"
    )
    with pytest.raises(UserError, match=message):
        densify(make_event(5), Preprocessing(shape))


def test_real_event(real_events):
    files = open_files([str(real_events / "*.h5")])
    event = files.read(1)
    image = densify(event, Preprocessing(files.largest_plane))
    assert image.shape == (3, 2048, 1280)
    assert np.count_nonzero(image, axis=(1, 2)).tolist() == [25094, 23599, 10191]
    np.testing.assert_allclose(
        image.sum(axis=(1, 2), dtype=np.float64), [623114.674, 657602.586, 617714.225], atol=1e-3
    )
    half = densify(event, Preprocessing(files.largest_plane, (2, 5)))
    np.testing.assert_allclose(half.sum(dtype=np.float64), image.sum(dtype=np.float64), rtol=1e-6)
    files.close()


@pytest.mark.parametrize(("downsample", "threshold"), [((1, 1), 10.0), ((4, 2), 40.0)])
def test_isolated_pixels_of_a_real_event_are_those_of_an_average_pool(real_events, downsample, threshold):
    files = open_files([str(real_events / "*.h5")])
    event, shape = files.read(1), files.largest_plane
    files.close()
    before = torch.from_numpy(densify(event, Preprocessing(shape, downsample, threshold)))
    counts = (F.avg_pool2d((before != 0).float(), 5, 1, 2) * 25).round()
    after = densify(event, Preprocessing(shape, downsample, threshold, 3))
    np.testing.assert_array_equal(after, (before * (counts >= 3)).numpy())
    assert 100 < np.count_nonzero(before) - np.count_nonzero(after) < 3000
