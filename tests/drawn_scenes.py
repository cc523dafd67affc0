"""A detection data set in memory: coloured rectangles on noise, of which some images are nearly the same."""

import numpy as np
import torch
from torch.utils.data import Dataset

COLOURS = np.array([[220, 40, 40], [40, 200, 60], [50, 80, 230], [220, 210, 60], [200, 60, 200]], np.uint8)


class DrawnScenes(Dataset):
    """Scenes with rectangles as ultralytics' data sets give them, padded to a square as its letterbox does.

    Every third image is the one before it with other noise; of these, every second one lacks a box that is drawn.

    Args:
        count: How many images.
        shape: Height and width before padding.
        n_classes: How many classes.
        seed: Of all.
        video: The name of the video that the images are frames of; images of other folders are named without numbers.
    """

    def __init__(self, count=24, shape=(48, 64), n_classes=3, seed=0, video=None):
        rng = np.random.default_rng(seed)
        self.shape = shape
        self.images = np.empty((count, *shape, 3), np.uint8)
        self.boxes, self.targets = [], []
        for index in range(count):
            if index % 3 == 2:
                boxes, classes = self.boxes[-1], self.targets[-1]
                drawn, names = boxes, classes
                if index % 2 and len(classes) > 1:
                    boxes, classes = boxes[1:], classes[1:]
            else:
                n_boxes = 0 if index % 7 == 3 else int(rng.integers(1, 5))
                size = rng.uniform(0.15, 0.4, (n_boxes, 2))
                drawn = boxes = np.concatenate([rng.uniform(size / 2, 1 - size / 2), size], axis=1)
                names = classes = rng.integers(n_classes, size=n_boxes).tolist()
            image = rng.integers(90, 130, (*shape, 3))
            for (x, y, w, h), name in zip(drawn, names, strict=True):
                rows = slice(round((y - h / 2) * shape[0]), round((y + h / 2) * shape[0]))
                columns = slice(round((x - w / 2) * shape[1]), round((x + w / 2) * shape[1]))
                image[rows, columns] = COLOURS[name % len(COLOURS)]
            self.images[index] = image
            self.boxes.append(boxes)
            self.targets.append(classes)
        self.root = "/scenes"
        names = [f"{video}/frame_{k:04}.png" if video else f"{chr(97 + k % 26)}{k // 26}x.png" for k in range(count)]
        self.samples = [(f"/scenes/{name}", None) for name in names]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        height, width = self.shape
        side = max(self.shape)
        left, top = (side - width) // 2, (side - height) // 2
        padded = torch.full((3, side, side), 114, dtype=torch.uint8)
        padded[:, top : top + height, left : left + width] = torch.from_numpy(self.images[index]).permute(2, 0, 1)
        boxes = torch.tensor(self.boxes[index], dtype=torch.float32).reshape(-1, 4)
        scale = torch.tensor([width, height, width, height]) / side
        offset = torch.tensor([left, top, 0, 0]) / side
        return {
            "img": padded,
            "cls": torch.tensor(self.targets[index], dtype=torch.float32).reshape(-1, 1),
            "bboxes": boxes * scale + offset,
            "batch_idx": torch.zeros(len(boxes)),
            "im_file": self.samples[index][0],
            "ori_shape": self.shape,
            "resized_shape": (side, side),
            "ratio_pad": ((1.0, 1.0), (left, top)),
        }

    def fingerprint(self):
        return f"{int(self.images.astype(np.int64).sum())} {self.targets}"

    def vectors(self):
        """Images averaged over cells of 8 by 8 pixels, shape (N, D)."""
        cells = torch.nn.functional.avg_pool2d(torch.from_numpy(self.images).float().permute(0, 3, 1, 2), 8)
        return cells.flatten(1).numpy() / 255
