"""Lightning callbacks: what watches a training run."""

from __future__ import annotations

if __name__ != "toolkit.callbacks":
    raise ImportError(
        f"This folder is imported as `toolkit.callbacks`, not as {__name__!r}: under a second name "
        "every class would exist twice."
    )

from .decision_boundary_monitor import DecisionBoundaryMonitor
from .epoch_time_monitor import EpochTimeMonitor
from .feature_map_writer import FeatureMapWriter
from .info_batch import InfoBatch
from .training_score_writer import TrainingScoreWriter

__all__ = ["DecisionBoundaryMonitor", "EpochTimeMonitor", "FeatureMapWriter", "InfoBatch", "TrainingScoreWriter"]
