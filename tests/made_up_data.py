"""Made-up data in the layout of real data sets, shared by tests."""

import pickle

import numpy as np
from torchvision.datasets import CIFAR10, CIFAR100

LAYOUTS = {10: (CIFAR10, "labels", "label_names"), 100: (CIFAR100, "fine_labels", "fine_label_names")}


def write_cifar(root, classes: int = 10, count: int = 20) -> dict[str, np.ndarray]:
    """Batch files of `count` images each; returns the images of each file."""
    original, label_key, names_key = LAYOUTS[classes]
    folder = root / original.base_folder
    folder.mkdir(parents=True)
    rng = np.random.default_rng(classes)
    images = {}
    for name, _ in [*original.train_list, *original.test_list]:
        images[name] = rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
        content = {"data": images[name].reshape(count, -1), label_key: [i % classes for i in range(count)]}
        (folder / name).write_bytes(pickle.dumps(content))
    meta = {names_key: [f"class {i}" for i in range(classes)]}
    (folder / original.meta["filename"]).write_bytes(pickle.dumps(meta))
    return images
