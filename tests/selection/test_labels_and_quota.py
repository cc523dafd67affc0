from fractions import Fraction

import numpy as np
import pytest
import torch

from toolkit.selection import Labels
from toolkit.selection.quota import allocate


@pytest.mark.parametrize(
    ("values", "codes", "sets"),
    [
        ([3, 1, 3], [1, 0, 1], ((1,), (3,))),
        (torch.tensor([3, 1, 3]), [1, 0, 1], ((1,), (3,))),
        (np.array([3.0, 1.0, 3.0]), [1, 0, 1], ((1,), (3,))),
        (["b", "a", "b"], [1, 0, 1], (("a",), ("b",))),
        ([[2, 1], (1, 2), [1]], [1, 1, 0], ((1,), (1, 2))),
        ([[], [1], []], [0, 1, 0], ((), (1,))),
        ([True, False, True], [1, 0, 1], ((0,), (1,))),
        (np.eye(3), [0, 1, 2], ((0,), (1,), (2,))),
        (torch.tensor([[1, 0, 1], [0, 0, 0], [1, 0, 1]]), [1, 0, 1], ((), (0, 2))),
        ([[2, 1, 2, 2], [], [1, 2]], [1, 0, 1], ((), (1, 2))),
        ([torch.tensor([2, 2]), np.array([]), np.array([1.0])], [2, 0, 1], ((), (1,), (2,))),
        ([[], [], []], [0, 0, 0], ((),)),
    ],
)
def test_images_with_the_same_labels_form_a_class(values, codes, sets):
    labels = Labels.of(values, 3)
    assert labels.codes.tolist() == codes
    assert labels.sets == sets
    assert list(labels) == [sets[code] for code in codes]


@pytest.mark.parametrize(
    ("values", "repeats", "totals"),
    [
        ([3, 1, 3], None, {1: (1, 1), 3: (2, 2)}),
        ([[2, 1], [1], []], None, {1: (2, 2), 2: (1, 1)}),
        ([[2, 1, 2, 2], [], [1, 2]], [1, 3, 1, 1], {1: (2, 2), 2: (2, 4)}),
        ([[], [], []], None, {}),
        ([["b", "a", "b"], ["b"], []], [1, 2, 1], {"a": (1, 1), "b": (2, 3)}),
        ([[7, 7], "x", 7], [2, 1, 1], {7: (2, 3), "x": (1, 1)}),
    ],
)
def test_labels_that_repeat_are_counted(values, repeats, totals):
    labels = Labels.of(values, 3)
    assert (None if labels.repeats is None else labels.repeats.tolist()) == repeats
    found = labels.occurrences()
    assert found.labels == tuple(totals)
    assert list(map(tuple, found.totals().T)) == list(totals.values())
    again = [[found.labels[k] for k in np.repeat(found.label, found.count)[np.repeat(found.image, found.count) == i]]
             for i in range(3)]  # fmt: skip
    plain = [sorted(value, key=str) if isinstance(value, list) else [value] for value in values]
    assert again == plain
    assert found.totals(np.zeros(3, dtype=bool)).sum() == 0


@pytest.mark.parametrize(
    ("values", "error", "match"),
    [
        ([1, 2], ValueError, "`labels` must be one for each of the data set's 3 images, got '2 labels'"),
        ([1, 2, 0.5], TypeError, "`labels` must be whole numbers or texts, got 0.5 at index 2"),
        ([1, None, 2], TypeError, "got None at index 1"),
        ([[1], [[2]], 3], TypeError, r"whole numbers or texts, got \[2\] at index 1"),
        ([[1], [1, ""], [3]], ValueError, "not empty and have no ';' in them, got '' at index 1"),
        (np.full((3, 2), 0.5), ValueError, "zeros and ones, got other values"),
        (["a", "b;c", "d"], ValueError, "have no ';' in them, got 'b;c' at index 1"),
    ],
)
def test_label_errors(values, error, match):
    with pytest.raises(error, match=match):
        Labels.of(values, 3)


def by_hand(total, sizes):
    """Largest remainder with exact fractions."""
    shares = [Fraction(total * size, sum(sizes)) for size in sizes]
    seats = [int(share) for share in shares]
    order = sorted(range(len(sizes)), key=lambda i: (-(shares[i] - seats[i]), i))
    for i in order[: total - sum(seats)]:
        seats[i] += 1
    return seats


def test_allocation_is_the_largest_remainder():
    rng = np.random.default_rng(0)
    for _ in range(200):
        sizes = rng.integers(1, 1000, rng.integers(1, 20))
        total = int(rng.integers(0, sizes.sum() + 1))
        seats = allocate(total, sizes)
        assert seats.tolist() == by_hand(total, sizes.tolist())
        assert seats.sum() == total


def test_allocation_within_bounds():
    rng = np.random.default_rng(1)
    for _ in range(500):
        sizes = rng.integers(1, 100, rng.integers(1, 12))
        low, high = np.sort(rng.integers(0, sizes + 1, (2, len(sizes))), axis=0)
        total = int(rng.integers(low.sum(), high.sum() + 1))
        seats = allocate(total, sizes, low, high)
        assert seats.sum() == total
        assert (low <= seats).all()
        assert (seats <= high).all()


def test_allocation_outside_the_bounds_is_refused():
    with pytest.raises(ValueError, match="`total` must be between 2 and 5, got 6"):
        allocate(6, np.array([3, 2]), np.array([1, 1]))
