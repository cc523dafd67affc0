"""A test set against its training set: which test images have a twin there, and which are unlike all of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import default_collate

from toolkit.insight import Leaks, find_leaks
from toolkit.representations import EvaluationView, Pixels, Representation
from toolkit.representations.base import images_of
from toolkit.similarity import ssim_of_pairs
from toolkit.validation import invalid

#: Indices of test images, those of training images, and whether the test image is mirrored, to similarities.
Structure = Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]], npt.NDArray[np.float32]]

#: Pairs of images whose similarity is computed at a time.
_PAIRS = 4096


def leaks_between(
    train: Any,
    test: Any,
    representation: Representation,
    *,
    radius: float | None = None,
    min_similarity: float = 0.9,
    mirrored: bool = True,
    candidates: int = 10,
    resize: Sequence[int] | None = None,
    progress: bool = True,
) -> Leaks:
    """Look for each test image in the training set.

    What a twin is depends on the representation. One that puts the same picture near itself also where it is cropped,
    shifted or brighter (`WaveletScattering`) tells twins by a radius. What others tell is no more than a proposal: of
    the nearest training images of each test image and of its mirror image, the most similar in structure (SSIM of
    the image as a volume) is taken, and is a twin if it is similar enough.

    Args:
        train: The training images: a data set, an `EvaluationView`, or a tensor or array of shape (N, C, H, W).
        test: The test images, likewise.
        representation: What turns images into vectors whose Euclidean distance proposes candidates.
        radius: A twin's distance is at most this. None for the representation's own `twin_radius`, where it has one.
        min_similarity: Without a radius, a twin's SSIM is at least this, in [-1, 1]; 0.9 is what the paper's figures
            correspond to.
        mirrored: Whether to look for mirror images too.
        candidates: Without a radius, how many training images are compared in structure, for each test image and its
            mirror image.
        resize: Height and width at which structure is compared; needed where images differ in size.
        progress: Whether to show progress bars.

    Returns:
        For each test image its training image, the distance in the representation, the SSIM, and whether it is a twin.

    Raises:
        ValueError: If arguments are out of range, or images of different sizes come without `resize`.

    References:
        Yousefzadeh, "Using wavelets to analyze similarities in image datasets", arXiv 2002.10257, section 5.2.2.

    Example:
        >>> from toolkit.representations import Pixels
        >>> train = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> test = torch.stack([train[3].flip(-1), 1 - train[0]])
        >>> leaks = leaks_between(train, test, Pixels(progress=False), progress=False)
        >>> leaks.nearest[leaks.twins], leaks.mirrored[leaks.twins]
        (array([3]), array([ True]))
    """
    if not -1 <= min_similarity <= 1:
        raise invalid("min_similarity", "a structural similarity in [-1, 1]", min_similarity)
    train, test = EvaluationView.of(train), EvaluationView.of(test)
    pixels = Pixels(resize=resize, progress=False)
    # Read first: images of different sizes are told before any long work.
    train_images, test_images = pixels.images(train), pixels.images(test)
    if train_images.shape[1:] != test_images.shape[1:]:
        was = f"{test_images.shape[1:]} beside {train_images.shape[1:]} of the training images"
        raise invalid("test", "images of the training images' shape (give `resize`)", was)
    if radius is None:
        radius = getattr(representation, "twin_radius", None)
    fitted = getattr(representation, "fitted", None)
    if callable(fitted):
        representation = fitted(train)  # so that test images are seen as the training images are
    vectors = [representation.vectors(view) for view in (train, test)]
    overlooks_flips = "flip" in getattr(representation, "invariance", ())
    flipped = representation.vectors(mirror_images(test)) if mirrored and not overlooks_flips else None
    structure = _structure(test_images, train_images)
    if radius is None:
        return find_leaks(
            vectors[0],
            vectors[1],
            mirrored_test_vectors=flipped,
            similarity=structure,
            min_similarity=min_similarity,
            k=candidates,
            progress=progress,
        )
    found = find_leaks(vectors[0], vectors[1], radius=radius, mirrored_test_vectors=flipped, progress=progress)
    return _with_structure(found, structure, mirrored)


def _with_structure(found: Leaks, structure: Structure, mirrored: bool) -> Leaks:
    """The same with the SSIM of each pair, of the mirror image where that is the more similar one."""
    test = np.arange(len(found))
    never = np.zeros(len(found), dtype=bool)
    similarity, flipped = structure(test, found.nearest, never), never
    if mirrored:
        other = structure(test, found.nearest, ~never)
        similarity, flipped = np.maximum(similarity, other), other > similarity
    return replace(found, similarity=similarity.astype(np.float32), mirrored=flipped, by_distance=True)


def mirror_images(view: EvaluationView) -> EvaluationView:
    """The same images flipped left to right, without labels."""
    if isinstance(view.dataset, (np.ndarray, torch.Tensor)):
        return EvaluationView(view.dataset.flip(-1) if hasattr(view.dataset, "flip") else view.dataset[..., ::-1])

    def flipped(samples: list[Any]) -> torch.Tensor:
        return images_of((view.collate_fn or default_collate)(samples)).flip(-1)

    return EvaluationView(
        view.dataset,
        batch_transform=view.batch_transform,
        collate_fn=flipped,
        num_workers=view.num_workers,
        device=view.device,
    )


def _structure(test: npt.NDArray[Any], train: npt.NDArray[Any]) -> Structure:
    """The SSIM of test images, some of them mirrored, with training images."""

    def similarity(
        of_test: npt.NDArray[np.int64], of_train: npt.NDArray[np.int64], mirrored: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.float32]:
        parts = []
        for start in range(0, len(of_test), _PAIRS):
            chunk = slice(start, start + _PAIRS)
            images = test[of_test[chunk]]
            flips = mirrored[chunk]
            images[flips] = images[flips][..., ::-1]
            parts.append(ssim_of_pairs(images, train[of_train[chunk]], variant="volume"))
        return np.concatenate(parts) if parts else np.empty(0, np.float32)

    return similarity
