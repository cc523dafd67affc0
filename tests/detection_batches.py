"""Drawn detection samples and a tiny network, for tests of training that need no files."""

import torch
from torch.utils.data import DataLoader

#: A network of three scales that takes milliseconds, in the words of ultralytics' YAML files.
TINY = {
    "nc": 80,
    "backbone": [
        [-1, 1, "Conv", [8, 3, 2]],
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "C3", [16]],
        [-1, 1, "Conv", [32, 3, 2]],
        [-1, 1, "Conv", [32, 3, 2]],
        [-1, 1, "Conv", [64, 3, 2]],
    ],
    "head": [[[3, 4, 5], 1, "Detect", ["nc"]]],
}


def samples(count, size=64, n_classes=3, seed=0, most=4):
    """Images of noise with up to `most` - 1 boxes each, some with none."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for number in range(count):
        n_boxes = int(torch.randint(most, (1,), generator=generator))
        corners = torch.rand(n_boxes, 2, generator=generator) * 0.6 + 0.2
        sides = torch.rand(n_boxes, 2, generator=generator) * 0.3 + 0.1
        result.append(
            {
                "img": torch.rand(3, size, size, generator=generator),
                "cls": torch.randint(n_classes, (n_boxes, 1), generator=generator).float(),
                "bboxes": torch.cat([corners, sides], 1),
                "im_file": f"image{seed}-{number}.png",
            }
        )
    return result


def collate(items):
    """A batch as ultralytics collates it."""
    numbers = [torch.full((len(item["cls"]),), float(number)) for number, item in enumerate(items)]
    return {
        "img": torch.stack([item["img"] for item in items]),
        "cls": torch.cat([item["cls"] for item in items]),
        "bboxes": torch.cat([item["bboxes"] for item in items]),
        "batch_idx": torch.cat(numbers),
        "im_file": [item["im_file"] for item in items],
    }


def loader(items, batch_size=4):
    return DataLoader(items, batch_size=batch_size, collate_fn=collate)
