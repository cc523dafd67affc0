"""Structural similarity (SSIM) of all pairs of images, and any other similarity of two batches.

The covariance of two images inside a window is the blurred product of the images, less the product of their blurred
values: all else that SSIM needs belongs to one image and is computed once. On a CPU, one pass multiplies an image with
sixteen others, one in each lane of a vector register, blurs the products along rows and columns while they are in the
cache, and adds up the index; nothing of the size of an image is written for a pair. On a GPU the blur is two matrix
products.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.extending import intrinsic
from tqdm.auto import tqdm

from toolkit.processors import n_processors
from toolkit.validation import check_choice, invalid

__all__ = ["VARIANTS", "pairwise_similarity", "pairwise_ssim", "ssim_of_pairs", "ssim_pairs_above"]

#: What a window is: a square in one channel, or a cube that reaches across the channels.
VARIANTS = ("2d", "volume")

#: Images that are compared with one image at a time: the float32 numbers of a 512-bit register.
_LANES = 16
#: Bytes of prepared images in a block; two to four blocks are held.
_BLOCK_BYTES = 1 << 27
#: Images of a block at most, so that the similarities of two blocks stay small (64 MiB).
_BLOCK_IMAGES = 4096
#: Images in the lanes that take more than this do not stay in the cache, so several images are compared with each row.
_CACHE_BYTES = 1 << 21
#: Images that go through a task of a thread; fewer balance better, more cost less.
_TASK_IMAGES = 128
#: Bytes that the product images of a block of pairs may take with torch.
_PRODUCT_BYTES = 1 << 28
#: Numbers of the input looked at in one go.
_CHUNK_ELEMENTS = 1 << 22
#: Float32 rounding of a mean of indices: a pair is only given up early if it fails by more than this.
_SLACK = 1e-4
#: Pairs on which a similarity's symmetry is tested.
_SYMMETRY_PAIRS = 64

_Singles = npt.NDArray[np.float32]
_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]
_Batches = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_F = TypeVar("_F", bound=Callable[..., Any])


def _kernel(function: _F) -> _F:
    """Compile `function`; sums may be reordered (which vectorises them), NaN and infinities keep their meaning."""
    options: dict[str, Any] = {"nogil": True, "fastmath": {"reassoc", "contract"}, "error_model": "numpy"}
    try:
        return cast("_F", numba.njit(cache=True, **options)(function))
    except RuntimeError:
        # No folder to keep compiled code in can be written to: it is compiled anew in every process.
        return cast("_F", numba.njit(**options)(function))


def pairwise_ssim(
    a: npt.ArrayLike | torch.Tensor,
    b: npt.ArrayLike | torch.Tensor | None = None,
    *,
    variant: str = "2d",
    data_range: float | None = None,
    window_size: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    out: str | Path | None = None,
    memory_limit: int = 2**30,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> _Singles:
    """SSIM of all pairs of images of `a`, or of each image of `a` with each of `b`.

    At every position of a Gaussian window, with means m, variances s and covariance c inside the window, the index is
    (2 m_x m_y + c1) (2 c_xy + c2) / ((m_x^2 + m_y^2 + c1) (s_x + s_y + c2)), c1 = (k1 L)^2, c2 = (k2 L)^2, where L is
    `data_range`; the SSIM of two images is its mean over all positions. The variants:

    - "2d": the window is a square in one channel and lies wholly inside the image; (H - 10) x (W - 10) positions in
      every channel. This is `pytorch_msssim.ssim` with `nonnegative_ssim=False`, but where that leaves out the blur
      along a side shorter than the window, such images are refused here.
    - "volume": the window is a cube along height, width and channels, as if these were equal in kind. It is centred
      on every value, and the image is continued by its outermost values. This is what MATLAB's `ssim` does with a
      colour image of H x W x 3. Images of any size will do.

    The matrix is exactly symmetric where `b` is None. Images that are equal in float32 have an SSIM of exactly 1,
    constant ones too; two different constants have the value that c1 leaves. The values do not depend on the number
    of threads or on how the work is divided. Besides the result, some 0.5 GiB are used.

    Args:
        a: Images of shape (N, channels, H, W), or (N, H, W) if they are grey: uint8, or floating point from 0 to
            `data_range`.
        b: Images of shape (M, channels, H, W) to compare those of `a` with.
        variant: One of `VARIANTS`.
        data_range: The value of white; by default 255 for uint8 and 1 for floating point.
        window_size: Taps of the window along each axis, an odd number.
        sigma: Standard deviation of the window, in pixels.
        k1: Weight of the constant that keeps the quotient of means stable where images are black.
        k2: Weight of the constant that keeps the quotient of variances stable where images are flat.
        out: File to write the matrix to, in NumPy's format. It appears under this name when it is complete.
        memory_limit: Bytes that the matrix may take in memory; a larger one needs `out`.
        device: A CUDA device to compute on; by default that of `a` if it is a tensor on one, or else the CPU.
        progress: Show a progress bar.

    Returns:
        float32 of shape (N, N) or (N, M), in [-1, 1]; a read-only memory map of `out` where that is given.

    Raises:
        ValueError: If images are not of one of these shapes or empty, are NaN, negative or above `data_range`, or are
            smaller than the window of the variant "2d"; if those of `a` and `b` differ in size; if a setting is out of
            range; if the matrix is above `memory_limit` and `out` is not given.
        TypeError: If the pixels are neither uint8 nor floating point.

    References:
        Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to structural similarity",
        IEEE Transactions on Image Processing 13(4), 2004. Variances are population variances under the window.
        Yousefzadeh, "Using wavelets to analyze similarities in image datasets", arXiv 2002.10257, has the variant
        "volume": his figures come out with it and not with the other.

    Example:
        >>> black, white = np.zeros((16, 16)), np.ones((16, 16))
        >>> pairwise_ssim([black, white, black]).astype(float).round(4).tolist()
        [[1.0, 0.0001, 1.0], [0.0001, 1.0, 0.0001], [1.0, 0.0001, 1.0]]
    """
    window = _window(variant, window_size, sigma, k1, k2)
    first, second = _sources(a, b, data_range, window)
    engine = _engine(first, window, device)

    def fill(matrix: _Singles) -> None:
        for row, column, tile in _tiles(first, second, window, engine, -math.inf, progress=progress):
            matrix[row : row + tile.shape[0], column : column + tile.shape[1]] = tile
            if second is None and row != column:
                matrix[column : column + tile.shape[1], row : row + tile.shape[0]] = tile.T

    return _filled((len(first), len(first if second is None else second)), fill, out, memory_limit)


def ssim_pairs_above(
    a: npt.ArrayLike | torch.Tensor,
    min_similarity: float,
    b: npt.ArrayLike | torch.Tensor | None = None,
    *,
    variant: str = "2d",
    data_range: float | None = None,
    window_size: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    memory_limit: int = 2**30,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> tuple[_Ints, _Singles]:
    """All pairs of images with an SSIM of at least `min_similarity`, without a matrix of all of them.

    On the CPU a pair is given up as soon as it cannot reach `min_similarity` any more, the index being at most 1 at
    the positions still to come: the higher the bound, the sooner.

    Args:
        a: As in `pairwise_ssim`.
        min_similarity: The least SSIM of a pair, above -1 and at most 1.
        b: As in `pairwise_ssim`.
        variant: As in `pairwise_ssim`.
        data_range: As in `pairwise_ssim`.
        window_size: As in `pairwise_ssim`.
        sigma: As in `pairwise_ssim`.
        k1: As in `pairwise_ssim`.
        k2: As in `pairwise_ssim`.
        memory_limit: Bytes that the pairs found may take.
        device: As in `pairwise_ssim`.
        progress: Show a progress bar.

    Returns:
        The pairs, int64 of shape (P, 2), in ascending order, and their SSIM, float32 of shape (P,), with the values of
        `pairwise_ssim`. Without `b`, indices i < j of two images of `a`; with `b`, an index into `a` and one into `b`.

    Raises:
        ValueError: As in `pairwise_ssim`, if `min_similarity` is out of range, or if there are so many pairs that they
            take more than `memory_limit`.
        TypeError: As in `pairwise_ssim`.

    Example:
        >>> ramp = np.linspace(0.0, 1.0, 256).reshape(16, 16)
        >>> pairs, similarities = ssim_pairs_above([ramp, 1.0 - ramp, 0.9 * ramp], 0.9)
        >>> pairs.tolist(), similarities.astype(float).round(3).tolist()
        ([[0, 2]], [0.989])
    """
    window = _window(variant, window_size, sigma, k1, k2)
    if isinstance(min_similarity, bool) or not -1.0 < min_similarity <= 1.0:
        raise invalid("min_similarity", "above -1 and at most 1", min_similarity)
    first, second = _sources(a, b, data_range, window)
    engine = _engine(first, window, device)
    found: list[_Ints] = []
    values: list[_Singles] = []
    used = 0
    for row, column, tile in _tiles(first, second, window, engine, float(min_similarity), progress=progress):
        i, j = np.nonzero(tile >= min_similarity)
        if second is None and row == column:
            upper = i < j
            i, j = i[upper], j[upper]
        values.append(tile[i, j])
        found.append(np.stack([i + row, j + column], axis=1))
        used += found[-1].nbytes + values[-1].nbytes
        if used > memory_limit:
            raise invalid(
                "min_similarity", f"so high that the pairs take at most {memory_limit:,} bytes (`memory_limit`)",
                min_similarity,
            )  # fmt: skip
    pairs = np.concatenate(found).astype(np.int64, copy=False)
    similarities = np.concatenate(values)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return pairs[order], similarities[order]


def ssim_of_pairs(
    a: npt.ArrayLike | torch.Tensor,
    b: npt.ArrayLike | torch.Tensor,
    *,
    variant: str = "2d",
    data_range: float | None = None,
    window_size: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    device: str | torch.device | None = None,
) -> _Singles:
    """SSIM of each image of `a` with the image of `b` at the same index.

    Args:
        a: As in `pairwise_ssim`.
        b: Images of the same number and size.
        variant: As in `pairwise_ssim`.
        data_range: As in `pairwise_ssim`.
        window_size: As in `pairwise_ssim`.
        sigma: As in `pairwise_ssim`.
        k1: As in `pairwise_ssim`.
        k2: As in `pairwise_ssim`.
        device: As in `pairwise_ssim`.

    Returns:
        float32 of shape (N,), in [-1, 1]: the values of `pairwise_ssim` up to rounding.

    Raises:
        ValueError: As in `pairwise_ssim`, or if there are not as many images in `b` as in `a`.
        TypeError: As in `pairwise_ssim`.

    Example:
        >>> ramp = np.linspace(0.0, 1.0, 256).reshape(16, 16)
        >>> ssim_of_pairs([ramp, ramp], [ramp, 1.0 - ramp]).astype(float).round(3).tolist()
        [1.0, -0.826]
    """
    window = _window(variant, window_size, sigma, k1, k2)
    first, second = _sources(a, b, data_range, window)
    if second is None:
        raise invalid("b", "images", None)
    if len(first) != len(second):
        raise invalid("b", f"{len(first)} images, as many as in `a`", len(second))
    at = _device(first, device) or torch.device("cpu")
    size = max(1, min(_BLOCK_BYTES // first.prepared_bytes(window), _PRODUCT_BYTES // first.product_bytes(window)))
    similarities = np.empty(len(first), np.float32)
    with _exact_matmul(at):
        operators = _operators(first, window, at)
        for start in range(0, len(first), size):
            stop = min(start + size, len(first))
            left, right = (_on_device(_prepare(images, start, stop, window), at) for images in (first, second))
            similarities[start:stop] = _torch_ssim(left, right, operators, window).cpu().numpy()
    similarities[first.identities == second.identities] = 1.0
    return similarities


def pairwise_similarity(
    images: npt.ArrayLike | torch.Tensor,
    function: _Batches,
    b: npt.ArrayLike | torch.Tensor | None = None,
    *,
    batch_size: int = 256,
    symmetric: bool = True,
    out: str | Path | None = None,
    memory_limit: int = 2**30,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> _Singles:
    """Any similarity of all pairs of images, by a function of two batches.

    Such functions are `pytorch_msssim.ms_ssim` with `size_average=False`, or a measure of torchmetrics with
    `reduction="none"`. The value of a pair must not depend on the batch it is in: set the range of the pixels where a
    measure would otherwise take it from the batch.

    Args:
        images: Images of shape (N, channels, H, W). Those of uint8 reach the function as float32 in [0, 1], others as
            they are.
        function: Takes two batches of shape (B, channels, H, W) and returns similarities of shape (B,).
        b: Images of shape (M, channels, H, W) to compare those of `images` with.
        batch_size: Pairs that the function gets at a time.
        symmetric: Without `b`, call the function for i <= j alone and mirror the result. That the function is
            symmetric is tested on a sample of pairs. Otherwise it is called for both orders.
        out: As in `pairwise_ssim`.
        memory_limit: As in `pairwise_ssim`.
        device: Where the function gets its batches; by default where the images are.
        progress: Show a progress bar.

    Returns:
        float32 of shape (N, N) or (N, M), its diagonal computed like the rest; a read-only memory map of `out` where
        that is given.

    Raises:
        ValueError: If images are not of shape (N, channels, H, W), or NaN or infinite; if those of `images` and `b`
            differ in size; if the function is not symmetric on the sample, returns another shape or NaN; if
            `batch_size` is below 1; if the matrix is above `memory_limit` and `out` is not given.
        TypeError: If the function is none or returns no tensor, or if the pixels are neither uint8 nor floating point.

    Example:
        >>> def closeness(x, y):
        ...     return 1.0 / (1.0 + (x - y).square().flatten(1).sum(dim=1))
        >>> pairwise_similarity(torch.eye(2).reshape(2, 1, 1, 2), closeness).astype(float).round(3).tolist()
        [[1.0, 0.333], [0.333, 1.0]]
    """
    if not callable(function):
        raise TypeError(f"`function` must take two batches of images, got {function!r}.")
    if isinstance(batch_size, bool) or batch_size < 1:
        raise invalid("batch_size", "at least 1", batch_size)
    left = _tensor(images, "images")
    right = left if b is None else _tensor(b, "b")
    if left.shape[1:] != right.shape[1:]:
        raise invalid("b", f"images of shape {tuple(left.shape[1:])}, as `images` are", tuple(right.shape[1:]))
    mirrored = symmetric and b is None

    def similarities(i: _Ints, j: _Ints) -> npt.NDArray[Any]:
        """The function's values for some pairs, checked."""
        with torch.no_grad():
            found = function(_batch(left, i, device), _batch(right, j, device))
        if not isinstance(found, torch.Tensor):
            raise TypeError(f"`function` must return a tensor, got {type(found).__name__} from {_name_of(function)}.")
        if found.shape != (len(i),):
            must = f"a function that returns one value a pair, of shape ({len(i)},)"
            raise invalid("function", must, f"{_name_of(function)}, which returned shape {tuple(found.shape)}")
        values: npt.NDArray[Any] = found.detach().to("cpu", torch.float32).numpy()
        if np.isnan(values).any():
            k = int(np.isnan(values).argmax())
            raise invalid("function", "a function that returns numbers",
                          f"{_name_of(function)}, which returned NaN for images {i[k]} and {j[k]}")  # fmt: skip
        return values

    if mirrored:
        rng = np.random.default_rng(0)
        i, j = rng.integers(len(left), size=(2, min(_SYMMETRY_PAIRS, len(left) ** 2)))
        for start in range(0, len(i), batch_size):
            one, two = i[start : start + batch_size], j[start : start + batch_size]
            forth, back = similarities(one, two), similarities(two, one)
            wrong = ~np.isclose(forth, back, rtol=1e-4, atol=1e-5)
            if wrong.any():
                k = int(wrong.argmax())
                raise invalid(
                    "function", "symmetric in its two batches (or pass `symmetric=False`)",
                    f"{_name_of(function)}, which gives {forth[k]:.6g} for images {one[k]} and {two[k]} and "
                    f"{back[k]:.6g} for {two[k]} and {one[k]}",
                )  # fmt: skip

    def fill(matrix: _Singles) -> None:
        n_left, n_right = matrix.shape
        total = n_left * (n_left + 1) // 2 if mirrored else n_left * n_right
        with tqdm(total=total, desc="comparing", unit="pair", disable=not progress) as bar:
            for rows in _row_groups(n_left, n_right, batch_size):
                # Pairs of several rows at a time, so that batches are full for short rows too.
                i = np.repeat(rows, n_right)
                j = np.tile(np.arange(n_right), len(rows))
                if mirrored:
                    i, j = i[i <= j], j[i <= j]
                for start in range(0, len(i), batch_size):
                    one, two = i[start : start + batch_size], j[start : start + batch_size]
                    values = similarities(one, two)
                    matrix[one, two] = values
                    if mirrored:
                        matrix[two, one] = values
                    bar.update(len(one))

    return _filled((len(left), len(right)), fill, out, memory_limit)


def _row_groups(n_rows: int, n_columns: int, batch_size: int) -> Iterator[_Ints]:
    """Rows of a matrix in groups of at least some batches of pairs."""
    size = max(1, 8 * batch_size // n_columns)
    for start in range(0, n_rows, size):
        yield np.arange(start, min(start + size, n_rows))


def _name_of(function: Any) -> str:
    """What to call a function in an error."""
    return str(getattr(function, "__qualname__", None) or type(function).__qualname__)


def _tensor(images: npt.ArrayLike | torch.Tensor, name: str) -> torch.Tensor:
    """Images as a tensor of shape (N, channels, H, W) without NaN, sharing memory where that is possible."""
    if not isinstance(images, torch.Tensor):
        array = np.asanyarray(images)
        if array.dtype != np.uint8 and array.dtype.kind != "f":
            raise TypeError(f"`{name}` must be uint8 or floating point, got dtype {array.dtype}.")
        # Read-only arrays (memory maps) would make torch warn.
        images = torch.from_numpy(array if array.flags.writeable else np.array(array))
    if images.dtype != torch.uint8 and not images.dtype.is_floating_point:
        raise TypeError(f"`{name}` must be uint8 or floating point, got dtype {images.dtype}.")
    if images.ndim != 4 or 0 in images.shape:
        raise invalid(name, "images of shape (N, channels, H, W)", f"shape {tuple(images.shape)}")
    if images.dtype.is_floating_point:
        size = max(1, _CHUNK_ELEMENTS // images[0].numel())
        for start in range(0, len(images), size):
            finite = torch.isfinite(images[start : start + size]).flatten(1).all(dim=1)
            if not finite.all():
                first = start + int((~finite).nonzero()[0, 0])
                raise invalid(name, "finite", f"NaN or infinite pixels, first in image {first}")
    return images.detach()


def _batch(images: torch.Tensor, indices: _Ints, device: str | torch.device | None) -> torch.Tensor:
    """Some of the images on a device, in [0, 1] if they were uint8."""
    chosen = images[torch.from_numpy(indices).to(images.device)]
    if device is not None:
        chosen = chosen.to(device)
    return chosen.float() / 255.0 if chosen.dtype == torch.uint8 else chosen


@dataclass(frozen=True)
class _Window:
    """What SSIM is to be computed: the window and the constants, for pixels in [0, 1]."""

    taps: tuple[np.float32, ...]
    volume: bool
    c1: float
    c2: float

    @property
    def padding(self) -> int:
        """Rows and columns by which an image is continued on each side."""
        return len(self.taps) // 2 if self.volume else 0

    def operator(self, length: int) -> _Singles:
        """The blur along an axis as a matrix of shape (positions, length)."""
        n_taps, padding = len(self.taps), self.padding
        matrix = np.zeros((length + 2 * padding - n_taps + 1, length), np.float32)
        for row in range(len(matrix)):
            for tap, weight in enumerate(self.taps):
                matrix[row, min(max(row + tap - padding, 0), length - 1)] += weight
        return matrix

    def mixing(self, channels: int) -> _Singles:
        """The blur across the channels, of shape (channels, channels)."""
        return self.operator(channels) if self.volume else np.eye(channels, dtype=np.float32)


def _window(variant: str, window_size: int, sigma: float, k1: float, k2: float) -> _Window:
    """The settings, checked."""
    check_choice("variant", variant, VARIANTS)
    if isinstance(window_size, bool) or not isinstance(window_size, (int, np.integer)):
        raise TypeError(f"`window_size` must be an odd integer, got {window_size!r}.")
    if window_size < 1 or window_size % 2 == 0:
        raise invalid("window_size", "odd and at least 1", window_size)
    for name, value in (("sigma", sigma), ("k1", k1), ("k2", k2)):
        if not 0.0 < value < math.inf:
            raise invalid(name, "above 0", value)
    offsets = np.arange(window_size) - window_size // 2
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    taps = (weights / weights.sum()).astype(np.float32)
    # The covariance of flat regions is wrong by as much as the sum of the rounded taps differs from 1.
    taps[window_size // 2] += np.float32(1.0 - taps.astype(np.float64).sum())
    return _Window(tuple(taps), variant == "volume", k1 * k1, k2 * k2)


class _Images:
    """The images of an argument, read in chunks: floating point, shape (N, channels, H, W), in [0, 1]."""

    def __init__(self, images: npt.ArrayLike | torch.Tensor, name: str, data_range: float | None) -> None:
        self.device = images.device if isinstance(images, torch.Tensor) else torch.device("cpu")
        self.values: Any = images.detach() if isinstance(images, torch.Tensor) else np.asanyarray(images)
        kind = str(self.values.dtype).removeprefix("torch.")
        if kind != "uint8" and not kind.startswith(("float", "bfloat")):
            raise TypeError(f"`{name}` must be uint8 or floating point, got dtype {kind}.")
        shape = tuple(self.values.shape)
        if len(shape) not in (3, 4) or 0 in shape:
            raise invalid(name, "images of shape (N, channels, H, W) or (N, H, W)", f"shape {shape}")
        self.shape: tuple[int, int, int] = shape[1:] if len(shape) == 4 else (1, *shape[1:])
        self.range = (255.0 if kind == "uint8" else 1.0) if data_range is None else float(data_range)
        if not 0.0 < self.range < math.inf:
            raise invalid("data_range", "above 0", data_range)
        # Doubles stay doubles until their mean is subtracted.
        self.dtype = np.float64 if kind == "float64" else np.float32
        self.identities: _Ints = np.empty(0, np.int64)
        self._check(name)

    def __len__(self) -> int:
        return len(self.values)

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Images `start` to `stop`, in [0, 1]."""
        chunk = self.values[start:stop]
        if isinstance(chunk, torch.Tensor):
            chunk = chunk.cpu()
            chunk = (chunk.float() if chunk.dtype in (torch.bfloat16, torch.float16) else chunk).numpy()
        scaled: npt.NDArray[Any] = np.divide(chunk, self.dtype(self.range), dtype=self.dtype)
        return scaled.reshape(len(scaled), *self.shape)

    def _check(self, name: str) -> None:
        """Look at every pixel once."""
        size = max(1, _CHUNK_ELEMENTS // math.prod(self.shape))
        for start in range(0, len(self), size):
            flat = self.read(start, start + size).reshape(-1, math.prod(self.shape))
            low, high = flat.min(axis=1), flat.max(axis=1)
            # Comparisons with NaN are false.
            bad = ~((low >= 0.0) & (high <= 1.0 + 1e-6))
            if bad.any():
                k = int(bad.argmax())
                if np.isnan(low[k]):
                    got = f"NaN pixels, first in image {start + k}"
                else:
                    got = f"pixels from {low[k] * self.range:.6g} to {high[k] * self.range:.6g} in image {start + k}"
                raise invalid(name, f"in [0, {self.range:g}] (`data_range`)", got)

    def identify(self, known: dict[bytes, int]) -> None:
        """Number the images so that equal ones have equal numbers; `known` has the numbers given so far."""
        size = max(1, _CHUNK_ELEMENTS // math.prod(self.shape))
        numbers = np.empty(len(self), np.int64)
        for start in range(0, len(self), size):
            # Adding 0 turns -0 into 0.
            for k, image in enumerate(self.read(start, start + size).astype(np.float32) + np.float32(0.0), start):
                digest = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
                numbers[k] = known.setdefault(digest, len(known))
        self.identities = numbers

    def positions(self, window: _Window) -> tuple[int, int]:
        """Rows and columns of the positions of a window."""
        lost = len(window.taps) - 1 - 2 * window.padding
        return self.shape[1] - lost, self.shape[2] - lost

    def prepared_bytes(self, window: _Window) -> int:
        """Size of an image with what is computed for it."""
        return 4 * self.shape[0] * (self.shape[1] * self.shape[2] + 2 * math.prod(self.positions(window)) + 1)

    def product_bytes(self, window: _Window) -> int:
        """Size of all that is made for a pair with torch."""
        return 4 * self.shape[0] * (2 * self.shape[1] * self.shape[2] + 4 * math.prod(self.positions(window)))


def _sources(
    a: npt.ArrayLike | torch.Tensor, b: npt.ArrayLike | torch.Tensor | None, data_range: float | None, window: _Window
) -> tuple[_Images, _Images | None]:
    """Both arguments, checked, with equal images numbered."""
    first = _Images(a, "a", data_range)
    second = None if b is None else _Images(b, "b", data_range)
    n_taps = len(window.taps)
    if not window.volume and min(first.shape[1:]) < n_taps:
        raise invalid("a", f"images of at least {n_taps} x {n_taps} pixels, the window of the variant '2d'",
                      "x".join(str(length) for length in first.shape[1:]))  # fmt: skip
    known: dict[bytes, int] = {}
    first.identify(known)
    if second is not None:
        if first.shape != second.shape:
            raise invalid("b", f"images of shape {first.shape}, as those of `a` are", second.shape)
        second.identify(known)
    return first, second


@dataclass(frozen=True)
class _Prepared:
    """Images with all that SSIM needs of each of them.

    Pixels have their image's offset subtracted, as covariances of bright flat images would otherwise be lost to
    rounding; `means` too, and `spreads` are variances plus c2 / 2.
    """

    pixels: Any
    means: Any
    spreads: Any
    offsets: Any

    def __len__(self) -> int:
        return len(self.pixels)


def _prepare(images: _Images, start: int, stop: int, window: _Window) -> _Prepared:
    """Images `start` to `stop` of an argument; float32, computed in float64."""
    stop = min(stop, len(images))
    shape = (stop - start, *images.shape)
    pixels = np.empty(shape, np.float32)
    means = np.empty((*shape[:2], *images.positions(window)), np.float32)
    spreads = np.empty_like(means)
    offsets = np.empty(shape[:2], np.float32)
    mixing = window.mixing(shape[1]).astype(np.float64)
    taps = tuple(float(tap) for tap in window.taps)

    def work(begin: int) -> None:
        part = slice(begin, min(begin + step, len(pixels)))
        values = images.read(start + part.start, start + part.stop)
        # A window of the volume reaches across the channels, so these share an offset.
        over = (1, 2, 3) if window.volume else (2, 3)
        offsets[part] = values.mean(axis=over, dtype=np.float64, keepdims=True)[:, :, 0, 0]
        np.subtract(values, offsets[part, :, None, None], out=pixels[part], dtype=np.float64, casting="same_kind")
        _moments(pixels[part], mixing, taps, window.padding, 0.5 * window.c2, means[part], spreads[part])

    step = max(1, min(64, _CHUNK_ELEMENTS // math.prod(images.shape)))
    with ThreadPoolExecutor(_threads()) as pool:
        list(pool.map(work, range(0, len(pixels), step)))
    return _Prepared(pixels, means, spreads, offsets)


class _Engine(Protocol):
    """Computes the similarities of two blocks of images."""

    def left(self, prepared: _Prepared) -> Any:
        """A block as it is needed on the left."""

    def right(self, prepared: _Prepared) -> Any:
        """A block as it is needed on the right."""

    def tile(self, left: Any, right: Any, least: float, *, upper: bool) -> _Singles:
        """SSIM of all pairs of two blocks; of i < j alone if `upper`; any value below `least` for pairs below it."""


def _tiles(
    first: _Images, second: _Images | None, window: _Window, engine: _Engine, least: float, *, progress: bool
) -> Iterator[tuple[int, int, _Singles]]:
    """SSIM of all pairs in tiles: (first row, first column, tile), without those below the diagonal for one set."""
    other = first if second is None else second
    size = max(1, min(_BLOCK_BYTES // first.prepared_bytes(window), _BLOCK_IMAGES))
    # Full lanes waste nothing.
    size = max(_LANES, size - size % _LANES)
    total = len(first) * (len(first) - 1) // 2 if second is None else len(first) * len(other)
    with tqdm(total=total, desc="comparing", unit="pair", unit_scale=True, disable=not progress) as bar:
        for row in range(0, len(first), size):
            prepared = _prepare(first, row, row + size, window)
            left = engine.left(prepared)
            for column in range(row if second is None else 0, len(other), size):
                upper = second is None and row == column
                if not upper:
                    prepared = _prepare(other, column, column + size, window)
                tile = engine.tile(left, engine.right(prepared), least, upper=upper)
                if upper:
                    below = np.tril_indices(len(tile))
                    tile[below] = tile.T[below]
                equal = first.identities[row : row + size, None] == other.identities[None, column : column + size]
                tile[equal] = 1.0
                yield row, column, tile
                bar.update(len(tile) * (len(tile) - 1) // 2 if upper else tile.size)


class _Kernels:
    """The engine for a CPU: a fused kernel, in threads."""

    def __init__(self, images: _Images, window: _Window) -> None:
        self._window = window
        self._mixing = window.mixing(images.shape[0])
        # Rows of the images in the lanes are read again for every image, unless several are done together.
        self._group = 1 if _LANES * images.prepared_bytes(window) <= _CACHE_BYTES else 4

    def left(self, prepared: _Prepared) -> _Prepared:
        return prepared

    def right(self, prepared: _Prepared) -> tuple[int, list[_Prepared]]:
        """The number of images, and the images in lanes."""
        count = len(prepared)

        def lanes(start: int) -> _Prepared:
            parts = []
            for array in (prepared.pixels, prepared.means, prepared.spreads, prepared.offsets):
                part = array[start : start + _LANES]
                if len(part) < _LANES:
                    part = np.concatenate([part, np.zeros((_LANES - len(part), *part.shape[1:]), np.float32)])
                # The last axis of an image and the lanes become one, so that rows are single runs.
                part = np.ascontiguousarray(np.moveaxis(part, 0, -1))
                parts.append(part.reshape(*part.shape[:-2], -1) if part.ndim > 2 else part)
            return _Prepared(*parts)

        with ThreadPoolExecutor(_threads()) as pool:
            return count, list(pool.map(lanes, range(0, count, _LANES)))

    def tile(self, left: _Prepared, right: tuple[int, list[_Prepared]], least: float, *, upper: bool) -> _Singles:
        count, blocks = right
        window, n_left = self._window, len(left)
        tile = np.zeros((n_left, _LANES * len(blocks)), np.float32)
        # Far from -1 and 1, so that nothing is given up without a bound.
        least = max(least, -10.0)

        def work(task: tuple[int, int, int]) -> None:
            start, stop, block = task
            lanes = blocks[block]
            _compare(
                left.pixels, left.means, left.spreads, left.offsets, start, stop,
                lanes.pixels, lanes.means, lanes.spreads, lanes.offsets,
                self._mixing, window.taps, window.padding, np.float32(window.c1), np.float32(window.c2),
                least, self._group, tile, _LANES * block,
            )  # fmt: skip

        tasks = [
            (start, min(start + _TASK_IMAGES, n_left, (block + 1) * _LANES if upper else n_left), block)
            for block in range(len(blocks))
            for start in range(0, min(n_left, (block + 1) * _LANES) if upper else n_left, _TASK_IMAGES)
        ]
        with ThreadPoolExecutor(min(_threads(), len(tasks))) as pool:
            list(pool.map(work, tasks))
        return tile[:, :count]


class _Torch:
    """The engine for a GPU: products of all pairs of a few images, blurred by matrix products."""

    def __init__(self, images: _Images, window: _Window, device: torch.device) -> None:
        self._window = window
        self._device = device
        self._operators = _operators(images, window, device)
        self._pairs = max(1, _PRODUCT_BYTES // images.product_bytes(window))

    def left(self, prepared: _Prepared) -> _Prepared:
        return _on_device(prepared, self._device)

    def right(self, prepared: _Prepared) -> _Prepared:
        return _on_device(prepared, self._device)

    def tile(self, left: _Prepared, right: _Prepared, least: float, *, upper: bool) -> _Singles:
        tile = torch.zeros((len(left), len(right)), device=self._device)
        columns = min(len(right), max(1, math.isqrt(self._pairs)))
        rows = max(1, self._pairs // columns)
        with _exact_matmul(self._device):
            for i in range(0, len(left), rows):
                some = _Prepared(*(part[i : i + rows, None] for part in vars(left).values()))
                # Columns left of the rows' first image are below the diagonal.
                for j in range(i - i % columns if upper else 0, len(right), columns):
                    others = _Prepared(*(part[None, j : j + columns] for part in vars(right).values()))
                    tile[i : i + rows, j : j + columns] = _torch_ssim(some, others, self._operators, self._window)
        return tile.cpu().numpy()


@contextmanager
def _exact_matmul(device: torch.device) -> Iterator[None]:
    """Matrix products in full float32, whatever the caller has set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _device(images: _Images, device: str | torch.device | None) -> torch.device | None:
    """The GPU to compute on, or None for the CPU."""
    chosen = images.device if device is None else torch.device(device)
    return None if chosen.type == "cpu" else chosen


def _engine(images: _Images, window: _Window, device: str | torch.device | None) -> _Engine:
    """The engine for a device."""
    at = _device(images, device)
    return _Kernels(images, window) if at is None else _Torch(images, window, at)


def _operators(images: _Images, window: _Window, device: torch.device) -> list[torch.Tensor]:
    """The blur across channels, rows and columns as matrices, the last two transposed."""
    channels, height, width = images.shape
    matrices = (window.mixing(channels), window.operator(height).T, window.operator(width).T)
    return [torch.from_numpy(np.ascontiguousarray(matrix)).to(device) for matrix in matrices]


def _on_device(prepared: _Prepared, device: torch.device) -> _Prepared:
    """Prepared images as tensors; positions transposed, as two matrix products leave them."""
    pixels, means, spreads, offsets = (torch.from_numpy(part).to(device) for part in vars(prepared).values())
    return _Prepared(pixels, means.mT.contiguous(), spreads.mT.contiguous(), offsets[..., None, None])


def _torch_ssim(x: _Prepared, y: _Prepared, operators: list[torch.Tensor], window: _Window) -> torch.Tensor:
    """SSIM of prepared images whose leading axes broadcast."""
    across, down, along = operators
    products = x.pixels * y.pixels
    if window.volume:
        products = (across @ products.flatten(-2)).view(products.shape)
    index: torch.Tensor = (products @ along).mT @ down
    del products
    index.addcmul_(x.means, y.means, value=-1.0).mul_(2.0).add_(window.c2)
    mean_x, mean_y = x.means + x.offsets, y.means + y.offsets
    index.mul_((mean_x * mean_y).mul_(2.0).add_(window.c1))
    index.div_((mean_x.square() + mean_y.square()).add_(window.c1).mul_(x.spreads + y.spreads))
    return index.mean(dim=(-3, -2, -1)).clamp_(-1.0, 1.0)


def _filled(
    shape: tuple[int, int], fill: Callable[[_Singles], None], out: str | Path | None, memory_limit: int
) -> _Singles:
    """A float32 matrix filled by `fill`, in memory or in a file that appears when it is complete."""
    if out is None:
        size = 4 * shape[0] * shape[1]
        if size > memory_limit:
            raise invalid("out", f"a file for the {shape[0]:,} x {shape[1]:,} similarities, which take {size:,} bytes "
                          f"and `memory_limit` is {memory_limit:,}", out)  # fmt: skip
        matrix = np.empty(shape, np.float32)
        fill(matrix)
        return matrix
    path = Path(out)
    part = path.with_name(path.name + ".part")
    try:
        mapped = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=shape)
        fill(mapped)
        mapped.flush()
        del mapped
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return cast("_Singles", np.load(path, mmap_mode="r"))


def _threads() -> int:
    """Threads for the kernels, which leave the interpreter's lock."""
    return n_processors()


def _scaled_lanes(_: Any, target: Any, at: Any, source: Any, start: Any, factor: Any) -> Any:
    """Add `factor` times the lanes of `source` from `start` on to those of `target` from `at` on.

    Written as a loop over the lanes, this would be unrolled before it could be vectorised, and take eight times as
    long.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        """The instructions: two loads, a product, a sum and a store of whole vectors."""
        vector = ir.VectorType(ir.FloatType(), _LANES)
        places = []
        for array, index in ((0, 1), (2, 3)):
            data = context.make_array(signature.args[array])(context, builder, arguments[array]).data
            places.append(builder.bitcast(builder.gep(data, [arguments[index]]), vector.as_pointer()))
        # NumPy's arrays are aligned to their elements, not to vectors.
        target_lanes, source_lanes = (builder.load(place, align=4) for place in places)
        undefined = ir.Constant(vector, ir.Undefined)
        first = builder.insert_element(undefined, arguments[4], ir.Constant(ir.IntType(32), 0))
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [0] * _LANES)
        factors = builder.shuffle_vector(first, undefined, everywhere)
        product = builder.fmul(factors, source_lanes, flags=("contract",))
        builder.store(builder.fadd(target_lanes, product, flags=("contract",)), places[0], align=4)
        return context.get_dummy_value()

    return types.void(target, at, source, start, factor), generate


_add_scaled: Any = intrinsic(_scaled_lanes)


@_kernel
def _moments(pixels: Any, mixing: Any, taps: Any, padding: int, half: float, means: Any, spreads: Any) -> None:
    """Means and variances (plus `half`) in the windows of some images, in float64."""
    count, channels, height, width = pixels.shape
    n_rows, n_columns = means.shape[2], means.shape[3]
    first = np.empty(n_columns + len(taps) - 1)
    second = np.empty(n_columns + len(taps) - 1)
    firsts = np.empty((height, n_columns))
    seconds = np.empty((height, n_columns))
    mean = np.empty(n_columns)
    square = np.empty(n_columns)
    for i in range(count):
        for c in range(channels):
            for h in range(height):
                first[:] = 0.0
                second[:] = 0.0
                for k in range(channels):
                    weight = mixing[c, k]
                    if weight != 0.0:
                        for w in range(width):
                            value = np.float64(pixels[i, k, h, w])
                            first[padding + w] += weight * value
                            second[padding + w] += weight * value * value
                for w in range(padding):
                    first[w] = first[padding]
                    second[w] = second[padding]
                    first[padding + width + w] = first[padding + width - 1]
                    second[padding + width + w] = second[padding + width - 1]
                for p in range(n_columns):
                    total = 0.0
                    for t in range(len(taps)):
                        total += taps[t] * first[p + t]
                    firsts[h, p] = total
                for p in range(n_columns):
                    total = 0.0
                    for t in range(len(taps)):
                        total += taps[t] * second[p + t]
                    seconds[h, p] = total
            for r in range(n_rows):
                mean[:] = 0.0
                square[:] = 0.0
                for t in range(len(taps)):
                    weight = taps[t]
                    h = min(max(r + t - padding, 0), height - 1)
                    for p in range(n_columns):
                        mean[p] += weight * firsts[h, p]
                    for p in range(n_columns):
                        square[p] += weight * seconds[h, p]
                for p in range(n_columns):
                    means[i, c, r, p] = mean[p]
                    spreads[i, c, r, p] = max(square[p] - mean[p] * mean[p], 0.0) + half


@_kernel
def _compare(
    x: Any, x_means: Any, x_spreads: Any, x_offsets: Any, begin: int, end: int,
    y: Any, y_means: Any, y_spreads: Any, y_offsets: Any,
    mixing: Any, taps: Any, padding: int, c1: Any, c2: Any, least: float, group: int, out: Any, column: int,
) -> None:  # fmt: skip
    """SSIM of images `begin` to `end` of x with the images in the lanes of y, to `out` from `column` on.

    A row of products is blurred along the row and kept in a ring of as many rows as the window has, twice over, so
    that the rows of a window always follow each other. `taps` is a tuple, for the compiler to unroll its loops. Once
    no image in the lanes can reach `least`, the rest of an image of x is left out and the result is -2.
    """
    channels, height, width = x.shape[1:]
    n_rows, n_columns = x_means.shape[2:]
    n_taps = len(taps)
    length = n_columns * _LANES
    n_positions = channels * n_rows * n_columns
    one = np.float32(1.0)
    two = np.float32(2.0)
    scaled = np.empty(width, np.float32)
    products = np.empty((n_columns + n_taps - 1) * _LANES, np.float32)
    ring = np.empty((group, 2 * n_taps, length), np.float32)
    blurred = np.empty(length, np.float32)
    sums = np.empty((group, length), np.float32)
    lanes = np.empty(_LANES, np.float32)
    alive = np.empty(group, np.bool_)
    for start in range(begin, end, group):
        size = min(group, end - start)
        n_alive = size
        sums[:] = np.float32(0.0)
        alive[:] = True
        for c in range(channels):
            for padded in range(height + 2 * padding):
                if n_alive == 0:
                    break
                h = min(max(padded - padding, 0), height - 1)
                repeated = padded > 0 and h == min(max(padded - 1 - padding, 0), height - 1)
                slot = padded % n_taps
                previous = (padded + n_taps - 1) % n_taps
                r = padded - n_taps + 1
                window = r % n_taps
                for g in range(size):
                    if not alive[g]:
                        continue
                    i = start + g
                    if repeated:
                        for k in range(length):
                            ring[g, slot, k] = ring[g, previous, k]
                    else:
                        for k in range(len(products)):
                            products[k] = np.float32(0.0)
                        for other in range(channels):
                            weight = mixing[c, other]
                            if weight == 0.0:
                                continue
                            for w in range(width):
                                scaled[w] = weight * x[i, other, h, w]
                            line = y[other, h]
                            for w in range(width):
                                _add_scaled(products, (padding + w) * _LANES, line, w * _LANES, scaled[w])
                        for w in range(padding):
                            _add_scaled(products, w * _LANES, products, padding * _LANES, one)
                            right = padding + width + w
                            _add_scaled(products, right * _LANES, products, (padding + width - 1) * _LANES, one)
                        for k in range(length):
                            total = np.float32(0.0)
                            for t in range(n_taps):
                                total += taps[t] * products[k + t * _LANES]
                            ring[g, slot, k] = total
                    for k in range(length):
                        ring[g, n_taps + slot, k] = ring[g, slot, k]
                    if r < 0:
                        continue
                    for k in range(length):
                        total = np.float32(0.0)
                        for t in range(n_taps):
                            total += taps[t] * ring[g, window + t, k]
                        blurred[k] = total
                    offset = x_offsets[i, c]
                    for p in range(n_columns):
                        deviation = x_means[i, c, r, p]
                        mean = deviation + offset
                        double = two * mean
                        square = mean * mean + c1
                        spread = x_spreads[i, c, r, p]
                        for lane in range(_LANES):
                            k = p * _LANES + lane
                            other_deviation = y_means[c, r, k]
                            other_mean = other_deviation + y_offsets[c, lane]
                            covariance = blurred[k] - deviation * other_deviation
                            above = (double * other_mean + c1) * (two * covariance + c2)
                            below = (square + other_mean * other_mean) * (spread + y_spreads[c, r, k])
                            sums[g, k] += above / below
                    if least > -2.0:
                        lanes[:] = np.float32(0.0)
                        so_far = sums[g]
                        for p in range(n_columns):
                            _add_scaled(lanes, 0, so_far, p * _LANES, one)
                        left = n_positions - (c * n_rows + r + 1) * n_columns
                        if lanes.max() + left < (least - _SLACK) * n_positions:
                            alive[g] = False
                            n_alive -= 1
        for g in range(size):
            for lane in range(_LANES):
                mean_index = -2.0
                if alive[g]:
                    mean_index = 0.0
                    for p in range(n_columns):
                        mean_index += np.float64(sums[g, p * _LANES + lane])
                    mean_index = min(max(mean_index / n_positions, -1.0), 1.0)
                out[start + g, column + lane] = mean_index
