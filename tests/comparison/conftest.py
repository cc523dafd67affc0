"""Rows of a made-up comparison."""

import pytest


def row(method, fraction, seed, score, **more):
    return {
        "key": f"{method}-{fraction}-{seed}-{more.get('budget', 'epochs')}-{more.get('like')}",
        "method": method,
        "fraction": fraction,
        "seed": seed,
        "budget": "epochs",
        "like": None,
        "status": "done",
        "test_last": score,
        "test_best": score + 0.01,
        "kept_fraction": fraction,
        "seconds_baseline": 0.0,
        "seconds_choosing": 1.0,
        "seconds_training": 10.0 * (fraction or 0.4),
        "device": "a machine",
        **more,
    }


@pytest.fixture
def rows():
    """Three seeds of a method that beats random subsets at the smaller fraction, and of one that fails there."""
    found = []
    for seed in (1, 2, 3):
        found.append(row("full", 1.0, seed, 0.95 + 0.001 * seed, seconds_choosing=0.0))
        for fraction, base in ((0.9, 0.94), (0.5, 0.85)):
            found.append(row("random", fraction, seed, base + 0.01 * seed))
            found.append(row("balanced", fraction, seed, base + 0.012 * seed))
            gain = 0.05 if fraction == 0.5 else 0.0
            found.append(
                row("mine", fraction, seed, base + 0.01 * seed + gain + 0.001 * (seed - 2), seconds_baseline=10.0)
            )
        found.append(row("fragile", 0.9, seed, 0.9 + 0.01 * seed))
        found.append(
            {**row("fragile", 0.5, seed, 0.0), "status": "failed", "error": "ValueError: too <few>", "test_last": None}
        )
        found.append(row("auto", None, seed, 0.90 + 0.01 * seed % 0.02, kept_fraction=0.42))
        found.append(row("random", None, seed, 0.90, kept_fraction=0.42, like="auto"))
    return found
