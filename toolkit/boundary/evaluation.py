"""A model as a function from images to scores, run as for evaluation and left as it was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from toolkit.reproducibility import full_precision, preserved_rng
from toolkit.validation import check_choice, invalid

__all__ = ["PRECISIONS", "Images", "Scorer", "evaluating", "margins_of"]

PRECISIONS = ("float32", "bf16")
#: Images a forward where nothing else is asked for.
_BATCH_SIZE = 256


class Images:
    """Images of one shape in a tensor, an array (a memory map too) or a sequence, of which some are taken at a time.

    Args:
        images: A tensor or array of shape (P, *shape), or a sequence of P tensors or arrays of one shape.
        name: What to call them in an error.

    Raises:
        ValueError: If there are no images, or if they differ in shape.
        TypeError: If they are no floating-point numbers.
    """

    def __init__(self, images: Any, name: str) -> None:
        if isinstance(images, Mapping) or not (hasattr(images, "__len__") and hasattr(images, "__getitem__")):
            raise TypeError(f"`{name}` must be images of shape (P, *shape), got {type(images).__name__}.")
        self.images = images
        self.name = name
        self.whole = hasattr(images, "ndim")
        if (self.whole and images.ndim == 0) or len(images) == 0:
            raise invalid(name, "at least one image, of shape (P, *shape)", tuple(getattr(images, "shape", (0,))))
        self.shape = tuple(images.shape[1:]) if self.whole else tuple(np.shape(images[0]))
        first = self.take(np.zeros(1, np.int64))
        #: Their number format, and the device that they lie on.
        self.dtype, self.device = first.dtype, str(first.device)
        if not self.dtype.is_floating_point:
            raise TypeError(
                f"`{name}` must be floating-point images as the model takes them, got {self.dtype}. "
                "Bytes need the network's preprocessing first."
            )

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: npt.NDArray[np.int64]) -> Tensor:
        """The images of some indices, as a new tensor where they lie."""
        if isinstance(self.images, Tensor):
            return self.images.detach()[torch.from_numpy(indices).to(self.images.device)]
        if self.whole:
            # Indexing with an array copies, which also serves memory maps that must not be written to.
            return torch.from_numpy(np.ascontiguousarray(np.asarray(self.images[indices])))
        rows = [torch.as_tensor(self.images[int(i)]).detach() for i in indices]
        for index, row in zip(indices, rows, strict=True):
            if tuple(row.shape) != self.shape:
                raise invalid(f"{self.name}[{index}]", f"of shape {self.shape} like the first", tuple(row.shape))
        return torch.stack(rows)


class Scorer:
    """A model as a function from batches of images to scores of classes, or to classes alone.

    Inside `with`, a module is in evaluation mode, no gradients are recorded, and TF32 and autocast are off (or autocast
    to bfloat16 on, where asked for). Afterwards the mode of each submodule, all buffers, the grad mode and the random
    state of Python, NumPy and PyTorch are as before, also after an exception.

    Args:
        model: A module or any callable: images (B, *shape) to logits (B, C).
        decision: Makes scores (B, C), or integer classes (B,), of what the model returns.
        precision: "float32", or "bf16" for autocast; scores are compared in float32 either way.
        device: Where images go; that of the model's first parameter if None, the CPU for other callables.
        batch_size: Images a forward; None for 256, or fewer where memory asks for it.

    Raises:
        ValueError: For an unknown precision or a batch size below 1; when called, if the output is neither (B, C) with
            at least two classes nor (with `decision`) (B,) integers.
        TypeError: If the model or `decision` cannot be called, or the output is no tensor.

    Example:
        >>> with Scorer(nn.Linear(3, 2)) as scorer:
        ...     scorer(torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        model: Callable[[Tensor], Any],
        *,
        decision: Callable[[Any], Tensor] | None = None,
        precision: str = "float32",
        device: torch.device | str | None = None,
        batch_size: int | None = None,
    ) -> None:
        check_choice("precision", precision, PRECISIONS)
        for name, function in (("model", model), ("decision", decision)):
            if not callable(function) and (name, function) != ("decision", None):
                raise TypeError(f"`{name}` must be something to call, got {function!r}.")
        if batch_size is not None and (isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer))):
            raise TypeError(f"`batch_size` must be an integer, got {batch_size!r}.")
        if batch_size is not None and batch_size < 1:
            raise invalid("batch_size", "at least 1", batch_size)
        self.model = model
        self.decision = decision
        self.precision = precision
        self.batch_size = batch_size
        first = next(_weights(model), None)
        self.device = torch.device(device if device is not None else "cpu" if first is None else first.device)
        #: What a module's weights are, which is what its images must be; None for other callables.
        self.dtype = None if first is None or not first.dtype.is_floating_point else first.dtype
        self._stack = ExitStack()

    def __enter__(self) -> Scorer:
        with ExitStack() as stack:
            stack.enter_context(preserved_rng())
            stack.enter_context(full_precision())
            stack.enter_context(torch.no_grad())
            if self.precision == "bf16":
                stack.enter_context(torch.autocast(self.device.type, torch.bfloat16))
            if isinstance(self.model, nn.Module):
                stack.enter_context(evaluating(self.model))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def batch_for(self, image_bytes: int, memory_limit: int) -> int:
        """Images a forward, such that what is held of them (both ends and what lies between) stays within the limit."""
        most = memory_limit // (3 * image_bytes)
        if most < (self.batch_size or 1):
            raise invalid("memory_limit", f"at least {3 * image_bytes * (self.batch_size or 1):,} bytes", memory_limit)
        return self.batch_size or min(_BATCH_SIZE, most)

    def __call__(self, images: Tensor) -> Tensor:
        """Scores (B, C) as float32 (float64 where they are that), or classes (B,) as int64, on the model's device."""
        if self.dtype is not None:
            images = images.to(self.dtype)
        output = self.model(images)
        if self.decision is not None:
            output = self.decision(output)
        what, more = ("model", "") if self.decision is None else ("decision", " or integer classes (B,)")
        if not isinstance(output, Tensor):
            hint = "; `decision` can make them of its output" if self.decision is None else ""
            raise TypeError(f"`{what}` must return a tensor, scores (B, C){more}{hint}, got {type(output).__name__}.")
        kind = f"{output.dtype} of shape {tuple(output.shape)} for {len(images)} images"
        classes_only = self.decision is not None and output.ndim == 1 and not output.is_floating_point()
        if output.is_complex() or output.shape[:1] != images.shape[:1] or not (output.ndim == 2 or classes_only):
            raise ValueError(f"`{what}` must return scores (B, C){more}, got {kind}.")
        if classes_only:
            return output.long()
        if output.shape[1] < 2:
            hint = ", or have a `decision`" if self.decision is None else " or classes alone (B,)"
            raise ValueError(f"`{what}` must return scores of at least two classes{hint}, got {kind}.")
        return output if output.dtype == torch.float64 else output.float()


def margins_of(scores: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Highest minus second highest score of each row of scores (n, C), float32 (n,).

    Example:
        >>> margins_of(np.array([[1.0, 4.0, 2.5]]))
        array([1.5], dtype=float32)
    """
    two = np.partition(scores, -2, axis=1)[:, -2:]
    margins: npt.NDArray[np.float32] = (two[:, 1] - two[:, 0]).astype(np.float32)
    return margins


def _weights(model: Any) -> Iterator[Tensor]:
    if isinstance(model, nn.Module):
        yield from model.parameters()
        yield from model.buffers()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a module; each submodule's own mode and all buffers are as before afterwards.

    Buffers, because some modules change theirs in evaluation mode too: counters, moving averages, observers.

    Args:
        model: A module whose shapes are known: what a lazy layer makes on its first run cannot be taken back.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval())
        >>> with evaluating(model):
        ...     [module.training for module in model]
        [False, False]
        >>> [module.training for module in model]
        [True, False]
    """
    flags = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    before = model.training
    try:
        if any(flag for _, flag in flags):
            model.eval()
        yield
    finally:
        if any(flag for _, flag in flags):
            # Through `train` first, for modules that do more there than set a flag, then each flag as it was.
            model.train(before)
            for module, flag in flags:
                module.training = flag
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer
                buffer.copy_(value)
