"""Lightning callbacks: what watches a training run."""

from __future__ import annotations

if __name__ != "toolkit.callbacks":
    raise ImportError(
        f"This folder is imported as `toolkit.callbacks`, not as {__name__!r}: under a second name "
        "every class would exist twice."
    )

from .epoch_time_monitor import EpochTimeMonitor

__all__ = ["EpochTimeMonitor"]
