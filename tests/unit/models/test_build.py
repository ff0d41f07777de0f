from itertools import pairwise

import pytest
import torch
from torch import nn

from lartpc_ds.config.run import RunConfig
from lartpc_ds.errors import UserError
from lartpc_ds.models.build import MODELS, blocks, build_model
from lartpc_ds.models.norms import NORMS


def _run_blocks(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    maps = [x]
    for _, block in blocks(model):
        maps.append(block(maps[-1]))
    return maps[1:]


def _image(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator).to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032), ("convnext", 28_589_128)],
)
def test_parameter_counts_are_torchvisions(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = build_model(name, planes=3, num_classes=1000)
        assert model(torch.empty(1, 3, 224, 224)).shape == (1, 1000)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("plane_mode", ["stacked", "towers"])
@pytest.mark.parametrize("name", MODELS)
def test_blocks_in_order_are_the_model(name: str, plane_mode: str) -> None:
    model = build_model(name, planes=3, num_classes=5, width=8, norm="group", plane_mode=plane_mode).eval()
    x = _image(2, 3, 65, 97)  # odd on purpose
    names = [block for block, _ in blocks(model)]
    assert len(set(names)) == len(names)
    assert torch.equal(_run_blocks(model, x)[-1], model(x))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("plane_mode", ["stacked", "towers"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "convnext"])
def test_bf16_maps_stay_narrow_and_channels_last_and_every_gradient_flows(
    name: str, plane_mode: str, norm: str
) -> None:
    model = build_model(name, planes=2, num_classes=5, width=8, norm=norm, plane_mode=plane_mode)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = _run_blocks(model, _image(2, 2, 64, 96))
    computed = maps if plane_mode == "stacked" else maps[1:]  # folding computes nothing
    assert {m.dtype for m in computed} == {torch.bfloat16}
    assert all(m.is_contiguous(memory_format=torch.channels_last) for m in maps[:-1])
    assert maps[-1].shape == (2, 5)
    maps[-1].float().square().sum().backward()
    assert all(p.is_contiguous() for p in model.parameters())
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


@pytest.mark.parametrize(("name", "wires", "ticks"), [("resnet18", 8, 11), ("resnet50", 8, 11), ("convnext", 7, 10)])
def test_a_trunk_shrinks_an_image_32_times(name: str, wires: int, ticks: int) -> None:
    with torch.device("meta"):
        model = build_model(name, planes=3, num_classes=5)
        last_map = _run_blocks(model, torch.empty(1, 3, 240, 350))[-2]
    assert last_map.shape[2:] == (wires, ticks)


def test_width_is_the_channels_of_the_first_stage() -> None:
    with torch.device("meta"):
        maps = _run_blocks(build_model("resnet18", planes=3, num_classes=5, width=24), torch.empty(1, 3, 64, 64))
    assert [m.shape[1] for m in maps[:-1]] == [24, 24, 24, 24, 48, 48, 96, 96, 192, 192]
    assert all(a.shape[2] >= b.shape[2] for a, b in pairwise(maps[:-1]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnet19"}, r"model\.name = 'resnet19'.*resnet18, resnet34, resnet50, convnext"),
        ({"norm": "instance"}, r"model\.norm = 'instance'"),
        ({"norm": ""}, r"model\.norm = ''"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_model(**{"name": "resnet18", "planes": 3, "num_classes": 5, **settings})


def test_resnets_have_no_strided_pointwise_convolution() -> None:
    """Torch 2.13 corrupts memory in the CPU backward of a narrow one; a pool of one pixel is the same stride."""
    for name in ("resnet18", "resnet50"):
        model = build_model(name, planes=2, num_classes=3, width=8)
        convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        assert not [one for one in convolutions if one.kernel_size == (1, 1) and one.stride != (1, 1)]


def test_the_shortcut_subsamples_as_a_strided_convolution() -> None:
    shortcut = build_model("resnet18", planes=2, num_classes=3, width=8).layer2_0.shortcut
    assert isinstance(shortcut, nn.Sequential)
    images = torch.randn(2, 8, 13, 18)
    expected = nn.functional.conv2d(images, shortcut[1].weight, stride=2)
    assert torch.allclose(shortcut[1](shortcut[0](images)), expected, atol=1e-6)


def test_the_stem_takes_the_stride_of_the_pixels() -> None:
    usual = build_model("resnet18", planes=2, num_classes=3, width=4)
    same = build_model("resnet18", planes=2, num_classes=3, width=4, stem_stride=(2, 2))
    assert {k: v.shape for k, v in usual.state_dict().items()} == {k: v.shape for k, v in same.state_dict().items()}
    tall = build_model("resnet18", planes=2, num_classes=3, width=4, stem_stride=(2, 8))
    assert tall.stem(_image(1, 2, 33, 129)).shape == (1, 4, 17, 17)
    with pytest.raises(UserError, match="stem_stride"):
        build_model("convnext", planes=2, num_classes=3, stem_stride=(2, 8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"planes": "piled"}, r"model\.planes: .*'stacked' or 'towers'.*'piled'"),
        ({"width": 0}, r"model\.width: .*greater than or equal to 1.*given: 0"),
    ],
)
def test_a_setting_that_the_configuration_refuses_reaches_no_network(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RunConfig.parse({"model": settings, "train": {"max_steps": 1}}, "my.toml")
