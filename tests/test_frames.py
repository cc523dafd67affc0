"""Videos told by names, and gaps in them."""

import itertools

import numpy as np
import pytest

from toolkit.frames import longest_gap, videos_of


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        (None, {}),
        ([], {}),
        ([f"{k:03}.jpg" for k in range(9)], {"frames": range(9)}),
        ([f"{k}.jpg" for k in range(7)], {}),
        ([f"image{k}x.jpg" for k in range(20)], {}),
        ([f"a/b/{name}_{k}.jpg" for name in "xy" for k in range(10)], {"x": range(10), "y": range(10, 20)}),
        ([f"a/{name}/{k}.jpg" for name in "xy" for k in range(0, 50, 5)], {"x": range(10), "y": range(10, 20)}),
        (
            [f"{k}.jpg" for k in range(9)] + [f"day/{k}.jpg" for k in range(9)],
            {"frames": range(9), "day": range(9, 18)},
        ),
        ([f"v-{k}.jpg" for k in reversed(range(12))], {"v": range(11, -1, -1)}),
        # One frame in ten is missing: a video still. Numbers of single images are none.
        ([f"v{k}.jpg" for k in range(100) if k % 10], {"v": range(90)}),
        ([f"v{k}.jpg" for k in np.flatnonzero(np.random.default_rng(0).random(200) < 0.4)], {}),
    ],
)
def test_videos(ids, found):
    assert {video.name: video.indices.tolist() for video in videos_of(ids)} == {
        name: list(indices) for name, indices in found.items()
    }


@pytest.mark.parametrize("stays", list(itertools.product([True, False], repeat=4)))
def test_the_longest_gap_is_the_longest_run(stays):
    runs = [len(list(run)) for value, run in itertools.groupby(stays) if not value]
    assert longest_gap(np.array(stays)) == max(runs, default=0)
