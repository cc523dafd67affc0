import numpy as np
import pytest
import torch

from toolkit.validation import check_choice, check_fraction, check_vectors, fraction_of


def test_fraction_of_rounds_products_before_the_floor():
    assert fraction_of(0.29, 100) == 29
    assert [fraction_of(f / 1000, 1000) for f in range(1, 1001)] == list(range(1, 1001))
    assert fraction_of(0.9, 1348) == 1213


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: check_fraction("f", 0.0), ValueError, r"`f` must be in \(0, 1\], got 0.0"),
        (lambda: check_fraction("f", 1.01), ValueError, r"`f` must be in \(0, 1\], got 1.01"),
        (lambda: check_fraction("f", float("nan")), ValueError, r"`f` must be in \(0, 1\], got nan"),
        (lambda: check_fraction("f", "0.5"), TypeError, r"`f` must be a number in \(0, 1\], got '0.5'"),
        (lambda: check_fraction("f", True), TypeError, "`f` must be a number"),
        (lambda: check_choice("c", "x", ("a", "b")), ValueError, "`c` must be one of 'a', 'b', got 'x'"),
        (
            lambda: check_vectors(np.zeros(3)),
            ValueError,
            r"matrix of shape \(N, D\), got 'an array of shape \(3,",
        ),
        (lambda: check_vectors(np.zeros((0, 3))), ValueError, "non-empty matrix"),
        (lambda: check_vectors(np.array([["a"]])), TypeError, "`features` must hold real numbers"),
        (
            lambda: check_vectors(np.array([[1.0], [np.nan], [np.inf]]), "x"),
            ValueError,
            "`x` must be finite, got NaN or infinite values in 2 of 3 rows, the first at index 1",
        ),
        (
            lambda: check_vectors(np.array([[1.0], [0.0], [0.0]]), nonzero=True),
            ValueError,
            "no zero rows under the cosine .* got 2 of 3, the first at index 1",
        ),
    ],
)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_vectors_are_not_copied_and_checked_in_chunks(monkeypatch):
    monkeypatch.setattr("toolkit.validation._CHUNK_ELEMENTS", 4)
    matrix = np.ones((7, 3), np.float32)
    assert check_vectors(matrix) is matrix
    matrix[5, 1] = np.nan
    with pytest.raises(ValueError, match="in 1 of 7 rows, the first at index 5"):
        check_vectors(matrix)
    assert check_vectors(torch.ones(2, 2, dtype=torch.int64)).dtype == np.float64
