import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """The tensors are tiny: a second thread only waits for the first, and for long where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
