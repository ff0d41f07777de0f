import numpy as np
import torch
from torch.utils.data import DataLoader

from lartpc_ds.data.dataset import EventDataset
from lartpc_ds.data.files import open_files
from lartpc_ds.data.images import Preprocessing, densify
from lartpc_ds.data.source import EventSource

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
