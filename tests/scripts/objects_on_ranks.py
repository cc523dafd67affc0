"""Take the vectors of objects on some processes; each rank writes what it got.

python objects_on_ranks.py OUTPUT_FOLDER RANK N_PROCESSES
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import distributed, nn

sys.path.insert(0, str(Path(__file__).parent.parent))
from detection_dicts import Scenes, collate

from toolkit import ObjectFeatureExtractor
from toolkit.representations import EvaluationView


def main():
    folder, rank, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1))
    # Of twelve images in batches of five the first of two ranks gets five, of one batch with all of them none.
    vectors = ObjectFeatureExtractor(model, 0, batch_size=5, cache_dir=folder, progress=False).vectors(view())
    objects = ObjectFeatureExtractor(model, 0, batch_size=12, progress=False).objects(view())
    found = {"vectors": vectors, "objects": objects.vectors, "image": objects.image, "boxes": objects.boxes}
    np.savez(folder / f"rank{rank}.npz", **found)
    distributed.destroy_process_group()


def view():
    return EvaluationView(Scenes(), collate_fn=collate)


if __name__ == "__main__":
    main()
