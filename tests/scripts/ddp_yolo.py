"""Fit a tiny YOLOv5 on two processes; each rank writes what it ended with. Run by test_yolo.py.

python ddp_yolo.py OUTPUT_FOLDER
"""

import json
import sys
import warnings
from pathlib import Path

import lightning.pytorch as L
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from detection_batches import TINY, loader, samples

from toolkit.models import YOLOv5, yolo


class Gradients(L.Callback):
    """The images of the first step, and its gradients before they are clipped."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 0:
            self.images = batch["im_file"]

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == 0:
            self.first = pl_module.network.model[6].cv3[0][2].bias.grad.tolist()


def counted(evaluate, counts):
    """The same evaluation, which notes how many images it gets."""

    def evaluate_and_count(predictions, *rest):
        counts.append(len(predictions))
        return evaluate(predictions, *rest)

    return evaluate_and_count


def main():
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = YOLOv5(TINY, 3, nominal_batch_size=8, ema_tau=2.0)
    # In evaluation mode norms do not see the other images of a batch, so gradients of parts add up.
    model.network.model.apply(lambda m: m.eval() if isinstance(m, torch.nn.BatchNorm2d) else m)
    gradients, counts = Gradients(), []
    yolo.average_precision = counted(yolo.average_precision, counts)
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        callbacks=[gradients],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    # Batches of 4 images over both processes, and 7 images to evaluate: one process gets one of them twice.
    trainer.fit(model, loader(samples(16), 2), loader(samples(7, seed=1)))
    weights = model.network.state_dict()
    written = {
        "sums": [float(value.double().sum()) for value in weights.values()],
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "steps": trainer.global_step,
        "evaluated": counts[-1:],
        "decay": trainer.optimizers[0].param_groups[0]["weight_decay"],
        "images": gradients.images,
        "gradients": gradients.first,
    }
    (folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(written))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
