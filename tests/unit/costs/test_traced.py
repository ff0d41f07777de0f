"""The peak of a step by shapes alone, against a count by hand."""

import torch
from torch import nn

from lartpc_ds.costs.traced import traced_peak_bytes


def test_a_convolution_and_its_states() -> None:
    """The images, the map that is kept, and its gradients on the way back; the weights are nothing here."""

    def make() -> nn.Module:
        conv = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        return nn.Sequential(conv, nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    images, maps = 4 * 128 * 128, 8 * 4 * 128 * 128
    peak = traced_peak_bytes(make, lambda model: None, (1, 1, 128, 128), None)
    # at the sigmoid's backward: its result, the gradient that reaches it and the one that it makes
    assert images + 2 * maps <= peak <= images + 3.2 * maps
    assert traced_peak_bytes(make, lambda model: None, (2, 1, 128, 128), None) > 1.9 * peak
    assert traced_peak_bytes(make, lambda model: None, (1, 1, 128, 128), torch.bfloat16) < peak
