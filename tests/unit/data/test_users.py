import pickle
import sys
from types import ModuleType

import numpy as np
import pytest

from lartpc_ds.data.dataset import EventDataset
from lartpc_ds.data.users import UserImages, check_images
from lartpc_ds.errors import UserError

SHAPE = (2, 41, 53)


class Dense:
    """As a user writes it."""

    image_shape = SHAPE
    classes = ("background", "track")

    def __len__(self):
        return 5

    def read(self, index, rows, cols):
        whole = np.random.default_rng(index).normal(size=SHAPE).astype(np.float32)
        return whole[:, slice(*rows), slice(*cols)], self.target(whole, index, rows, cols)

    def target(self, whole, index, rows, cols):
        return (whole[0, slice(*rows), slice(*cols)] > 0).astype(np.int16)


class Labelled(Dense):
    labels = (0, 1, -7, 0, 1)

    def target(self, whole, index, rows, cols):
        return np.int32(max(self.labels[index], 0))


class Own(Dense):
    def target(self, whole, index, rows, cols):
        return whole[0, slice(*rows), slice(*cols)] * 2


@pytest.fixture
def target(monkeypatch):
    """The path of an object in a module."""

    def name(images):
        module = ModuleType("my_images_for_test")
        module.name = images
        monkeypatch.setitem(sys.modules, "my_images_for_test", module)
        return "my_images_for_test:name"

    return name


def opened(path, *, own_loss=False):
    source = UserImages.open(path)
    check_images(source, own_loss=own_loss)
    return source


def changed(base, **attributes):
    return type("Changed", (base,), attributes)


@pytest.mark.parametrize("images", [Dense, Dense(), lambda: Dense()], ids=["class", "object", "function"])
def test_an_object_or_what_makes_one(target, images):
    source = opened(target(images))
    assert (source.task, source.image_shape, source.recorded_shape) == ("pixels", SHAPE, SHAPE[1:])
    assert source.classes == ("background", "track") and source.labels is None and len(source) == 5
    assert [(one.file, one.index) for one in source.ids()] == [("my_images_for_test:name", k) for k in range(5)]


def test_labels_make_it_a_classification(target):
    source = opened(target(Labelled))
    assert source.task == "events" and source.labels.tolist() == [0, 1, -1, 0, 1]
    assert source.read(1, (0, 3), (0, 3))[1] == 1


def test_other_targets_need_a_loss_of_the_users_own(target):
    path = target(Own)
    assert opened(path, own_loss=True).task == "own"
    with pytest.raises(UserError, match=r"targets are float32 of \(32, 32\); expected an int array.*labels.*loss_tar"):
        opened(path)


def test_it_is_made_anew_in_another_process(target):
    made = []
    path = target(lambda: made.append(1) or Dense())
    source = opened(path)
    again = pickle.loads(pickle.dumps(source))
    assert len(made) == 2 and (again.task, again.ids()) == (source.task, source.ids())


def failing(message):
    def fail(self, *_):
        raise ZeroDivisionError(message)

    return fail


def image_of(change):
    def read(self, index, rows, cols):
        image, target = Dense.read(self, index, rows, cols)
        return change(image), target

    return read


def target_of(change):
    return lambda self, whole, index, rows, cols: change(Dense.target(self, whole, index, rows, cols))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"image_shape": (41, 53)}, r"image_shape must be \(channels, rows, columns\)"),
        ({"image_shape": (2, 41, 0)}, r"image_shape"),
        ({"image_shape": (2, 41, 5.0)}, r"image_shape"),
        ({"classes": "track"}, r"classes must be a sequence of names"),
        ({"classes": ("a", "a")}, r"classes"),
        ({"classes": ()}, r"classes"),
        ({"__len__": lambda self: 0}, r"has no images"),
        ({"__len__": failing("no length")}, r"len\(\) of it: ZeroDivisionError at .*test_users\.py:\d+: no length"),
        ({"labels": (0, 1)}, r"labels must be 5 ints"),
        ({"labels": (0.0,) * 5}, r"labels must be 5 ints"),
        ({"labels": (0, 1, 2, 0, 0)}, r"labels go from 0 to 2; expected 0 to 1"),
        ({"read": 3}, r"read must be a method"),
        ({"read": failing("no disk")}, r"read\(0, .*\): ZeroDivisionError at .*test_users\.py:\d+: no disk"),
        ({"read": lambda self, *_: 3}, r"must return \(image, target\), but returns int"),
        (
            {"read": image_of(lambda x: x.astype(np.float64))},
            r"must be a float32 array of \(2, 32, 32\), but is float64",
        ),
        (
            {"read": image_of(lambda x: x[:, 1:])},
            r"must be a float32 array of \(2, 32, 32\), but is float32 of \(2, 31",
        ),
        ({"read": image_of(lambda x: x.tolist())}, r"is list"),
        ({"read": image_of(lambda x: x / np.float32(0))}, r"not finite"),
        ({"read": image_of(lambda x: x[:, ::-1])}, r"differs from the same part of read"),
        ({"target": target_of(lambda y: y[::-1])}, r"differs from the same part of read"),
        ({"target": target_of(lambda y: y + 1)}, r"the target holds 2; there are 2 classes.*0 to 1.*negative"),
        ({"target": target_of(lambda y: y[1:])}, r"targets are int16 of \(31, 32\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_what_is_wrong_is_named(target, attributes, message):
    with pytest.raises(UserError, match=rf"data\.target = 'my_images_for_test:name'.*{message}"):
        opened(target(changed(Dense, **attributes)()))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (
            {"target": Dense.target},
            r"must be an int, the class of the image, but is int16 of .*remove the attribute labels",
        ),
        ({"target": lambda *_: True}, r"must be an int, the class of the image, but is bool"),
        ({"target": lambda *_: 1}, r"the target is 1, but labels\[0\] is 0"),
    ],
)
def test_a_class_that_does_not_fit_is_named(target, attributes, message):
    with pytest.raises(UserError, match=message):
        opened(target(changed(Labelled, **attributes)))


@pytest.mark.parametrize("name", ["__len__", "image_shape", "classes", "read"])
def test_what_is_missing_is_named(target, name):
    parts = {key: getattr(Dense, key) for key in ("__len__", "image_shape", "classes", "read") if key != name}
    with pytest.raises(UserError, match=rf"has no {name}; name an object with __len__, image_shape, classes and read"):
        opened(target(type("Partly", (), parts)()))


def test_a_function_that_fails_is_named(target):
    with pytest.raises(UserError, match=r"calling it without arguments: ZeroDivisionError at .*test_users\.py"):
        opened(target(lambda: 1 / 0))


@pytest.mark.parametrize("path", ["my_images", "no_such_module_for_test:name", "sys:no_such_name"])
def test_a_path_that_leads_nowhere(path):
    with pytest.raises(UserError, match=rf"data\.target = '{path}'.*"):
        UserImages.open(path)


def test_a_late_fault_is_named_too(target):
    """Only a first small read is checked before a run; the others as they come."""
    late = changed(Dense, read=lambda self, index, *tile: (Dense.read(self, 0, *tile)[0] * np.float32(np.nan), 0))
    source = UserImages(target(late), late(), "pixels")
    with pytest.raises(UserError, match=r"read\(4, \(0, 2\), \(0, 2\)\): the image holds values that are not finite"):
        source.read(4, (0, 2), (0, 2))


def test_no_more_is_read_than_the_tile(target):
    reads = []

    def read(self, index, rows, cols):
        reads.append((index, rows, cols))
        return Dense.read(self, index, rows, cols)

    source = UserImages.open(target(changed(Dense, read=read)), "pixels")
    assert reads == [], "a process that knows the task reads nothing to find it out"
    assert len(EventDataset(source, [3, 1], (10, 20), (0, 30))) == 2
    EventDataset(source, [3, 1], (10, 20), (0, 30))[1]
    assert reads == [(1, (10, 20), (0, 30))]


def test_a_view_of_a_file_is_no_trouble(target):
    whole = np.zeros(SHAPE, np.float32)
    whole.flags.writeable = False

    def read(self, index, rows, cols):
        return whole[::-1, slice(*rows), slice(*cols)], 1

    dataset = EventDataset(UserImages.open(target(changed(Labelled, read=read))), [1])
    assert dataset[0][0].shape == SHAPE


def test_a_dataset_reads_its_tile_only_and_targets_where_the_scores_are(target):
    source = opened(target(Dense))
    whole = EventDataset(source, [3])[0]
    image, pixels, position = EventDataset(source, [3], (10, 20), (0, 30), ((12, 22), (0, 28)))[0]
    assert image.equal(whole[0][:, 10:20, 0:30]) and pixels.equal(whole[1][12:22, 0:28])
    assert str(pixels.dtype) == "torch.int64" and position.item() == 0


def test_a_dataset_reads_only_what_its_rank_needs(target):
    read = []

    class Noted(Dense):
        def read(self, index, rows, cols):
            read.append((rows, cols))
            return super().read(index, rows, cols)

    source = opened(target(Noted))
    read.clear()
    tile = (10, 20), (0, 30), ((15, 22), (0, 28))
    image, pixels, _ = EventDataset(source, [3], *tile)[0]
    only_image, no_target, _ = EventDataset(source, [3], *tile, targets=False)[0]
    no_image, only_pixels, position = EventDataset(source, [3], *tile, images=False)[0]
    nothing = EventDataset(source, [3], *tile, images=False, targets=False)
    assert read == [((10, 22), (0, 30)), ((10, 20), (0, 30)), ((15, 22), (0, 28))]
    assert only_image.equal(image) and only_pixels.equal(pixels)
    assert no_image.numel() == 0 and no_target.item() == 0 and position.item() == 0
    assert nothing[0][0].numel() == 0 and not nothing.reads and len(read) == 3
