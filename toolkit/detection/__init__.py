"""Object detection: data sets in YOLO's format, drawn street scenes, and what is used of ultralytics."""

from __future__ import annotations

from toolkit.detection.yolo_format import DetectionImages, YOLOData, read_data_yaml, read_split

__all__ = ["DetectionImages", "YOLOData", "read_data_yaml", "read_split"]
