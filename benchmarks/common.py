"""What every benchmark writes beside its figures: versions, machine, load."""

from __future__ import annotations

import json
import os
import platform
import resource
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of Python and some packages."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in packages}


def machine() -> dict[str, Any]:
    """What the benchmark ran on."""
    found: dict[str, Any] = {
        "system": platform.system(),
        "processor": platform.machine(),
        "cpus": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }
    try:
        import torch
    except ImportError:
        return found
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def peak_mib() -> float:
    """Largest resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage also counts what the parent had before this program was started in its place.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cifar10(root: str, train: bool) -> Any:
    """CIFAR-10 as a torchvision data set, from ROOT with `cifar-10-batches-py`, whatever its files' checksums."""
    from torchvision.datasets import CIFAR10

    # Without the checks of sums, which repacked files do not pass, and without the names of the classes.
    unchecked = mock.patch.multiple(CIFAR10, _check_integrity=lambda self: True, _load_meta=lambda self: None)
    with warnings.catch_warnings(), unchecked:
        warnings.simplefilter("ignore")  # torchvision reads pickles in a way that NumPy warns of
        return CIFAR10(root, train=train)


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Write a benchmark's figures as JSON, with the machine and the versions."""
    content = {"machine": machine(), "versions": versions("numpy", "scipy", "torch"), **results}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written to {path}")
