"""What the toolkit needs of a distributed run: who this process is, shares of work, and results on every rank."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed

T = TypeVar("T")

#: Long enough for one rank to work while the others wait.
_PATIENCE = timedelta(days=1)
_CHUNK_BYTES = 1 << 26
#: The process group and the group made beside it. Held weakly: PyTorch owns them, and a group that outlives
#: `destroy_process_group` ends its threads while the interpreter is being torn down, which now and then aborts it.
_patient: list[weakref.ref[Any]] = []


def world() -> tuple[int, int]:
    """This process' rank and the number of processes: (0, 1) where nothing is distributed."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _patient_group() -> Any:
    """A group of all ranks over CPU memory that outwaits long work on one of them; made once for a process group."""
    whole, beside = (reference() for reference in _patient) if _patient else (None, None)
    if beside is None or whole is not distributed.group.WORLD:
        beside = distributed.new_group(backend="gloo", timeout=_PATIENCE)
        _patient[:] = weakref.ref(distributed.group.WORLD), weakref.ref(beside)
    return beside


def on_rank_zero(work: Callable[[], T]) -> T:
    """The result of `work`, done by rank 0 and sent to all; an error there is raised on every rank.

    Nobody is left waiting for a rank that has failed.
    """
    rank, size = world()
    if size == 1:
        return work()
    outcome: list[Any] = [None, None]
    if rank == 0:
        try:
            outcome[0] = work()
        except Exception as error:
            outcome[1] = error
    distributed.broadcast_object_list(outcome, src=0, group=_patient_group())
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


def together(work: Callable[[], T]) -> T:
    """Each rank's own result of `work`; if it fails on any rank, all raise, so that nobody waits for the failed one."""
    rank, size = world()
    if size == 1:
        return work()
    result: Any = None
    error: Exception | None = None
    try:
        result = work()
    except Exception as caught:
        error = caught
    errors = gather_objects(None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    failed = [f"rank {other}: {text}" for other, text in enumerate(errors) if text is not None]
    if failed:
        raise RuntimeError(f"Stopped on rank {rank} because another rank failed ({'; '.join(failed)}).")
    return result  # type: ignore[no-any-return]


def gather_objects(item: T) -> list[T]:
    """Every rank's item, in order, on every rank."""
    size = world()[1]
    if size == 1:
        return [item]
    items: list[Any] = [None] * size
    distributed.all_gather_object(items, item, _patient_group())
    return items


def share(n_items: int, chunk: int) -> tuple[int, int]:
    """The first and one past the last item of this rank's share, cut at whole chunks.

    Example:
        >>> share(10, 4)
        (0, 10)
    """
    rank, size = world()
    n_chunks = -(-n_items // chunk)
    first, last = rank * n_chunks // size, (rank + 1) * n_chunks // size
    return min(first * chunk, n_items), min(last * chunk, n_items)


def gather_rows(
    own: npt.NDArray[Any], n_rows: int, chunk: int, memory_limit: int = 1 << 30, folder: Path | None = None
) -> npt.NDArray[Any]:
    """All ranks' rows in order, on every rank, from the shares that `share(n_rows, chunk)` gave.

    Args:
        own: This rank's rows, shape (share, D).
        n_rows: Rows over all ranks.
        chunk: The same as given to `share`.
        memory_limit: Above this many bytes the rows go to a temporary file, returned as a memory map.
        folder: Where to make that file.
    """
    rank, size = world()
    if size == 1:
        return own
    width = max(gather_objects(own.shape[1]))
    out: npt.NDArray[Any]
    if 4 * n_rows * width <= memory_limit:
        out = np.empty((n_rows, width), np.float32)
    else:
        with tempfile.TemporaryFile(dir=folder) as file:
            out = np.memmap(file, np.float32, "w+", shape=(n_rows, width))
    n_chunks = -(-n_rows // chunk)
    step = max(1, _CHUNK_BYTES // (4 * width))
    for source in range(size):
        start = min(source * n_chunks // size * chunk, n_rows)
        stop = min((source + 1) * n_chunks // size * chunk, n_rows)
        for first in range(start, stop, step):
            last = min(first + step, stop)
            block = torch.empty((last - first, width), dtype=torch.float32)
            if source == rank:
                block.copy_(torch.from_numpy(np.ascontiguousarray(own[first - start : last - start])))
            distributed.broadcast(block, src=source, group=_patient_group())
            out[first:last] = block.numpy()
    return out
