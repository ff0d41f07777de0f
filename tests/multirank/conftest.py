from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread_a_rank() -> Iterator[None]:
    """Ranks that are threads share the cores already; torch's own threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
