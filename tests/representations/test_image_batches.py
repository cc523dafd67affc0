"""Vectors of images that are asked for several times."""

import numpy as np
import pytest

from toolkit import Pixels, WaveletScattering
from toolkit.representations import image_batches
from toolkit.representations.image_batches import remembered_vectors


class Counted:
    """Images that count how often they are read."""

    def __init__(self, seed=0):
        self.images = np.random.default_rng(seed).random((20, 3, 16, 16), dtype=np.float32)
        self.reads, self.seed = 0, seed

    def fingerprint(self):
        return f"images {self.seed}"

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.reads += 1
        return self.images[index]


@pytest.mark.parametrize("representation", [Pixels(progress=False), WaveletScattering(levels=2, progress=False)])
def test_the_same_vectors_are_computed_once(representation):
    images = Counted()
    plain = representation.vectors(images)
    assert plain.flags.writeable
    with remembered_vectors():
        first = representation.vectors(images)
        reads = images.reads
        again = representation.vectors(images)
        assert again is first
        assert images.reads - reads < 20, "looked at for their fingerprint, not read"
        with pytest.raises(ValueError, match="read-only"):
            again[0] = 0
        np.testing.assert_array_equal(first, plain)
        assert not np.array_equal(representation.vectors(Counted(1)), plain), "other images have their own"
        np.testing.assert_array_equal(representation.vectors(images), plain)
    assert representation.vectors(images).flags.writeable, "forgotten"


def test_other_settings_have_vectors_of_their_own():
    images = Counted().images
    with remembered_vectors():
        colour = Pixels(progress=False).vectors(images)
        assert Pixels(grayscale=True, progress=False).vectors(images).shape == (20, 256)
        np.testing.assert_array_equal(Pixels(progress=False).vectors(images), colour)


def test_what_is_too_large_is_not_held(monkeypatch):
    images = Counted().images
    monkeypatch.setattr(image_batches, "_MEMORY_LIMIT", 1000)
    with remembered_vectors():
        first = Pixels(progress=False).vectors(images)
        assert Pixels(progress=False).vectors(images) is not first
