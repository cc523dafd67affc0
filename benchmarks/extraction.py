"""Throughput of FeatureExtractor against a bare evaluation loop over the same loader, in the same run.

    python benchmarks/extraction.py --images 8192 --repeats 3

Uses CIFAR-10 and the ResNet-32 weights in $TOOLKIT_DATA (unpacked under --root), or random images without them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from common import machine, write_results
from torch.utils.data import DataLoader, TensorDataset

from toolkit import FeatureExtractor
from toolkit.models import resnet32
from toolkit.representations import EvaluationView


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8192)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "extraction.json")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = "ieee"

    pixels = torch.randint(0, 256, (options.images, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    dataset = TensorDataset(pixels.float() / 255)
    model = resnet32()
    weights = Path(os.environ.get("TOOLKIT_DATA", "nowhere")) / "weights" / "resnet32_cifar10.pt"
    if weights.is_file():
        model.load_state_dict(torch.load(weights, weights_only=True), strict=False)
    extractor = FeatureExtractor(
        model, batch_size=options.batch_size, cache=False, progress=False, device=options.device, num_workers=0
    )

    def bare() -> np.ndarray:
        """What anyone would write: the features come from the whole network with its classifier cut off."""
        network = resnet32().eval().to(device)
        network.load_state_dict(model.state_dict())
        network.linear = torch.nn.Identity()
        loader = DataLoader(dataset, batch_size=options.batch_size, pin_memory=device.type == "cuda")
        with torch.inference_mode():
            return torch.cat([network(batch.to(device, non_blocking=True)).cpu() for (batch,) in loader]).numpy()

    view = EvaluationView(dataset, device=device)
    runs = {"bare": bare, "toolkit": lambda: extractor.vectors(view)}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    features = {name: run() for name, run in runs.items()}  # warm-up
    for _ in range(options.repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    rates = {name: options.images / statistics.median(times) for name, times in seconds.items()}
    result = {
        "images": options.images,
        "batch_size": options.batch_size,
        "device": options.device,
        "images_per_second": rates,
        "ratio_to_bare": rates["toolkit"] / rates["bare"],
        "seconds": seconds,
        "largest_difference": float(np.abs(features["bare"] - features["toolkit"]).max()),
    }
    write_results(options.output, result)
    print(machine())
    for name, rate in rates.items():
        print(f"{name:<8} {rate:10.0f} images/s")
    print(f"ratio    {result['ratio_to_bare']:10.3f}   largest difference {result['largest_difference']:.2e}")


if __name__ == "__main__":
    main()
