"""Choose with every selector that needs no model, on some processes; each rank writes what it chose.

python select_on_ranks.py OUTPUT_FOLDER RANK N_PROCESSES
"""

import json
import sys
from pathlib import Path

import torch
from torch import distributed

from toolkit import SSIMSelector, WaveletScattering, WaveletSelector


def main():
    folder, rank, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    if size > 1:
        distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    images = torch.rand(60, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    images[40:] = (images[:20] + 0.05 * images[20:40]).clamp(0, 1)
    labels = [i % 20 % 3 for i in range(60)]
    quiet = {"batch_size": 8, "progress": False}
    selectors = {
        "scattering": WaveletSelector(0.75, features=WaveletScattering(**quiet), progress=False),
        "coefficients": WaveletSelector(0.75, progress=False),
        "spectral": SSIMSelector(0.75, progress=False),
        "bounded": SSIMSelector(min_similarity=0.5, progress=False),
    }
    chosen = {}
    for name, selector in selectors.items():
        selection = selector.select(images, labels=labels)
        chosen[name] = [selection.status.tolist(), selection.group.tolist(), [str(d) for d in selection.distance]]
    (folder / f"rank{rank}-of-{size}.json").write_text(json.dumps(chosen))
    if size > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
