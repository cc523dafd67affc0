"""Drawn street scenes with traffic signs, for detection without a download."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from toolkit.cache import writable_folder
from toolkit.detection.street_scenes import Planted, check_settings, read_planted, write_street_scenes
from toolkit.fingerprint import settings_hash

from .yolo import YOLODataModule

__all__ = ["StreetScenesDataModule"]


class StreetScenesDataModule(YOLODataModule):
    """Street scenes with five kinds of traffic signs, drawn here: detection in a minute, no download.

    Near-duplicates and outliers are planted among the training images, so that it can be seen whether a selector finds
    them: see `planted`. The images are written as files once, in a few seconds, and found again by their settings;
    several processes may do that at the same time.

    Args:
        folder: Where the images are written to; by default one in the cache folder (`toolkit.cache`).
        n_train: Training images in all, the planted ones included.
        n_val: Validation images, none of them planted.
        n_duplicates: Training images that are near-duplicates of others.
        n_outliers: Training images that show no street.
        size: Height and width of the files' images in pixels.
        seed: Decides all images.
        imgsz: Longer side of the images as the network gets them, in pixels, a multiple of 32.
        batch_size: Images a batch; evaluation takes twice as many.
        num_workers: Processes that load batches; by default none on a CPU, else one a core, at most 8.
        pin_memory: Put batches in page-locked memory, which GPUs read faster; by default where CUDA is available.
        augmentation: ultralytics' settings by name (`mosaic`, `fliplr`, `hsv_h`, ...) that differ from its defaults.
        close_mosaic: For how many epochs at the end there is no mosaic, mixup or cutmix any more.

    Raises:
        ValueError: If a setting is out of its range, or if `folder` holds anything else; it is left alone then.
        OSError: If nothing can be written there.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "scenes"
        >>> datamodule = StreetScenesDataModule(
        ...     folder, n_train=12, n_val=2, n_duplicates=2, n_outliers=1, size=(60, 80), imgsz=64
        ... )
        >>> datamodule.names
        ('speed limit', 'crossing', 'yield', 'stop', 'priority')
        >>> len(datamodule.evaluation_dataset()), len(datamodule.planted.duplicates)
        (12, 2)
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        n_train: int = 240,
        n_val: int = 60,
        n_duplicates: int = 24,
        n_outliers: int = 6,
        size: Sequence[int] = (240, 320),
        seed: int = 0,
        imgsz: int = 320,
        batch_size: int = 16,
        num_workers: int | None = None,
        pin_memory: bool | None = None,
        augmentation: Mapping[str, float] | None = None,
        close_mosaic: int = 10,
    ) -> None:
        if folder is None:
            settings = check_settings(n_train, n_val, n_duplicates, n_outliers, size, seed)
            folder = writable_folder("scenes", f"street_scenes-{settings_hash(settings)[:16]}")
        data = write_street_scenes(folder, n_train, n_val, n_duplicates, n_outliers, size, seed)
        super().__init__(
            data,
            imgsz=imgsz,
            batch_size=batch_size,
            num_workers=num_workers,
            pin_memory=pin_memory,
            augmentation=augmentation,
            close_mosaic=close_mosaic,
        )

    @property
    def planted(self) -> Planted:
        """Which training images are near-duplicates of which, and which are outliers, by their ids."""
        return read_planted(Path(self.data).parent)
