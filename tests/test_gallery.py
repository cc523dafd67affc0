import numpy as np
import pytest
import torch
from drawn_scenes import DrawnScenes
from torch.utils.data import Subset, TensorDataset

from toolkit import RandomSelector, SemanticSelector, SSIMSelector, WaveletSelector, plotting
from toolkit.gallery import save_pictures


@pytest.fixture
def digits_like():
    """Smooth images in three copies each, with two wrong labels."""
    generator = torch.Generator().manual_seed(0)
    base = torch.nn.functional.interpolate(torch.rand(10, 1, 4, 4, generator=generator), (16, 16), mode="bilinear")
    images = torch.cat([(base + 0.02 * k * torch.randn(base.shape, generator=generator)).clamp(0, 1) for k in range(3)])
    labels = torch.arange(10).repeat(3)
    labels[[13, 27]] = 9
    return TensorDataset(images, labels)


def drawn(monkeypatch):
    """The arguments of every drawing, by the name of its function."""
    calls = {}
    for name in [name for name in dir(plotting) if name.startswith("plot_")]:
        original = getattr(plotting, name)

        def record(*args, _name=name, _original=original, **more):
            calls.setdefault(_name, []).append((args, more))
            return _original(*args, **more)

        monkeypatch.setattr(plotting, name, record)
    return calls


def names(pictures):
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures.values())
    return {path.stem for path in pictures.values()}


def test_wavelets_have_all_pictures_of_vectors(digits_like, tmp_path, monkeypatch):
    calls = drawn(monkeypatch)
    selector = WaveletSelector(n_groups=10, progress=False)
    selection = selector.select(digits_like)
    assert set(selection.influential) == {3, 13, 23, 7, 17, 27}
    saved = names(save_pictures(selection, digits_like, tmp_path, selector=selector))
    assert saved == {"groups", "kept_fraction", "near_duplicates", "isolated", "influential", "band_energy"}
    vectors = selector.representation().vectors(digits_like)
    influential = next(more for args, more in calls["plot_pairs"] if "labels" in more.get("title", ""))
    pairs = next(args[1] for args, more in calls["plot_pairs"] if "labels" in more.get("title", ""))
    assert {tuple(pair) for pair in pairs.tolist()} == {(3, 13), (7, 27)}
    apart = np.linalg.norm(vectors[pairs[:, 0]] - vectors[pairs[:, 1]], axis=1)
    assert np.allclose(influential["distances"], apart, rtol=1e-4)
    (((_, energy), _),) = calls["plot_band_energy"]
    assert sum(energy) == pytest.approx(float((vectors**2).sum(axis=1).mean()), rel=1e-4)


def test_similarities_have_their_own(digits_like, tmp_path, monkeypatch):
    calls = drawn(monkeypatch)
    selector = SSIMSelector(eigengap=0.4, progress=False)
    selection = selector.select(digits_like)
    saved = names(save_pictures(selection, digits_like, tmp_path, selector=selector))
    assert saved >= {"groups", "near_duplicates", "isolated", "similarity", "similarity_graph", "spectrum"}
    (((eigenvalues,), more),) = calls["plot_spectrum"]
    assert len(eigenvalues) == 30
    assert more["n_groups"] == len(np.unique(selection.group))
    within = SSIMSelector(eigengap=0.4, scope="class", progress=False)
    assert "similarity" not in names(
        save_pictures(within.select(digits_like), digits_like, tmp_path / "within", selector=within)
    )


def test_kept_fraction_marks_the_chosen_place(tmp_path, monkeypatch, digits_like):
    calls = drawn(monkeypatch)
    vectors = digits_like.tensors[0].flatten(1).numpy()
    selector = SemanticSelector(vectors, 0.6, scope="dataset", progress=False)
    selection = selector.select(digits_like)
    save_pictures(selection, digits_like, tmp_path)
    (((thresholds, kept), more),) = calls["plot_kept_fraction"]
    at = np.searchsorted(thresholds, more["chosen"], side="right") - 1
    assert kept[at] == pytest.approx(0.6)
    assert more["kept_at_chosen"] == pytest.approx(0.6)
    assert "cosine" in more["xlabel"]


def test_where_there_is_nothing_to_show_nothing_is_drawn(digits_like, tmp_path):
    assert save_pictures(RandomSelector(0.5).select(digits_like), digits_like, tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_scenes_have_a_timeline_and_pairs_that_differ_in_their_classes(tmp_path, monkeypatch):
    calls = drawn(monkeypatch)
    scenes = DrawnScenes(30, video="drive")
    selector = WaveletSelector(features=scenes.vectors(), n_groups=20, progress=False)
    selection = selector.select(scenes)
    assert len(selection.influential)
    saved = names(save_pictures(selection, scenes, tmp_path, selector=selector, class_names=["a", "b", "c"]))
    assert saved == {"groups", "timeline", "kept_fraction", "near_duplicates", "isolated", "influential"}
    args, more = next((args, more) for args, more in calls["plot_pairs"] if "labels" in more["title"])
    assert [sorted(label) for label in more["labels"]] == [sorted(label) for label in scenes.targets]
    for first, second in args[1].tolist():
        assert set(scenes.targets[first]) != set(scenes.targets[second])


def test_a_subset_has_pictures_of_its_own_images(digits_like, tmp_path, monkeypatch):
    calls = drawn(monkeypatch)
    few = Subset(digits_like, [25, 15, 5, 6, 16, 26, 8])
    selector = WaveletSelector(n_groups=4, progress=False)
    save_pictures(selector.select(few), few, tmp_path, selector=selector)
    assert all(args[0] is few for args, _ in calls["plot_pairs"])
