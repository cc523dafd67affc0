"""Weights from files into models: plain state dicts and Lightning checkpoints, whatever prefix their names carry."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    tensors = {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)} if isinstance(content, Mapping) else {}
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
        >>> torch.save({"state_dict": {"net." + k: v * 0 for k, v in model.state_dict().items()}}, path)
        >>> load_weights(model, path); float(model.bias)
        0.0
    """
    state = read_state_dict(checkpoint)
    wanted = model.state_dict()
    renamed = max(_renamings(state, set(wanted)), key=lambda names: len(set(names) & set(wanted)))
    missing = [name for name in wanted if name not in renamed]
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
    model.load_state_dict(renamed)


def _renamings(state: Mapping[str, torch.Tensor], wanted: set[str]) -> list[dict[str, Any]]:
    """The state dict under its own names, with each leading prefix taken off, and with each of the model's put on."""
    candidates = [dict(state)]
    prefixes = {name.rsplit(".", depth)[0] + "." for name in state for depth in range(1, name.count(".") + 1)}
    for prefix in sorted(prefixes, key=len):
        inner = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if set(inner) & wanted:
            candidates.append(inner)
    heads = {name.rsplit(".", depth)[0] + "." for name in wanted for depth in range(1, name.count(".") + 1)}
    candidates += [
        outer
        for head in sorted(heads, key=len)
        if set(outer := {head + name: value for name, value in state.items()}) & wanted
    ]
    return [*candidates, *({n.replace("_orig_mod.", ""): v for n, v in c.items()} for c in candidates[:1])]
