import numpy as np
import torch
from torch.utils.data import DataLoader

from lartpc_ds.data.augment import Augmentation, Place
from lartpc_ds.data.dataset import EventDataset
from lartpc_ds.data.files import open_files
from lartpc_ds.data.images import Preprocessing, densify
from lartpc_ds.data.source import EventSource
from lartpc_ds.training.loader import collate

PRE = Preprocessing((9, 10), (2, 1))


def source_of(path, labels):
    return EventSource(open_files([str(path)]), PRE, np.array(labels), tuple("abcde"))


def test_items(write_file, make_event):
    dataset = EventDataset(source_of(write_file(), [0, 2, 1]), [2, 0])
    image, label, position = dataset[0]
    assert (image.dtype, label.dtype, position.dtype) == (torch.float32, torch.int64, torch.int64)
    np.testing.assert_array_equal(image.numpy(), densify(make_event(2), PRE))
    assert (label.item(), position.item(), len(dataset)) == (1, 0, 2)
    assert dataset[1][1].item() == 0


def test_tile(write_file, make_event):
    dataset = EventDataset(source_of(write_file(), [0, 0, 0]), [1], rows=(1, 4), cols=(3, 10))
    np.testing.assert_array_equal(dataset[0][0].numpy(), densify(make_event(1), PRE)[:, 1:4, 3:10])


def test_labels_need_no_files(write_file):
    path = write_file()
    dataset = EventDataset(source_of(path, [0, 2, 1]), [2, 1], images=False)
    path.unlink()
    image, label, position = dataset[0]
    assert not dataset.reads and image.numel() == 0
    assert (label.dtype, label.item(), position.item()) == (torch.int64, 1, 0)


def test_workers_read_what_one_process_reads(write_file):
    dataset = EventDataset(source_of(write_file(num_events=5), [0, 1, 2, 3, 4]), range(5))
    expected = [dataset[position][0] for position in range(5)]
    images, labels, positions = zip(*DataLoader(dataset, batch_size=2, num_workers=2), strict=True)
    assert torch.equal(torch.cat(images), torch.stack(expected))
    assert torch.cat(labels).tolist() == torch.cat(positions).tolist() == [0, 1, 2, 3, 4]


def test_lit_pixels_make_the_same_batches_sparse_or_dense(write_file):
    # an image of 2 x 9 x 5 pixels is smaller as a sparse tensor if it has less than 13 of them
    paths = [write_file("a_dark.h5", 2, num_pixels=4), write_file("b_bright.h5", 2, first=2, num_pixels=20)]
    source = EventSource(open_files([str(path) for path in paths]), PRE, np.arange(4), tuple("abcd"))
    augmentation = Augmentation((True, True), (2, 2), seed=1)
    items = [(position, Place(step, position)) for step in range(8) for position in range(4)]
    plain, lit = (EventDataset(source, range(4), augmentation=augmentation, sparse=sparse) for sparse in (False, True))
    single = [lit[item][0] for item in items]
    assert [image.is_sparse for image in single][:4] == [True, True, False, False]
    assert {image.is_coalesced() for image in single if image.is_sparse} == {True, False}  # mirrored, or not
    for batch in (items[::2], items[0::4] + items[1::4]):
        images, expected = (collate([data[item] for item in batch])[0] for data in (lit, plain))
        assert torch.equal(images.to_dense(), expected)
    assert images.is_sparse
