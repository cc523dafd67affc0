"""The Lightning module that trains an image classifier as Birodkar et al. (2019) do."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, cast

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from toolkit.models.resnet import build_network
from toolkit.validation import check_choice, invalid

__all__ = ["ImageClassifier", "warmup_cosine"]

#: The modes of `torch.compile`.
_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def warmup_cosine(step: int, total_steps: int, warmup_steps: int) -> float:
    """The factor on the learning rate at one step: up in a straight line, then down to 0 along a cosine.

    With W warm-up steps of T in all, the factor is (t + 1) / (W + 1) for t < W and
    (1 + cos(pi (t - W) / (T - W))) / 2 from t = W on, where it is 1. The rise starts above 0, so that the first step is
    not lost.

    Args:
        step: Number of steps done before this one, t.
        total_steps: Number of steps in all, T; from there on the factor is 0.
        warmup_steps: Number of steps below the full learning rate, W.

    Returns:
        A number in [0, 1].

    Example:
        >>> [round(warmup_cosine(step, total_steps=6, warmup_steps=1), 3) for step in range(7)]
        [0.5, 1.0, 0.905, 0.655, 0.345, 0.095, 0.0]
    """
    if step >= total_steps:
        return 0.0
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))


class ImageClassifier(L.LightningModule):
    """An image classifier with the training recipe that the papers on redundant images share.

    Stochastic gradient descent with momentum; the learning rate rises in a straight line during the first 2.5 % of the
    steps and then falls to 0 along a cosine (`warmup_cosine`), set anew at every step. The number of steps is what the
    trainer is going to take, whether epochs or steps limit it, so a pruned training set gets a whole schedule too.

    | logged | what | when |
    |---|---|---|
    | `train/loss`, `train/accuracy` | cross entropy, share of right answers, over the augmented images | epoch |
    | `val/loss`, `val/accuracy` | the same over the validation images | epoch |
    | `test/loss`, `test/accuracy` | the same over the test images | epoch |

    Nothing is read back from the device during an epoch, so a step never waits for a metric.

    Args:
        network: Name of a network, of the CIFAR ResNets ("resnet20", "resnet32", ...) or else of torchvision's
            classification models, or a module that turns images (N, channels, H, W) into logits (N, num_classes). A
            module is not saved among the hyperparameters: pass it again to `load_from_checkpoint`.
        num_classes: Number of classes.
        in_channels: Channels of the images; without effect where `network` is a module.
        learning_rate: Learning rate at the end of the warm-up.
        momentum: Momentum of the gradient descent.
        weight_decay: Weight decay, on all parameters.
        warmup_fraction: Share of all steps that the learning rate takes to rise, in [0, 1).
        warmup_steps: Number of those steps instead, where it is given.
        channels_last: Keep weights and images in channels-last order in memory, which convolutions in half precision
            prefer on recent GPUs.
        compile: Run the training, validation and test steps through `torch.compile`. Names of parameters stay as they
            are, and calling the module or its network is never compiled, so hooks work; while any layer has a
            forward hook, the steps run uncompiled too (compiled code would skip hooks that came after it). The name of
            one of its modes compiles by that mode, each shape of batch apart: `reduce-overhead` replays a step as one
            CUDA graph, which small networks on fast GPUs need to be limited by arithmetic.
        label_smoothing: Share of the target spread evenly over all classes, in [0, 1).

    Raises:
        ValueError: If a value is out of its range or the name of the network is unknown.
        TypeError: If `network` is neither a name nor a module.
        MisconfigurationException: In training, if the trainer has no end or the warm-up is as long as the training.

    References:
        Birodkar, Mobahi, Bengio: Semantic redundancies in image-classification datasets: the 10% you don't need, 2019:
        ResNet-32, learning rate 0.1, momentum 0.9, weight decay 1e-4, batches of 128, 2,500 of 100,000 steps of
        warm-up.

    Example:
        >>> classifier = ImageClassifier("resnet20", num_classes=10, in_channels=1)
        >>> classifier(torch.zeros(4, 1, 8, 8)).shape
        torch.Size([4, 10])
    """

    def __init__(
        self,
        network: str | nn.Module = "resnet32",
        num_classes: int = 10,
        in_channels: int = 3,
        learning_rate: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        warmup_fraction: float = 0.025,
        warmup_steps: int | None = None,
        channels_last: bool = False,
        compile: bool | str = False,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise invalid("num_classes", "at least 2", num_classes)
        if not learning_rate > 0:
            raise invalid("learning_rate", "above 0", learning_rate)
        if not weight_decay >= 0:
            raise invalid("weight_decay", "at least 0", weight_decay)
        for name, value in (
            ("momentum", momentum),
            ("warmup_fraction", warmup_fraction),
            ("label_smoothing", label_smoothing),
        ):
            if not 0.0 <= value < 1.0:
                raise invalid(name, "in [0, 1)", value)
        if warmup_steps is not None and warmup_steps < 0:
            raise invalid("warmup_steps", "at least 0", warmup_steps)
        if isinstance(compile, str):
            check_choice("compile", compile, _MODES)
        if not isinstance(network, str | nn.Module):
            raise TypeError(f"`network` must be the name of a network or a torch module, got {network!r}.")
        # Only numbers and strings may go into a checkpoint, or it no longer loads with `weights_only=True`.
        self.save_hyperparameters(ignore=[] if isinstance(network, str) else ["network"])

        if isinstance(network, str):
            network = build_network(network, num_classes, in_channels)
        self.network: nn.Module = network
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.warmup_fraction = warmup_fraction
        self.warmup_steps = warmup_steps
        self.channels_last = channels_last
        self.label_smoothing = label_smoothing
        #: What each image's loss counts in the next training step, shape (N,), for callbacks to set; None for 1 each.
        self.sample_weights: Tensor | None = None
        self._compile = compile
        self._compiled: Callable[[Tensor], Tensor] | None = None
        if channels_last:
            # mypy's stubs know no `memory_format` without a device or dtype in all versions of torch.
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,unused-ignore]

        # `validate_args=True` would look at the values of every batch and so wait for the device.
        for stage in ("train", "val", "test"):
            metric = MulticlassAccuracy(num_classes=num_classes, average="micro", validate_args=False)
            self.add_module(f"{stage}_accuracy", metric)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of normalised images (N, channels, H, W)."""
        return cast("Tensor", self.network(self._in_order(images)))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Cross entropy of one batch of images (N, channels, H, W) and labels (N,).

        Returns:
            `loss`, which `sample_weights` counts in; for callbacks also the `losses` (N,) without them, and the
            `logits` (N, num_classes).
        """
        return self._step("train", batch)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Count one batch of the validation images."""
        self._step("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Count one batch of the test images."""
        self._step("test", batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Logits of one batch, with or without labels beside the images."""
        images: Tensor = batch[0] if isinstance(batch, (tuple, list)) else batch
        return self.forward(images)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Gradient descent with momentum, and the schedule over the steps that the trainer is going to take."""
        total = self.trainer.estimated_stepping_batches
        if not 0 < total < math.inf:
            raise MisconfigurationException(
                "The learning rate falls to 0 at the last step, so the training needs an end: "
                "`max_epochs` or `max_steps` of the trainer must be set (`max_steps` if the data has no length)."
            )
        total = int(total)
        warmup = round(self.warmup_fraction * total) if self.warmup_steps is None else self.warmup_steps
        if warmup >= total:
            raise MisconfigurationException(f"`warmup_steps` must be below the training's {total} steps, got {warmup}.")
        optimizer = torch.optim.SGD(
            self.parameters(), lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
        )
        factor = functools.partial(warmup_cosine, total_steps=total, warmup_steps=warmup)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _in_order(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    def _step(self, stage: str, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images, labels = batch
        # Lower precision is for the network; the loss is summed in full.
        logits = self._network_for_steps()(self._in_order(images)).float()
        smoothing = self.label_smoothing if stage == "train" else 0.0
        losses = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
        weights = self.sample_weights if stage == "train" else None
        loss = losses.mean() if weights is None else (losses * weights).mean()
        accuracy = cast("MulticlassAccuracy", getattr(self, f"{stage}_accuracy"))
        accuracy.update(logits.detach(), labels)
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": len(labels)}
        self.log(f"{stage}/loss", loss.detach(), sync_dist=True, **options)
        self.log(f"{stage}/accuracy", accuracy, prog_bar=True, **options)
        return {"loss": loss, "losses": losses.detach(), "logits": logits.detach()}

    def _network_for_steps(self) -> Callable[[Tensor], Tensor]:
        """The compiled network where that is wanted and sees every hook, the network itself otherwise."""
        if not self._compile or any(
            module._forward_hooks or module._forward_pre_hooks for module in self.network.modules()
        ):
            return self.network
        if self._compiled is None:
            # A function, not a module, so that no parameter is registered, or renamed, a second time.
            options: dict[str, Any] = (
                {"mode": self._compile, "dynamic": False} if isinstance(self._compile, str) else {}
            )
            self._compiled = torch.compile(self.network.forward, **options)
        if isinstance(self._compile, str):
            # What the last step gave may be written over from here on.
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call,unused-ignore]
        return self._compiled

    def __getstate__(self) -> dict[str, Any]:
        # Compiled code can be neither copied nor sent to another process; it is made again there.
        state = dict(super().__getstate__())
        state["_compiled"] = None
        return state
