"""A small detection data set in YOLO's format for tests: coloured rectangles on grey, one file an image."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

NAMES = ("square", "bar", "dot")
_COLOURS = ((200, 40, 40), (40, 160, 40), (40, 60, 200))


def write_data(folder, n_train=12, n_val=4, n_test=0, size=(80, 60), seed=0):
    """Write images and boxes of up to three objects; returns the `data.yaml`. The last training image has no boxes."""
    folder = Path(folder)
    generator = np.random.default_rng(seed)
    for split, count in (("train", n_train), ("val", n_val), ("test", n_test)):
        if not count:
            continue
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        for number in range(count):
            grey = int(generator.integers(60, 200))
            image = Image.new("RGB", size, (grey, grey, grey))
            draw, rows = ImageDraw.Draw(image), []
            for _ in range(0 if number == count - 1 and split == "train" else int(generator.integers(1, 4))):
                label = int(generator.integers(3))
                width, height = generator.uniform(0.15, 0.4, 2)
                x, y = generator.uniform(0.2, 0.8, 2)
                corners = [(x - width / 2) * size[0], (y - height / 2) * size[1]]
                corners += [(x + width / 2) * size[0], (y + height / 2) * size[1]]
                draw.rectangle(corners, fill=_COLOURS[label])
                rows.append(f"{label} {x:.6f} {y:.6f} {width:.6f} {height:.6f}")
            image.save(folder / "images" / split / f"frame_{number:04d}.png")
            (folder / "labels" / split / f"frame_{number:04d}.txt").write_text("\n".join(rows))
    lines = ["path: .", *(f"{split}: images/{split}" for split, n in (("train", n_train), ("val", n_val)) if n)]
    lines += ["test: images/test"] * bool(n_test) + [f"names: [{', '.join(NAMES)}]"]
    (folder / "data.yaml").write_text("\n".join(lines) + "\n")
    return folder / "data.yaml"
