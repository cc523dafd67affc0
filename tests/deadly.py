"""A callback that takes its process down, as the system does where memory runs out."""

import os
import signal

import lightning.pytorch as L


class Deadly(L.Callback):
    def on_train_start(self, trainer, pl_module):
        os.kill(os.getpid(), signal.SIGKILL)
