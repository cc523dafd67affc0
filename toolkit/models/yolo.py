"""The Lightning module that trains YOLOv5 for object detection as ultralytics trains it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as L
import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torchvision.ops import box_convert  # non_max_suppression takes torchvision's kernel only where that is imported

from toolkit.checkpoints import load_matching, renamed_for
from toolkit.detection.average_precision import average_precision
from toolkit.detection.ultralytics_parts import non_max_suppression
from toolkit.distributed import gather_objects, on_rank_zero, world
from toolkit.models.yolo_network import (
    NetworkFile,
    adapt_classes,
    build_network,
    class_layers,
    head_of,
    hyperparameters,
    is_shipped,
    read_architecture,
    read_weights,
    set_classes,
    write_checkpoint,
)
from toolkit.validation import invalid

__all__ = ["WarmupSchedule", "WeightAverage", "YOLOv5", "most_confident_class"]

#: Strategies that spread one model's weights over processes, which cannot be averaged one process at a time.
_SHARDED = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy")
#: The module's own part of a checkpoint.
_OWN_STATE = "yolov5"
_PREFIX = "network."


def most_confident_class(predictions: Tensor, confidence: float = 0.25) -> Tensor:
    """What an image shows to a detector: the class of its most confident box, or none.

    As `decision` of a `DecisionBoundaryMonitor`, or of `toolkit.boundary.probe_paths`, it makes a class an image of a
    detection network's output.

    Args:
        predictions: Decoded predictions (B, 4 + C, places), as `YOLOv5` gives them in evaluation mode.
        confidence: What the most confident box needs to count.

    Returns:
        int64 of shape (B,): the class, or C for "none".

    Example:
        >>> places = torch.tensor([[0.1, 0.6], [0.2, 0.3]])  # two classes at two places
        >>> most_confident_class(torch.cat([torch.zeros(4, 2), places])[None])
        tensor([0])
        >>> most_confident_class(torch.cat([torch.zeros(4, 2), places])[None], confidence=0.7)
        tensor([2])
    """
    best, label = predictions[:, 4:].amax(2).max(1)
    return torch.where(best >= confidence, label, predictions.shape[1] - 4)


@dataclass(frozen=True)
class WarmupSchedule:
    """Learning rates, momentum and accumulation of each batch, as ultralytics sets them.

    The learning rate falls from epoch to epoch, in a straight line or along half a cosine, from `learning_rate` to
    `final` of it. During the first batches it rises from 0 (that of the biases falls from `warmup_bias_lr`), momentum
    rises from `warmup_momentum`, and gradients of 1 to `accumulate` batches are added up for a step.

    Args:
        batches: Batches an epoch.
        epochs: Number of epochs.
        accumulate: Batches a step, after the warm-up.
        learning_rate: Learning rate at the start.
        final: Share of it that is left at the end.
        momentum: Momentum after the warm-up.
        warmup_epochs: Epochs of the warm-up; the last epoch has none.
        warmup_momentum: Momentum at the first batch.
        warmup_bias_lr: Learning rate of the biases at the first batch.
        cosine: Whether it falls along a cosine.

    Example:
        >>> schedule = WarmupSchedule(batches=10, epochs=5, accumulate=4, warmup_epochs=1.0)
        >>> [round(schedule.rate(step, is_bias=False), 4) for step in (0, 5, 10, 49)]
        [0.0, 0.005, 0.008, 0.0021]
        >>> [schedule.accumulation(step) for step in (0, 5, 10, 49)]
        [1, 2, 4, 4]
    """

    batches: int
    epochs: int
    accumulate: int = 1
    learning_rate: float = 0.01
    final: float = 0.01
    momentum: float = 0.937
    warmup_epochs: float = 3.0
    warmup_momentum: float = 0.8
    warmup_bias_lr: float = 0.1
    cosine: bool = False

    @property
    def warmup(self) -> int:
        """Batches of the warm-up."""
        return round(max(0.0, min(self.warmup_epochs, self.epochs - 1)) * self.batches)

    def factor(self, epoch: int) -> float:
        """The share of the learning rate that is left in an epoch, counted from 0."""
        if self.cosine:
            return max((1 - math.cos(epoch * math.pi / self.epochs)) / 2, 0) * (self.final - 1) + 1
        return max(1 - epoch / self.epochs, 0) * (1.0 - self.final) + self.final

    def rate(self, step: int, *, is_bias: bool) -> float:
        """The learning rate at a batch, counted from 0 over all epochs."""
        full = self.learning_rate * self.factor(step // self.batches)
        return self._warming(step, self.warmup_bias_lr if is_bias else 0.0, full)

    def momentum_at(self, step: int) -> float:
        """The momentum at a batch."""
        return self._warming(step, self.warmup_momentum, self.momentum)

    def accumulation(self, step: int) -> int:
        """How many batches' gradients make a step."""
        return max(1, int(np.round(self._warming(step, 1, self.accumulate))))

    def _warming(self, step: int, start: float, end: float) -> float:
        return float(np.interp(step, [0, self.warmup], [start, end])) if step <= self.warmup and self.warmup else end


class WeightAverage:
    """The exponential moving average of a network's weights and buffers that ultralytics evaluates instead of them.

    After the n-th step, average = d average + (1 - d) weights with d = decay (1 - exp(-n / tau)).

    Args:
        network: The network, whose weights the average starts with.
        decay: Largest share of the average that stays.
        tau: Steps after which 63 % of that is reached.
        updates: Steps done before.

    References:
        `ModelEMA` of ultralytics, which holds a second network where this holds its values alone.
    """

    def __init__(self, network: nn.Module, decay: float = 0.9999, tau: float = 2000.0, updates: int = 0) -> None:
        self.decay = decay
        self.tau = tau
        self.updates = updates
        #: The average by name; what is no floating-point number is as it was at the start.
        self.values = {name: value.detach().clone() for name, value in network.state_dict().items()}
        self._pairs: tuple[list[Tensor], list[Tensor]] | None = None

    def update(self, network: nn.Module) -> None:
        """Take the weights after a step in."""
        self.updates += 1
        share = 1 - self.decay * (1 - math.exp(-self.updates / self.tau))
        if self._pairs is None:  # these are changed in place from then on
            weights = network.state_dict()
            names = [name for name, value in self.values.items() if value.is_floating_point()]
            self._pairs = [self.values[name] for name in names], [weights[name] for name in names]
        with torch.no_grad():
            torch._foreach_lerp_(*self._pairs, share)

    def swap(self, network: nn.Module) -> None:
        """Exchange the average and the network's weights, in place."""
        with torch.no_grad():
            for name, value in network.state_dict().items():
                other = value.clone()
                value.copy_(self.values[name])
                self.values[name].copy_(other)

    def to(self, device: torch.device) -> None:
        """Move the values to a device."""
        self.values = {name: value.to(device) for name, value in self.values.items()}
        self._pairs = None


class YOLOv5(L.LightningModule):
    """YOLOv5 with the anchor-free head, trained and evaluated as ultralytics does.

    The loss, the three groups of parameters, gradient descent with Nesterov momentum, the accumulation of gradients to
    batches of `nominal_batch_size`, the warm-up, the learning rates, the clipping of gradients and the moving average
    of the weights are those of ultralytics' trainer with `optimizer="SGD"`, whatever the data module; the trainer needs
    `max_epochs`. The averaged weights are evaluated, are what the module holds after training, and are the `state_dict`
    of its checkpoints. Those being trained lie beside them: a training that is resumed goes on as if it had not been
    interrupted.

    Batches are dictionaries: `img` (B, 3, H, W) in [0, 1] with sides that are multiples of 32; for all boxes of the
    batch `cls` (M, 1), `bboxes` (M, 4) centre, width and height in [0, 1], and `batch_idx` (M,), the image of each;
    maybe `im_file`, a name an image.

    | logged | what | when |
    |---|---|---|
    | `train/loss` | the sum of the three below; means over the batches | epoch |
    | `train/box_loss`, `train/cls_loss`, `train/dfl_loss` | of the boxes, their classes, their sides' distributions | |
    | `val/loss`, `val/box_loss`, ... | the same over the validation images | epoch |
    | `val/mAP50`, `val/mAP50-95` | COCO's mean average precision with `max_det` detections an image | epoch |
    | `val/score` | 0.1 mAP50 + 0.9 mAP50-95, by which YOLOv5 chooses its best weights | epoch |
    | `val/AP/{name}` | AP50-95 of each class; NaN where no image has a box of it | epoch |

    and the same under `test/`. Without any box in the validation images these scores are NaN, with a warning.

    Args:
        network: A network that comes with ultralytics ("yolov5n.yaml", or s, m, l, x), a YAML file or its content, or
            a checkpoint of ultralytics (.pt), whose architecture and weights are taken.
        num_classes: Number of classes; if None, what the data module (or else the weights that are loaded, or else the
            architecture) tells.
        weights: Weights to start from: a state dict, a checkpoint of this module or one of ultralytics. It need not
            hold all: what was loaded is logged. Of the head, layers for another number of classes are left out.
        learning_rate: Learning rate at the end of the warm-up.
        final_learning_rate: Share of it that is left at the end.
        momentum: Momentum after the warm-up.
        weight_decay: Weight decay of the weights of convolutions, for batches of `nominal_batch_size`.
        warmup_epochs: Epochs of the warm-up.
        warmup_momentum: Momentum at its start.
        warmup_bias_lr: Learning rate of the biases at its start.
        nominal_batch_size: Batches are added up to about as many images before each step.
        cosine: Let the learning rate fall along half a cosine instead of a straight line.
        box_gain: Factor of the loss of the boxes.
        cls_gain: Factor of the loss of the classes.
        dfl_gain: Factor of the loss of the distributions.
        ema: Whether to average weights.
        ema_decay: Largest share of the average that stays after a step.
        ema_tau: Steps in which this share rises to 63 % of that.
        max_gradient_norm: Norm to which gradients are clipped; None leaves them as they are.
        confidence: Least confidence of a detection, for evaluation and `predict_step`.
        iou: Intersection over union from which on non-maximum suppression takes two boxes of a class for one.
        max_det: Detections an image, at most.

    Raises:
        ValueError: If a value is out of its range, `network` is none, or `weights` are of another architecture.
        FileNotFoundError: If a file does not exist.
        MisconfigurationException: At the start of a fit, if the trainer has no `max_epochs`, accumulates or clips
            gradients itself, or spreads the model over processes; if the data has more classes than the module.

    References:
        Jocher, "YOLOv5 by Ultralytics", 2020, doi 10.5281/zenodo.3908559; the head and the loss are those that
        ultralytics gives it since (YOLOv5u). Two things of its trainer are left out, as Lightning has its own: smaller
        batches after running out of memory, and going back to the last checkpoint after a loss of NaN.

    Example:
        >>> model = YOLOv5("yolov5n.yaml", num_classes=3).eval()
        >>> model(torch.zeros(2, 3, 64, 96)).shape  # 4 + 3 numbers at 8 x 12 + 4 x 6 + 2 x 3 places
        torch.Size([2, 7, 126])
    """

    def __init__(
        self,
        network: str | Path | dict[str, Any] = "yolov5n.yaml",
        num_classes: int | None = None,
        weights: str | Path | None = None,
        *,
        learning_rate: float = 0.01,
        final_learning_rate: float = 0.01,
        momentum: float = 0.937,
        weight_decay: float = 5e-4,
        warmup_epochs: float = 3.0,
        warmup_momentum: float = 0.8,
        warmup_bias_lr: float = 0.1,
        nominal_batch_size: int = 64,
        cosine: bool = False,
        box_gain: float = 7.5,
        cls_gain: float = 0.5,
        dfl_gain: float = 1.5,
        ema: bool = True,
        ema_decay: float = 0.9999,
        ema_tau: float = 2000.0,
        max_gradient_norm: float | None = 10.0,
        confidence: float = 0.001,
        iou: float = 0.7,
        max_det: int = 300,
    ) -> None:
        super().__init__()
        if not isinstance(network, str | Path | Mapping):
            raise TypeError(f"`network` must be a name, a file or the content of a YAML file, got {network!r}.")
        # Only plain values may go into a checkpoint, or it no longer loads with `weights_only=True`.
        network = str(network) if isinstance(network, Path) else network
        weights = str(weights) if isinstance(weights, Path) else weights
        self.save_hyperparameters()
        if num_classes is not None and (isinstance(num_classes, bool) or not isinstance(num_classes, int)):
            raise TypeError(f"`num_classes` must be a whole number or None, got {num_classes!r}.")
        for name, value, must, is_right in (
            ("num_classes", num_classes, "at least 1", num_classes is None or num_classes >= 1),
            ("nominal_batch_size", nominal_batch_size, "at least 1", nominal_batch_size >= 1),
            ("max_det", max_det, "at least 1", max_det >= 1),
            ("learning_rate", learning_rate, "above 0", learning_rate > 0),
            ("ema_tau", ema_tau, "above 0", ema_tau > 0),
            ("max_gradient_norm", max_gradient_norm, "above 0", max_gradient_norm is None or max_gradient_norm > 0),
            ("weight_decay", weight_decay, "at least 0", weight_decay >= 0),
            ("warmup_epochs", warmup_epochs, "at least 0", warmup_epochs >= 0),
            ("warmup_bias_lr", warmup_bias_lr, "at least 0", warmup_bias_lr >= 0),
            ("box_gain", box_gain, "at least 0", box_gain >= 0),
            ("cls_gain", cls_gain, "at least 0", cls_gain >= 0),
            ("dfl_gain", dfl_gain, "at least 0", dfl_gain >= 0),
            ("momentum", momentum, "in [0, 1)", 0 <= momentum < 1),
            ("warmup_momentum", warmup_momentum, "in [0, 1)", 0 <= warmup_momentum < 1),
            ("ema_decay", ema_decay, "in [0, 1)", 0 <= ema_decay < 1),
            ("final_learning_rate", final_learning_rate, "in [0, 1]", 0 <= final_learning_rate <= 1),
            ("confidence", confidence, "in [0, 1]", 0 <= confidence <= 1),
            ("iou", iou, "in [0, 1]", 0 <= iou <= 1),
        ):
            if not is_right:
                raise invalid(name, must, value)

        self.learning_rate = learning_rate
        self.final_learning_rate = final_learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.warmup_epochs = warmup_epochs
        self.warmup_momentum = warmup_momentum
        self.warmup_bias_lr = warmup_bias_lr
        self.nominal_batch_size = nominal_batch_size
        self.cosine = cosine
        self.ema = ema
        self.ema_decay = ema_decay
        self.ema_tau = ema_tau
        self.max_gradient_norm = max_gradient_norm
        self.confidence = confidence
        self.iou = iou
        self.max_det = max_det
        #: Steps are taken by `training_step`: how many batches make one changes during the warm-up.
        self.automatic_optimization = False
        file = read_architecture(network)
        assert file.architecture is not None
        #: ultralytics' network; its layers are `network.model.0` to the head.
        self.network: Any = build_network(file.architecture, num_classes)
        self.network.args = hyperparameters(box_gain, cls_gain, dfl_gain)
        #: Who said how many classes there are: `given`, `data`, `weights`, or None, nobody yet.
        self._classes_from: str | None = None if num_classes is None else "given"
        self._imgsz: int | None = None
        self._schedule: WarmupSchedule | None = None
        self._last_step = -1
        self._average: WeightAverage | None = None
        #: Whether the network holds the averaged weights, and `_average` those being trained.
        self._is_averaged = False
        self._restored: dict[str, Any] = {}
        self._gradients: dict[str, Tensor] = {}
        self._seen: list[_Evaluated] = []
        self._warned = False
        self.register_load_state_dict_pre_hook(_adapt)  # type: ignore[no-untyped-call]
        if file.state is not None:
            self._take(file, cast("str", network))
        if weights is not None:
            self._take(read_weights(weights), weights)

    @property
    def num_classes(self) -> int:
        """Number of classes of the head."""
        return int(head_of(self.network).nc)

    @property
    def class_names(self) -> list[str]:
        """The names of the classes; their numbers where nobody told."""
        return [str(self.network.names[number]) for number in range(self.num_classes)]

    def forward(self, images: Tensor) -> Any:
        """Predictions for images (B, 3, H, W) in [0, 1].

        Returns:
            In evaluation mode decoded predictions (B, 4 + num_classes, places): centre, width and height of a box in
            pixels, then the confidence in [0, 1] of each class. In training mode what ultralytics' loss takes.
        """
        output = self.network(images)
        self._forget_places()
        return output[0] if isinstance(output, tuple) else output

    def configure_callbacks(self) -> Sequence[L.Callback]:
        """No callbacks: the first that Lightning asks for, so the place to refuse what it would refuse vaguely."""
        trainer = self.trainer
        if trainer.state.fn == TrainerFn.FITTING:
            if trainer.gradient_clip_val:
                raise MisconfigurationException(
                    f"`gradient_clip_val` of the trainer must be None with YOLOv5, got {trainer.gradient_clip_val}: "
                    "it clips gradients itself, to its own `max_gradient_norm`."
                )
            if trainer.accumulate_grad_batches != 1:
                raise MisconfigurationException(
                    "`accumulate_grad_batches` of the trainer must be 1 with YOLOv5, got "
                    f"{trainer.accumulate_grad_batches}: it adds batches up to its own `nominal_batch_size` images."
                )
            if trainer.max_epochs is None or trainer.max_epochs < 1:
                raise MisconfigurationException(
                    "`max_epochs` of the trainer must be set with YOLOv5, whose learning rates and warm-up go by "
                    f"epochs, got {trainer.max_epochs}."
                )
            if type(trainer.strategy).__name__ in _SHARDED:
                raise MisconfigurationException(
                    "`strategy` must keep the whole model on each device for YOLOv5, got "
                    f"{type(trainer.strategy).__name__}."
                )
        return []

    def setup(self, stage: str) -> None:
        """Take the number and the names of the classes from the data module."""
        self._hold_average()  # of a training that was interrupted
        datamodule = getattr(self.trainer, "datamodule", None)
        found = getattr(datamodule, "num_classes", None)
        if isinstance(found, int) and not isinstance(found, bool):
            # A trained head is replaced only where there is other data to train it on.
            if self._classes_from is None or (self._classes_from != "given" and stage == "fit"):
                if found != self.num_classes:
                    set_classes(self.network, found)
                self.hparams["num_classes"], self._classes_from = found, "data"
            if found > self.num_classes:
                raise MisconfigurationException(
                    f"`num_classes` must be at least the data module's {found}, got {self.num_classes}. Leave it out "
                    "to have as many as there are."
                )
            names = getattr(datamodule, "class_names", None)
            if isinstance(names, (list, tuple)):
                self._set_names(names)
        imgsz = getattr(datamodule, "imgsz", None)
        self._imgsz = imgsz if isinstance(imgsz, int) else self._imgsz
        if self.trainer.strategy.root_device.type == "cuda":
            # Convolutions in half precision are faster so; before the optimizer and the strategy look at the weights.
            self.network.to(memory_format=torch.channels_last)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Gradient descent with Nesterov momentum in three groups: weights with decay, weights of norms, biases.

        Learning rates, momentum and weight decay are set while training.
        """
        groups: dict[str, list[nn.Parameter]] = {"weight": [], "norm": [], "bias": []}
        norms = tuple(kind for name, kind in vars(nn).items() if "Norm" in name)
        for layer, module in self.network.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                is_bias = "bias" in (f"{layer}.{name}" if layer else name)
                groups["bias" if is_bias else "norm" if isinstance(module, norms) else "weight"].append(parameter)
        return torch.optim.SGD(
            [{"params": parameters, "kind": kind, "weight_decay": 0.0} for kind, parameters in groups.items()],
            lr=self.learning_rate,
            momentum=self.momentum,
            nesterov=True,
        )

    def on_fit_start(self) -> None:
        """Start the average, or go on with that of a checkpoint."""
        restored, self._restored = self._restored, {}
        self.network.criterion = None
        self._average, self._is_averaged = None, False
        if self.ema:
            self._average = WeightAverage(self.network, self.ema_decay, self.ema_tau, restored.get("updates", 0))
        if "training_weights" in restored:
            self.network.load_state_dict(restored["training_weights"])
        self._last_step = restored.get("last_step", -1)
        self._gradients = restored.get("gradients", {})

    def on_train_start(self) -> None:
        """Plan the learning rates, now that the number of batches is known."""
        # Only now: Lightning clears gradients after it has read a checkpoint.
        gradients, self._gradients = self._gradients, {}
        for name, parameter in self.network.named_parameters():
            if name in gradients:
                parameter.grad = torch.empty_like(parameter).copy_(gradients[name])
        batches, epochs = self.trainer.num_training_batches, cast("int", self.trainer.max_epochs)
        if not batches < math.inf:
            raise MisconfigurationException(
                "The training data must have a length with YOLOv5, whose learning rates go by epochs, got an endless "
                "loader. Set `limit_train_batches` of the trainer to a whole number."
            )
        batch_size = _batch_size_of(self.trainer.train_dataloader) * self.trainer.world_size
        accumulate = max(round(self.nominal_batch_size / batch_size), 1)
        decay = self.weight_decay * batch_size * accumulate / self.nominal_batch_size
        for group in self._optimizer().param_groups:
            group["weight_decay"] = decay if group["kind"] == "weight" else 0.0
        self._schedule = WarmupSchedule(
            int(batches),
            epochs,
            min(accumulate, int(batches) * epochs),
            self.learning_rate,
            self.final_learning_rate,
            self.momentum,
            self.warmup_epochs,
            self.warmup_momentum,
            self.warmup_bias_lr,
            self.cosine,
        )

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Add one batch's gradients up, and take a step when they are enough."""
        assert self._schedule is not None
        optimizer, schedule = self._optimizer(), self._schedule
        step = batch_idx + schedule.batches * self.trainer.current_epoch
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step, is_bias=group["kind"] == "bias")
            group["momentum"] = schedule.momentum_at(step)
        loss, parts = self._loss(batch, self.network(batch["img"]))
        # Gradients are averaged over processes, where they are to be added up as those of one large batch.
        self.manual_backward(loss.sum() * self.trainer.world_size)
        if step - self._last_step >= schedule.accumulation(step):
            optimizer.step()
            optimizer.zero_grad()
            self._last_step = step
            if self._average is not None:
                self._average.update(self.network)
        self._log_loss("train", parts)
        return loss.sum().detach()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradients."""
        if self.max_gradient_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), max_norm=self.max_gradient_norm)

    def on_validation_model_zero_grad(self) -> None:
        """Keep the gradients: those of batches that have not made a step yet count after validation too."""

    def on_validation_epoch_start(self) -> None:
        """Evaluate the averaged weights."""
        self._seen = []
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._share_statistics()
            self._hold_average()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Detect in one batch of the validation images."""
        self._evaluate("val", batch)

    def on_validation_epoch_end(self) -> None:
        """Log how well boxes were found, and go on with the weights being trained."""
        self._log_scores("val")
        if self.trainer.state.fn == TrainerFn.FITTING and self._average is not None and self._is_averaged:
            self._average.swap(self.network)
            self._is_averaged = False

    def on_test_epoch_start(self) -> None:
        """Forget earlier images."""
        self._seen = []

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Detect in one batch of the test images."""
        self._evaluate("test", batch)

    def on_test_epoch_end(self) -> None:
        """Log how well boxes were found."""
        self._log_scores("test")

    def predict_step(self, batch: Any, batch_idx: int) -> list[dict[str, Tensor]]:
        """The detections in each image of a batch: one class a box, as ultralytics predicts.

        Args:
            batch: A dictionary with `img`, or the images (B, 3, H, W) in [0, 1].
            batch_idx: The batch's number.

        Returns:
            For each image `boxes` (n, 4), corners in pixels of the image as it was given to the network, `scores` (n,)
            in falling order, and `labels` (n,) int64.
        """
        images = batch["img"] if isinstance(batch, Mapping) else batch
        decoded, _ = self._infer(images)
        return [_as_detections(found) for found in self._suppressed(decoded, multi_label=False)]

    def on_train_end(self) -> None:
        """From here on the module holds the averaged weights."""
        self._share_statistics()
        self._hold_average()

    def on_fit_end(self) -> None:
        """Let the weights being trained, which a checkpoint written from now on holds too, follow the module."""
        if self._average is not None:
            self._average.to(self.device)

    def teardown(self, stage: str) -> None:
        """Let go of the last images and of the loss, which knows a device."""
        self._seen = []
        self.network.criterion = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the averaged weights the checkpoint's own, and put what resuming needs beside them."""
        settings = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY)
        if settings is not None:
            # What loads the checkpoint needs no other file.
            settings["num_classes"], settings["weights"] = self.num_classes, None
            if not is_shipped(settings.get("network")):
                settings["network"] = dict(self.network.yaml)
        own: dict[str, Any] = {"class_names": self.class_names, "imgsz": self._imgsz}
        is_whole = "optimizer_states" in checkpoint
        if self._average is not None:
            averaged, trained = self._average.values, self.network.state_dict()
            if self._is_averaged:
                averaged, trained = trained, averaged
            checkpoint["state_dict"] |= {_PREFIX + name: value for name, value in averaged.items()}
            if is_whole:
                own |= {"training_weights": dict(trained), "updates": self._average.updates}
        if is_whole:
            gradients = {name: p.grad for name, p in self.network.named_parameters() if p.grad is not None}
            own |= {"last_step": self._last_step, "gradients": gradients}
        checkpoint[_OWN_STATE] = own

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the names of the classes and, where a training is resumed, what it needs to go on."""
        own = checkpoint.get(_OWN_STATE)
        if own is None:
            return
        key = f"{_PREFIX}{class_layers(self.network)}"
        self.adapt_to({name: value for name, value in checkpoint["state_dict"].items() if name.startswith(key)})
        self._set_names(own["class_names"])
        self._imgsz = own["imgsz"] if self._imgsz is None else self._imgsz
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            self._restored = dict(own)

    def adapt_to(self, state: Mapping[str, Tensor]) -> None:
        """Give the head the shapes that weights which are about to be loaded have there.

        Their number of classes is taken only if neither the constructor nor a data module told another.

        Args:
            state: A state dict of such a module.
        """
        inner = {name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)}
        may_change = self._classes_from in {None, "weights"}
        found = adapt_classes(self.network, inner, may_change_number=may_change)
        if found is not None and may_change:
            self.hparams["num_classes"], self._classes_from = found, "weights"

    def export(self, path: str | Path) -> Path:
        """Write the network, averaged weights if there are any, as a checkpoint that `ultralytics.YOLO(path)` opens.

        Args:
            path: The file, with the ending `.pt`. It is replaced as a whole once it is written.

        Returns:
            The file.

        Raises:
            ValueError: If the file has another ending.
            FileNotFoundError: If its folder does not exist.
        """
        file = Path(path).expanduser()
        if file.suffix != ".pt":
            raise invalid("path", "a file with the ending '.pt', which ultralytics opens", str(path))
        if not file.parent.is_dir():
            raise FileNotFoundError(f"`path` must be in an existing folder, got {str(path)!r}.")
        held = self._average is not None and not self._is_averaged
        if held:
            cast("WeightAverage", self._average).swap(self.network)
        try:
            write_checkpoint(self.network, file, {} if self._imgsz is None else {"imgsz": self._imgsz})
        finally:
            if held:
                cast("WeightAverage", self._average).swap(self.network)
        return file

    def _optimizer(self) -> Any:
        return self.optimizers()

    def _take(self, file: NetworkFile, source: str) -> None:
        """Load the weights of a file into the network, and tell what was loaded."""
        assert file.state is not None
        state = renamed_for(self.network.state_dict(), file.state)
        self.adapt_to({_PREFIX + name: value for name, value in state.items()})
        found = load_matching(self.network, state, source, may_differ=[class_layers(self.network)])
        if file.names is not None and len(file.names) == self.num_classes:
            self._set_names([file.names[number] for number in sorted(file.names)])
        rank_zero_info(f"YOLOv5: weights from {source!r}: {found}.")

    def _set_names(self, names: Sequence[str]) -> None:
        """Name the classes; those beyond the names are called by their numbers."""
        numbers = range(self.num_classes)
        self.network.names = {number: names[number] if number < len(names) else str(number) for number in numbers}

    def _share_statistics(self) -> None:
        """Have the averaged buffers of the first process everywhere: unlike weights, they are each process' own."""
        if world()[1] > 1 and self._average is not None:
            for name, _ in self.network.named_buffers():
                torch.distributed.broadcast(self._average.values[name], src=0)

    def _hold_average(self) -> None:
        """Have the averaged weights in the network, if they are beside it."""
        if self._average is not None and not self._is_averaged:
            self._average.swap(self.network)
            self._is_averaged = True

    def _loss(self, batch: dict[str, Any], predictions: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss that ultralytics takes of each kind times the number of images, and the plain ones by name."""
        criterion = getattr(self.network, "criterion", None)
        if criterion is not None and criterion.device != batch["img"].device:
            self.network.criterion = None
        loss, parts = self.network.loss(batch, predictions)
        return loss, parts

    def _infer(self, images: Tensor) -> tuple[Tensor, Any]:
        """Decoded predictions, and what the loss takes, in full precision: coordinates have no room in bfloat16."""
        with torch.autocast(images.device.type, enabled=False):
            decoded, raw = self.network(images.to(next(self.network.parameters()).dtype))
        self._forget_places()
        return decoded, raw

    def _forget_places(self) -> None:
        """Drop what the head keeps of the last image size if no gradient could ever flow through it."""
        head = head_of(self.network)
        if head.anchors.is_inference():
            head.shape, head.anchors, head.strides = None, type(head).anchors, type(head).strides

    def _suppressed(self, decoded: Tensor, *, multi_label: bool) -> list[Tensor]:
        """The detections (n, 6) of each image: corners, confidence and class."""
        found: list[Tensor] = non_max_suppression(
            decoded,
            self.confidence,
            self.iou,
            multi_label=multi_label,
            max_det=self.max_det,
            max_time_img=math.inf,  # or it leaves out images on a busy machine
        )
        return found

    def _evaluate(self, stage: str, batch: dict[str, Any]) -> None:
        """Log the loss of a batch, and keep its detections and boxes on the CPU."""
        decoded, raw = self._infer(batch["img"])
        with torch.autocast(decoded.device.type, enabled=False):
            _, parts = self._loss(batch, (decoded, raw))
        self._log_loss(stage, parts)
        found = self._suppressed(decoded, multi_label=True)
        lengths = [len(detections) for detections in found]
        names = batch.get("im_file") or [None] * len(found)
        rows = torch.split(torch.cat(found).cpu(), lengths)
        for name, detections, boxes in zip(names, rows, _targets_of(batch), strict=True):
            self._seen.append(_Evaluated(name, _as_detections(detections), boxes))

    def _log_loss(self, stage: str, parts: Mapping[str, Tensor]) -> None:
        values = {f"{stage}/loss": sum(parts.values()), **{f"{stage}/{name}": value for name, value in parts.items()}}
        # Each batch counts the same, as the parts are already means over its boxes.
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    def _log_scores(self, stage: str) -> None:
        """Log the average precision over the images that all processes saw."""
        images = [image for part in gather_objects(self._seen) for image in part]
        self._seen = []
        if world()[1] > 1:
            images = _each_once(images)
        predictions, targets = [image.detections for image in images], [image.boxes for image in images]
        found = on_rank_zero(lambda: average_precision(predictions, targets, self.num_classes, self.max_det))
        if math.isnan(found.map50) and not self._warned and not self.trainer.sanity_checking:
            self._warned = True
            rank_zero_warn(
                f"None of the {len(images)} images evaluated for `{stage}/mAP50` has a box, so the scores are NaN. "
                "Look at the boxes of that part of the data."
            )
        values = {f"{stage}/mAP50": found.map50, f"{stage}/mAP50-95": found.map50_95, f"{stage}/score": found.score}
        options: dict[str, Any] = {"batch_size": 1, "sync_dist": world()[1] > 1}
        self.log_dict(values, prog_bar=True, **options)
        self.log_dict(
            {f"{stage}/AP/{name}": value for name, value in zip(self.class_names, found.per_class, strict=True)},
            **options,
        )


@dataclass(frozen=True)
class _Evaluated:
    """An image that was evaluated: what was found in it and what is in it, on the CPU."""

    name: str | None
    detections: dict[str, Tensor]
    boxes: dict[str, Tensor]


def _each_once(images: Sequence[_Evaluated]) -> list[_Evaluated]:
    """Images without those that were given to a second process so that all have as many."""
    seen: set[str] = set()
    result = []
    for image in images:
        if image.name is None or image.name not in seen:
            result.append(image)
        if image.name is not None:
            seen.add(image.name)
    return result


def _adapt(module: YOLOv5, state_dict: Mapping[str, Tensor], prefix: str, *rest: Any) -> None:
    """Called before `load_state_dict`."""
    module.adapt_to({name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)})


def _as_detections(found: Tensor) -> dict[str, Tensor]:
    """Rows of corners, confidence and class (n, 6) as what they mean."""
    return {"boxes": found[:, :4], "scores": found[:, 4], "labels": found[:, 5].long()}


def _targets_of(batch: Mapping[str, Any]) -> list[dict[str, Tensor]]:
    """The boxes of each image of a batch, corners in pixels, on the CPU."""
    height, width = batch["img"].shape[2:]
    images = batch["batch_idx"].cpu().view(-1)
    boxes = box_convert(batch["bboxes"].cpu().float(), "cxcywh", "xyxy") * torch.tensor([width, height, width, height])
    labels = batch["cls"].cpu().view(-1).long()
    masks = [images == number for number in range(len(batch["img"]))]
    return [{"boxes": boxes[mask], "labels": labels[mask]} for mask in masks]


def _batch_size_of(loader: Any) -> int:
    """Images a batch of a training loader."""
    for owner in (loader, getattr(loader, "batch_sampler", None)):
        size = getattr(owner, "batch_size", None)
        if isinstance(size, int):
            return size
    raise MisconfigurationException(
        "The training loader must be one with a `batch_size`, by which YOLOv5 knows how many batches make a step, got "
        f"{type(loader).__name__}."
    )
