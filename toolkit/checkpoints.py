"""Weights from files into models: plain state dicts and Lightning checkpoints, whatever prefix their names carry."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from toolkit.validation import shorten

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network")


def read_state_dict(checkpoint: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint file, read without running code from it.

    Args:
        checkpoint: A file written by Lightning or by `torch.save` of a state dict, or of a dict that holds one under
            `state_dict`, `model_state_dict`, `model`, `net` or `network`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no such checkpoint, or can only be read by running code from it.
    """
    path = Path(checkpoint).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"`checkpoint` must be an existing file, got {str(checkpoint)!r}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise ValueError(
            f"`checkpoint` must be a file of tensors that loads with weights_only=True, got {str(checkpoint)!r} "
            f"({str(error).splitlines()[0]}). Save `model.state_dict()` alone to make one."
        ) from error
    for name in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    tensors = (
        {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)} if isinstance(content, Mapping) else {}
    )
    if not tensors:
        raise ValueError(f"`checkpoint` must hold a state dict, got {str(checkpoint)!r}, which holds none.")
    return tensors


def load_weights(model: nn.Module, checkpoint: str | Path) -> None:
    """Load a checkpoint into a model, matching names up to a common prefix (`model.`, `module.`, `network.`, ...).

    Args:
        model: The model; its parameters and buffers are overwritten.
        checkpoint: The file, see `read_state_dict`.

    Raises:
        ValueError: If parameters of the model are missing in the file, the file holds others, or shapes differ; the
            message names them. The model is then left as it was.

    Example:
        >>> import tempfile, torch
        >>> model, path = torch.nn.Linear(2, 1), tempfile.mktemp()
        >>> torch.save({"state_dict": {"net." + k: torch.ones_like(v) for k, v in model.state_dict().items()}}, path)
        >>> load_weights(model, path); float(model.bias)
        1.0
    """
    state = read_state_dict(checkpoint)
    wanted = model.state_dict()
    renamed = max(_renamings(state, list(wanted)), key=lambda names: len(names.keys() & wanted.keys()))
    # Counters that batch norm does not use in evaluation, and that older files do not have.
    missing = [name for name in wanted if name not in renamed and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in renamed if name not in wanted]
    shapes = [
        f"{name} {tuple(renamed[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in wanted
        if name in renamed and renamed[name].shape != wanted[name].shape
    ]
    if missing or unexpected or shapes:
        problems = (("missing in the file", missing), ("not in the model", unexpected), ("other shapes", shapes))
        details = "; ".join(f"{what} ({len(names)}): {shorten(names)}" for what, names in problems if names)
        raise ValueError(f"`checkpoint` must fit the model {type(model).__name__}, got {str(checkpoint)!r}: {details}.")
    model.load_state_dict({**wanted, **renamed})


def _renamings(state: Mapping[str, torch.Tensor], wanted: list[str]) -> list[dict[str, torch.Tensor]]:
    """The state dict under its own names first, then with one prefix taken off and another put on.

    Prefixes are read off names that end alike: `model.conv.weight` in the file and `network.conv.weight` in the model.
    """
    plain = {name.replace("_orig_mod.", ""): value for name, value in state.items()}  # what torch.compile puts in
    prefixes = {("", ""): None}
    for target in (wanted[0], wanted[len(wanted) // 2], wanted[-1]) if wanted else ():
        for name in plain:
            ours, theirs = target.split("."), name.split(".")
            while ours and theirs and ours[-1] == theirs[-1]:
                ours.pop()
                theirs.pop()
            prefixes["".join(part + "." for part in theirs), "".join(part + "." for part in ours)] = None
    return [
        {put_on + name.removeprefix(take_off): value for name, value in plain.items() if name.startswith(take_off)}
        for take_off, put_on in prefixes
    ]
