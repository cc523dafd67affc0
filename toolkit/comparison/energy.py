"""How much energy a stretch of work takes, where the machine counts it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

#: Where Linux shows the processors' counters.
POWERCAP = Path("/sys/class/powercap")
#: What a meter reads where there is nothing to read.
NOT_TOLD = "not told"


class EnergyMeter:
    """Measures the energy of a stretch of work from the machine's own counters.

    On an NVIDIA GPU it is the board's total energy counter (NVML, since Volta; needs the package `nvidia-ml-py`), which
    counts everything that runs on that GPU. Otherwise it is the sum of the processors' package counters (RAPL), where
    `/sys/class/powercap` may be read, which counts everything that runs on the machine: run one thing at a time. Where
    there is neither, nothing is told, and nothing is estimated in its place.

    Args:
        gpu: The index of the GPU that works, or None for the processors.
        powercap: Where to look for the processors' counters.

    Attributes:
        joules: The energy between entering and leaving; None where it is not told.
        source: `nvml`, `rapl` or `not told`.

    References:
        NVIDIA Management Library, `nvmlDeviceGetTotalEnergyConsumption`. Linux, `Documentation/power/powercap`.

    Example:
        >>> with EnergyMeter(powercap="nowhere") as meter:
        ...     pass
        >>> meter.joules, meter.source
        (None, 'not told')
    """

    def __init__(self, gpu: int | None = None, powercap: str | Path = POWERCAP) -> None:
        self.gpu = gpu
        self.powercap = Path(powercap)
        self.joules: float | None = None
        self.source = NOT_TOLD
        self._read: Callable[[], float] | None = None
        self._before = 0.0

    def __enter__(self) -> EnergyMeter:
        self.joules, self.source, self._read = None, NOT_TOLD, None
        reader = _nvml(self.gpu) if self.gpu is not None else _rapl(self.powercap)
        if reader is not None:
            self._read = reader
            self.source = "nvml" if self.gpu is not None else "rapl"
            self._before = reader()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._read is not None:
            self.joules = self._read() - self._before


def _nvml(gpu: int) -> Callable[[], float] | None:
    """A reader of a GPU's energy in joules since the driver was loaded, or None."""
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByIndex(gpu)
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # No package, no driver, or a GPU that does not count: all mean that it is not told.
        return None
    return lambda: float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000


def _rapl(powercap: Path) -> Callable[[], float] | None:
    """A reader of all packages' energy in joules since the first reading, or None."""
    domains = []
    # `intel-rapl:0` is a package; `intel-rapl:0:0` a part of it, counted already. AMD's have the same names.
    for folder in sorted(powercap.glob("intel-rapl:*")) if powercap.is_dir() else []:
        if folder.name.count(":") == 1:
            try:
                domains.append(_Domain(folder))
            except (OSError, ValueError):
                return None
    return (lambda: sum(domain.joules() for domain in domains)) if domains else None


class _Domain:
    """One counter of the processors, which starts again from 0 when it is full."""

    def __init__(self, folder: Path) -> None:
        self._counter = folder / "energy_uj"
        self._range = int((folder / "max_energy_range_uj").read_text())
        self._last = int(self._counter.read_text())
        self._total = 0

    def joules(self) -> float:
        """Joules since the first reading."""
        now = int(self._counter.read_text())
        self._total += (now - self._last) % (self._range + 1)
        self._last = now
        return self._total / 1e6
