import pytest
import torch

from lartpc_ds.errors import UserError
from lartpc_ds.models.norms import make_norm

N, C, H, W = 2, 12, 5, 7


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(N, C, H, W, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 1


def _standardise(x: torch.Tensor, dims: tuple[int, ...], eps: float) -> torch.Tensor:
    variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps)


def test_batch_runs_over_images_and_pixels(x: torch.Tensor) -> None:
    torch.testing.assert_close(make_norm("batch", C).double()(x), _standardise(x, (0, 2, 3), 1e-5))


def test_group_runs_over_a_group_of_channels_of_one_image(x: torch.Tensor) -> None:
    groups = 4  # gcd(32, 12)
    expected = _standardise(x.reshape(N, groups, C // groups, H, W), (2, 3, 4), 1e-5).reshape(x.shape)
    torch.testing.assert_close(make_norm("group", C).double()(x), expected)


def test_layer_runs_over_the_channels_of_one_pixel(x: torch.Tensor) -> None:
    norm = make_norm("layer", C).double()
    with torch.no_grad():
        norm.weight.copy_(torch.arange(C))
        norm.bias.copy_(torch.arange(C) / 10)
    per_channel = torch.arange(C, dtype=torch.float64).reshape(C, 1, 1)
    torch.testing.assert_close(norm(x), _standardise(x, (1,), 1e-6) * per_channel + per_channel / 10)


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (96, 32), (48, 16), (20, 4), (7, 1)])
def test_groups_divide_the_channels(channels: int, groups: int) -> None:
    assert make_norm("group", channels).num_groups == groups


def test_layer_keeps_the_dtype_and_the_channels_last_strides(x: torch.Tensor) -> None:
    narrow = x.bfloat16().to(memory_format=torch.channels_last)
    y = make_norm("layer", C)(narrow)
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_an_unknown_norm_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"model\.norm = 'instance'.*batch, group, layer"):
        make_norm("instance", C)
