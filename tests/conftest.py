"""Shared fixtures: a cache folder of the tests' own, and the real data where there is any."""

import os
import runpy
from pathlib import Path

import pytest
import torch

# Several processes of tests share the processors, and so do the processes that they start.
_PROCESSORS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_THREADS = max(1, _PROCESSORS // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
torch.set_num_threads(_THREADS)
for _name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_name, str(_THREADS))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Let a process that is done take tests over from another, as some take a minute and most a moment."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _own_threads():
    """No test leaves PyTorch with another number of threads, as Lightning does for processes of its own."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data_folder():
    """The folder of real data, from TOOLKIT_DATA."""
    folder = os.environ.get("TOOLKIT_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("TOOLKIT_DATA does not name a folder with the real data")
    return Path(folder)


@pytest.fixture(scope="session")
def cifar_root(data_folder, tmp_path_factory):
    """CIFAR-10 in the layout of torchvision, unpacked once."""
    root = tmp_path_factory.mktemp("cifar")
    runpy.run_path(str(data_folder / "unpack_cifar.py"))["cifar10"](root)
    return root


@pytest.fixture
def rng_unchanged():
    """Fails if the test leaves PyTorch's random state other than it was."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state())
