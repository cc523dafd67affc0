"""Pictures for whatever logger a trainer has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["send_image", "takes_images"]


def takes_images(logger: Any) -> bool:
    """Whether a logger is known to take pictures: W&B, TensorBoard, MLflow and Comet, or what works like them."""
    return _way(logger) is not None


def send_image(logger: Any, key: str, path: Path, step: int) -> bool:
    """Give a logger a picture.

    Args:
        logger: Any Lightning logger.
        key: The name to log it under.
        path: The picture, a PNG file.
        step: The step it belongs to.

    Returns:
        Whether the logger takes pictures.
    """
    way = _way(logger)
    if way == "log_image":
        logger.log_image(key=key, images=[str(path)], step=step)
    elif way == "add_image":
        from matplotlib.image import imread

        pixels = imread(path)[..., :3]
        logger.experiment.add_image(key, (pixels * 255).round().astype("uint8"), global_step=step, dataformats="HWC")
    elif way == "log_artifact":
        logger.experiment.log_artifact(logger.run_id, str(path), key)
    elif way == "comet":
        logger.experiment.log_image(str(path), name=key, step=step)
    return way is not None


def _way(logger: Any) -> str | None:
    """What to call: told by what the logger has, so that none of them needs to be installed."""
    if callable(getattr(logger, "log_image", None)):
        return "log_image"
    experiment = getattr(logger, "experiment", None)
    if callable(getattr(experiment, "add_image", None)):
        return "add_image"
    if callable(getattr(experiment, "log_artifact", None)) and hasattr(logger, "run_id"):
        return "log_artifact"
    if callable(getattr(experiment, "log_image", None)):
        return "comet"
    return None
