import torch
from torch import nn

from lartpc_ds.models.build import build_model
from lartpc_ds.models.towers import FoldPlanes, JoinPlanes


def test_fold_puts_the_planes_of_an_event_side_by_side() -> None:
    x = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        folded = FoldPlanes()(x.contiguous(memory_format=memory_format))
        assert torch.equal(folded, torch.stack([x[n, p] for n in range(2) for p in range(3)])[:, None])
        assert folded.stride() == (20, 1, 5, 1)  # channels-last, told apart even with one channel


def test_join_concatenates_features_in_plane_order() -> None:
    pooled = torch.arange(2 * 3 * 4.0).reshape(6, 4, 1, 1)
    expected = torch.stack([torch.cat([pooled[n * 3 + p, :, 0, 0] for p in range(3)]) for n in range(2)])
    assert torch.equal(JoinPlanes(3)(pooled), expected)


def test_permuting_planes_permutes_features() -> None:
    model = build_model("resnet18", planes=3, num_classes=5, width=8, norm="group", plane_mode="towers").eval()
    assert isinstance(model, nn.Sequential)
    assert isinstance(model[-1], nn.Sequential)
    features = nn.Sequential(*model[:-1], *model[-1][:-1])
    x = torch.randn(2, 3, 40, 48, generator=torch.Generator().manual_seed(1))
    order = [2, 0, 1]
    straight = features(x).reshape(2, 3, -1)
    torch.testing.assert_close(features(x[:, order]).reshape(2, 3, -1), straight[:, order])
    assert not torch.allclose(straight[:, 0], straight[:, 1])


def test_towers_share_one_set_of_weights() -> None:
    sizes = [
        sum(p.numel() for key, p in model.named_parameters() if not key.startswith("head"))
        for model in (
            build_model("resnet18", planes=planes, num_classes=5, width=8, plane_mode="towers") for planes in (1, 3)
        )
    ]
    assert sizes[0] == sizes[1]
