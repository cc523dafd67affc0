"""Train with what chooses images on the way on some processes; each rank writes what it saw.

python ddp_dynamic.py OUTPUT_FOLDER N_PROCESSES info_batch|scores|random
"""

import json
import sys
from pathlib import Path

import lightning.pytorch as L

sys.path.insert(0, str(Path(__file__).parents[1]))

from dynamic_models import QUIET, Data, Model

from toolkit.callbacks import InfoBatch, TrainingScoreWriter
from toolkit.datamodules import RandomEachEpoch


def main():
    folder, n_processes, what = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    L.seed_everything(1)
    data, callbacks = Data(batch_size=2), []
    if what == "random":
        data = RandomEachEpoch(data, 0.5)
    elif what == "scores":
        callbacks = [TrainingScoreWriter(folder / "scores")]
    else:
        callbacks = [InfoBatch()]
    model = Model()
    trainer = L.Trainer(
        max_epochs=8, devices=n_processes, strategy="ddp", callbacks=callbacks, default_root_dir=folder, **QUIET
    )
    trainer.fit(model, datamodule=data)
    losses = callbacks[0].state_dict()["losses"].tolist() if what == "info_batch" else None
    written = {"images": model.images(), "steps": trainer.global_step, "losses": losses}
    (folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(written))


if __name__ == "__main__":
    main()
