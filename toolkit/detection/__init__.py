"""Object detection: data sets in YOLO's format, drawn street scenes, and what is used of ultralytics."""

from __future__ import annotations

from toolkit.detection.street_scenes import Planted, draw_scene, read_planted, write_street_scenes
from toolkit.detection.yolo_format import DetectionImages, YOLOData, read_data_yaml, read_split

__all__ = [
    "DetectionImages",
    "Planted",
    "YOLOData",
    "draw_scene",
    "read_data_yaml",
    "read_planted",
    "read_split",
    "write_street_scenes",
]
