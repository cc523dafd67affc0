"""Weights from files into models: plain state dicts and Lightning checkpoints, whatever prefix their names carry."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from toolkit.validation import shorten

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network")


@dataclass(frozen=True)
class PartialLoad:
    """What came of loading weights that need not be all of a model's."""

    #: Names of the model's tensors that were taken from the file.
    loaded: tuple[str, ...]
    #: Names in the file that were not loaded: the model has no such tensor, or one of another shape.
    left_out: tuple[str, ...]
    #: Names of the model's tensors that are as they were.
    kept: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} of {len(self.loaded) + len(self.kept)} tensors are from the file"]
        if self.kept:
            parts.append(f"as they were ({len(self.kept)}): {shorten(self.kept)}")
        if self.left_out:
            parts.append(f"left out of the file ({len(self.left_out)}): {shorten(self.left_out)}")
        return "; ".join(parts)


def read_state_dict(checkpoint: str | Path, name: str = "checkpoint") -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint file, read without running code from it.

    Args:
        checkpoint: A file written by Lightning or by `torch.save` of a state dict, or of a dict that holds one under
            `state_dict`, `model_state_dict`, `model`, `net` or `network`.
        name: What to call the file in an error.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no such checkpoint, or can only be read by running code from it.
    """
    path = Path(checkpoint).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"`{name}` must be an existing file, got {str(checkpoint)!r}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise ValueError(
            f"`{name}` must be a file of tensors that loads with weights_only=True, got {str(checkpoint)!r} "
            f"({str(error).splitlines()[0]}). Save `model.state_dict()` alone to make one."
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    tensors = (
        {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)} if isinstance(content, Mapping) else {}
    )
    if not tensors:
        raise ValueError(f"`{name}` must hold a state dict, got {str(checkpoint)!r}, which holds none.")
    return tensors


def load_weights(model: nn.Module, checkpoint: str | Path) -> None:
    """Load a checkpoint into a model, matching names up to a common prefix (`model.`, `module.`, `network.`, ...).

    Args:
        model: The model; its parameters and buffers are overwritten. A model whose shapes depend on its weights may
            have a method `adapt_to(state)`, which is called before shapes are compared.
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
    wanted = model.state_dict()
    renamed = renamed_for(wanted, read_state_dict(checkpoint))
    # Counters that batch norm does not use in evaluation, and that older files do not have.
    missing = [name for name in wanted if name not in renamed and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in renamed if name not in wanted]
    adapt = getattr(model, "adapt_to", None)
    if callable(adapt) and not missing and not unexpected:
        adapt(renamed)
        wanted = model.state_dict()
    shapes = _other_shapes(wanted, renamed)
    if missing or unexpected or shapes:
        problems = (("missing in the file", missing), ("not in the model", unexpected), ("other shapes", shapes))
        details = "; ".join(f"{what} ({len(names)}): {shorten(names)}" for what, names in problems if names)
        raise ValueError(f"`checkpoint` must fit the model {type(model).__name__}, got {str(checkpoint)!r}: {details}.")
    model.load_state_dict({**wanted, **renamed})


def load_matching(
    model: nn.Module, state: Mapping[str, torch.Tensor], source: str | Path, *, may_differ: Sequence[str] = ()
) -> PartialLoad:
    """Load the part of some weights that a model has too, matching names up to a common prefix.

    Args:
        model: The model; those of its tensors that the weights have under the same name are overwritten.
        state: The weights.
        source: The file they are from, for an error.
        may_differ: Beginnings of the names of layers whose shapes may be others; such tensors are left out.

    Returns:
        What was loaded and what was not.

    Raises:
        ValueError: If no name is in both, or shapes differ anywhere else: weights of another architecture. The message
            names the first; the model is then left as it was.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> print(load_matching(model, {"net.0.weight": torch.ones(3, 2)}, "weights.pt"))
        1 of 4 tensors are from the file; as they were (3): 0.bias, 1.weight, 1.bias
    """
    wanted = model.state_dict()
    renamed = renamed_for(wanted, state)
    common = [name for name in wanted if name in renamed]
    must = f"`weights` must fit the model {type(model).__name__}, got {str(source)!r}"
    if not common:
        raise ValueError(
            f"{must} with other names: {shorten(list(state), 3)}, where the model has {shorten(list(wanted), 3)}."
        )
    other = [name for name in common if renamed[name].shape != wanted[name].shape]
    wrong = [name for name in other if not name.startswith(tuple(may_differ))]
    if wrong:
        shapes = _other_shapes({name: wanted[name] for name in wrong}, renamed)
        raise ValueError(f"{must} with other shapes ({len(wrong)}): {shorten(shapes)}.")
    loaded = {name: renamed[name] for name in common if name not in other}
    model.load_state_dict({**wanted, **loaded})
    left_out = tuple(name for name in renamed if name not in loaded)
    return PartialLoad(tuple(loaded), left_out, tuple(name for name in wanted if name not in loaded))


def renamed_for(wanted: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights under the prefix by which most of their names are a model's.

    Args:
        wanted: The model's state dict.
        state: The weights.
    """
    return max(_renamings(state, list(wanted)), key=lambda names: len(names.keys() & wanted.keys()))


def _other_shapes(wanted: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of tensors that are in both with different shapes, with these."""
    return [
        f"{name} {tuple(found[name].shape)} instead of {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in found and found[name].shape != value.shape
    ]


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
