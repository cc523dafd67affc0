import numpy as np
import pytest
from torch.utils.data import TensorDataset

from toolkit import ScoreSelector, Selection
from toolkit.training_scores import save_scores

SCORES = np.array([0.3, np.inf, 0.1, 0.9, 0.5, 0.5, 0.0, 0.2], np.float32)


def kept(**settings):
    return set(ScoreSelector(SCORES, **{"keep_fraction": 0.5, **settings}).select().kept.tolist())


def test_hard_or_easy_images_stay():
    assert kept() == {1, 3, 4, 5}
    assert kept(keep="easy") == {6, 2, 7, 0}
    assert kept(keep_fraction=0.25, skip=0.25) == {4, 5}
    assert kept(keep_fraction=1.0) == set(range(8))
    assert kept(always_keep=[6]) >= {6, 1, 3}
    assert kept(always_remove=[1]) == {3, 4, 5, 0}


def test_smaller_budgets_are_inside_larger_ones_and_cuts_agree():
    selection = ScoreSelector(SCORES, 0.75).select()
    for fraction in (0.25, 0.5):
        assert set(selection.with_keep_fraction(fraction).kept) == kept(keep_fraction=fraction) <= set(selection.kept)


def test_equal_scores_are_ordered_at_random():
    same = [set(ScoreSelector(np.zeros(40), 0.5, seed=seed).select().kept) for seed in (0, 0, 1)]
    assert same[0] == same[1] != same[2]
    assert same[0] != set(range(20))


def test_permuted_images_give_the_permuted_selection():
    order = np.random.default_rng(0).permutation(8)
    distinct = np.arange(8.0)
    direct = set(ScoreSelector(distinct, 0.5).select().kept)
    assert {int(order[i]) for i in ScoreSelector(distinct[order], 0.5).select().kept} == direct


def test_classes_can_keep_their_shares():
    labels = [0, 1, 0, 1, 1, 1, 0, 0]
    selection = ScoreSelector(SCORES, 0.5, balance="label").select(labels=labels)
    assert {name: count["kept"] for name, count in selection.counts().items()} == {"0": 2, "1": 2}


def test_scores_of_a_training_are_found_and_those_of_other_images_refused(tmp_path, made_up):
    from toolkit.fingerprint import dataset_fingerprint

    save_scores(tmp_path, {"el2n": SCORES, "forgetting": -SCORES}, images=dataset_fingerprint(made_up), epochs=[1])
    chosen = ScoreSelector(tmp_path, 0.5).select(made_up)
    assert set(chosen.kept) == kept()
    assert set(ScoreSelector(tmp_path, 0.5, score="forgetting").select(made_up).kept) == kept(keep="easy")
    chosen.save(tmp_path / "selection")
    assert np.array_equal(Selection.load(tmp_path / "selection").kept, chosen.kept)
    other = TensorDataset(made_up.tensors[0] + 1, made_up.tensors[1])
    with pytest.raises(ValueError, match="`scores` must be those of the data set's own images"):
        ScoreSelector(tmp_path, 0.5).select(other)


def test_the_fingerprint_tells_settings_and_scores():
    texts = [
        ScoreSelector(SCORES, 0.5).fingerprint(),
        ScoreSelector(SCORES, 0.4).fingerprint(),
        ScoreSelector(SCORES + 1, 0.5).fingerprint(),
    ]
    assert len(set(texts)) == 3
    assert texts[0] == ScoreSelector(SCORES.copy(), 0.5).fingerprint()


@pytest.fixture
def made_up():
    import torch

    return TensorDataset(torch.arange(8.0)[:, None], torch.zeros(8, dtype=torch.int64))


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"scores": None}, ValueError, "`scores` must be one number an image, or the folder of a TrainingScoreWriter"),
        ({"scores": "nowhere"}, ValueError, "`scores` must be a folder that TrainingScoreWriter wrote"),
        ({"scores": [[1.0]]}, ValueError, r"`scores` must be of shape \(N,\), got \(1, 1\)"),
        ({"scores": [1.0, float("nan")]}, ValueError, "`scores` must be numbers, got 'NaN for 1 images, .* index 1'"),
        ({"keep_fraction": None}, TypeError, "`keep_fraction` must be a number"),
        ({"keep_fraction": 0.0}, ValueError, r"`keep_fraction` must be in \(0, 1\]"),
        ({"score": "loss"}, ValueError, "`score` must be one of 'el2n', 'forgetting'"),
        ({"keep": "some"}, ValueError, "`keep` must be one of 'hard', 'easy'"),
        ({"skip": 0.6}, ValueError, "`skip` must be at most 1 less `keep_fraction`"),
        ({"skip": "much"}, TypeError, r"`skip` must be a number in \[0, 1\)"),
        ({"skip": -0.1}, ValueError, r"`skip` must be in \[0, 1\)"),
        ({"balance": "predicted"}, ValueError, "`balance` must be one of 'label'"),
        ({"balance": "label"}, ValueError, "`labels` must be given where balance='label'"),
    ],
)
def test_errors(settings, error, match):
    with pytest.raises(error, match=match):
        ScoreSelector(**{"scores": SCORES, "keep_fraction": 0.5, **settings}).select()


def test_there_is_a_score_for_every_image():
    with pytest.raises(ValueError, match="`scores` must be one for each of the data set's 5 images, got '8 scores'"):
        ScoreSelector(SCORES, 0.5).select(range(5))
