"""Detection samples in memory, as ultralytics' data sets give them: dictionaries with a ragged number of boxes."""

import torch
from torch.utils.data import Dataset


class Scenes(Dataset):
    """Images of noise with boxes; every fourth image has none.

    Args:
        count: How many images.
        size: Height and width.
        seed: Of all.
        is_uint8: Whether images are bytes, as data sets give them, or numbers in [0, 1].
    """

    def __init__(self, count=12, size=32, seed=0, is_uint8=True):
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
        self.boxes = []
        for index in range(count):
            n_boxes = 0 if index % 4 == 3 else 1 + index % 3
            centres = 0.3 + 0.4 * torch.rand(n_boxes, 2, generator=generator)
            self.boxes.append(torch.cat([centres, 0.1 + 0.4 * torch.rand(n_boxes, 2, generator=generator)], dim=1))
        self.targets = [[(index + k) % 3 for k in range(len(boxes))] for index, boxes in enumerate(self.boxes)]
        self.is_uint8 = is_uint8
        self.reads = []
        #: Index of an image that cannot be read, and what is raised for it.
        self.broken, self.error = None, OSError("images/0007.jpg cannot be decoded")

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index == self.broken:
            raise self.error
        self.reads.append(index)
        boxes, image = self.boxes[index].clone(), self.images[index].clone()
        return {
            "img": image if self.is_uint8 else image / 255,
            "cls": torch.tensor(self.targets[index]).float().reshape(-1, 1),
            "bboxes": boxes,
            "batch_idx": torch.zeros(len(boxes)),
            "im_file": f"images/{index:04d}.jpg",
        }

    def fingerprint(self):
        """Of the images alone: what it says of boxes is in `boxes` and `targets`."""
        return f"scenes of {int(self.images.sum())}"


def collate(samples):
    """One batch: images stacked, boxes one after the other with the place of their image."""
    batch = {key: [sample[key] for sample in samples] for key in samples[0]}
    batch["img"] = torch.stack(batch["img"])
    batch["batch_idx"] = torch.cat([places + place for place, places in enumerate(batch["batch_idx"])])
    return batch | {key: torch.cat(batch[key]) for key in ("cls", "bboxes")}
