from itertools import pairwise

import numpy as np
import pytest
import torch

from toolkit.training_scores import ScoreCounter, el2n_epochs, error_norms, load_scores, save_scores


def test_error_norms_are_those_of_the_definition():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 7, generator=generator) * 3, torch.randint(7, (50,), generator=generator)
    one_hot = torch.nn.functional.one_hot(labels, 7)
    expected = (logits.softmax(1) - one_hot).pow(2).sum(1).sqrt()
    torch.testing.assert_close(error_norms(logits, labels), expected)
    torch.testing.assert_close(error_norms(logits.bfloat16(), labels), expected, atol=0.02, rtol=0.02)


def slow_forgetting(history):
    """Toneva et al.'s Algorithm 1 for one image."""
    if not any(history):
        return np.inf
    return sum(before and not now for before, now in pairwise(history))


def test_forgetting_is_counted_as_by_hand():
    rng = np.random.default_rng(0)
    right = rng.random((12, 60)) < rng.random(60)
    counter = ScoreCounter(60)
    for visit in right:
        order = rng.permutation(60)
        counter.add(order, np.zeros(60), visit[order], counts_for_el2n=False)
    expected = [slow_forgetting(list(right[:, image])) for image in range(60)]
    assert counter.scores()["forgetting"].tolist() == expected
    assert np.isnan(counter.scores()["el2n"]).all()


def test_el2n_is_the_mean_over_visits_that_count():
    counter = ScoreCounter(3)
    counter.add([0, 1, 2], [0.2, 0.4, 1.0], [True] * 3, counts_for_el2n=True)
    counter.add([2, 0], [0.5, 0.6], [True] * 2, counts_for_el2n=True)
    counter.add([0, 1, 2], [9.0] * 3, [True] * 3, counts_for_el2n=False)
    assert counter.scores()["el2n"] == pytest.approx([0.4, 0.4, 0.75])


def test_counting_goes_on_from_a_stored_state():
    first, whole = ScoreCounter(2), ScoreCounter(2)
    for counter in (first, whole):
        counter.add([0, 1], [0.1, 0.2], [True, False], counts_for_el2n=True)
    second = ScoreCounter(2)
    second.load_state_dict(first.state_dict())
    for counter in (second, whole):
        counter.add([0, 1], [0.3, 0.4], [False, True], counts_for_el2n=True)
    for name, values in whole.scores().items():
        assert values.tolist() == second.scores()[name].tolist()
    with pytest.raises(ValueError, match="`state` must be of 3 images, got 'one of 2'"):
        ScoreCounter(3).load_state_dict(first.state_dict())


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [0]), (2, [1]), (8, [1]), (40, [2, 3]), (256, list(range(13, 26)))]
)
def test_early_epochs(count, expected):
    assert list(el2n_epochs(count)) == expected


def test_scores_are_read_as_they_were_written(tmp_path):
    scores = {"el2n": np.array([0.5, 1.0], np.float32), "forgetting": np.array([np.inf, 2], np.float32)}
    folder = save_scores(tmp_path / "scores", scores, images="abc", epochs=[1, 2])
    values, images = load_scores(folder, "forgetting")
    assert (values.tolist(), images) == ([np.inf, 2.0], "abc")
    with pytest.raises(ValueError, match="`score` must be one of 'el2n', 'forgetting', got 'loss'"):
        load_scores(folder, "loss")
    with pytest.raises(ValueError, match="`scores` must be a folder that TrainingScoreWriter wrote"):
        load_scores(tmp_path, "el2n")
