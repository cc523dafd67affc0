import runpy

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from toolkit.selection import Selection, SSIMSelector
from toolkit.similarity import pairwise_ssim
from toolkit.spectrum import groups_by_eigengap, laplacian_eigenvalues


def selector(*args, **more):
    return SSIMSelector(*args, progress=False, **more)


def pictures(n_pictures=12, copies=3, size=16, noise=0.03, seed=0):
    """Smooth random images, each in several slightly different copies; copy k of picture p is image k * n + p."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n_pictures, 3, 4, 4, generator=generator)
    base = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    parts = [base + noise * k * torch.randn(base.shape, generator=generator) for k in range(copies)]
    return torch.cat(parts).clamp(0, 1)


def test_groups_are_the_copies_of_one_picture():
    images, picture = pictures(), np.tile(np.arange(12), 3)
    selection = selector(n_groups=12).select(images)
    assert len({(int(g), int(p)) for g, p in zip(selection.group, picture, strict=True)}) == 12
    assert len(selection.kept) == 12
    similarity = pairwise_ssim(images, variant="volume")
    for group in range(12):
        members = np.flatnonzero(selection.group == group)
        total = similarity[np.ix_(members, members)].sum(axis=1)
        assert set(selection.representative[members]) == {members[total.argmax()]}
    gone = selection.removed
    assert np.allclose(selection.distance[gone], 1 - similarity[gone, selection.representative[gone]], atol=1e-6)


def test_the_number_of_groups_is_read_off_the_spectrum():
    images = pictures()
    eigenvalues = laplacian_eigenvalues(pairwise_ssim(images, variant="volume"))
    for reading in ("separated", "gaps"):
        wanted = groups_by_eigengap(eigenvalues, 0.5, reading)
        assert 1 < wanted < 36
        selection = selector(eigengap=0.5, reading=reading).select(images)
        assert len(np.unique(selection.group)) == len(selection.kept) == wanted


@pytest.mark.parametrize("variant", ["2d", "volume"])
def test_every_two_images_of_a_group_are_similar_enough(variant):
    images = pictures(noise=0.06)
    similarity = pairwise_ssim(images, variant=variant)
    apart = squareform(1.0 - similarity.astype(np.float64), checks=False)
    for bound in (0.5, 0.8, 0.9):
        selection = selector(min_similarity=bound, variant=variant).select(images)
        by_hand = fcluster(linkage(apart, "complete"), 1 - bound, "distance")
        same = selection.group[:, None] == selection.group
        assert np.array_equal(same, by_hand[:, None] == by_hand)
        assert similarity[same].min() >= bound - 1e-6
        assert len(selection.kept) == by_hand.max()


def test_the_similarity_bound_gives_a_tree_for_later_cuts(tmp_path):
    images = pictures()
    selection = selector(min_similarity=0.5).select(images)
    assert len(selection.kept) == 12
    for n_kept in (36, 30, 24, 12):
        again = selection.with_keep_fraction(n_kept / 36)
        assert len(again.kept) == n_kept
    loaded = Selection.load(selection.save(tmp_path))
    assert np.array_equal(loaded.with_keep_fraction(0.5).kept, selection.with_keep_fraction(0.5).kept)
    with pytest.raises(ValueError, match="the stored tree goes no further down"):
        selection.with_keep_fraction(0.3)


def test_a_fraction_is_met_exactly_with_and_without_labels():
    images, picture = pictures(), np.tile(np.arange(12), 3)
    wrong = picture.copy()
    wrong[[13, 30]] = 99
    for labels in (None, picture, wrong):
        selection = selector(0.8).select(images, labels=labels)
        assert len(selection.kept) == 28
    mixed = selector(n_groups=12).select(images, labels=wrong)
    assert set(mixed.influential) == {1, 13, 25, 6, 18, 30}
    assert len(mixed.kept) == 10 + 6
    within = selector(0.5, scope="class").select(images, labels=picture % 2)
    assert [count["kept"] for count in within.counts().values()] == [9, 9]
    assert len(within.influential) == 0


def test_alike_images_with_different_sets_of_labels_are_influential():
    boxes = [[0, 1]] * 36
    boxes[13], boxes[30], boxes[2], boxes[3] = [0], [], [1, 0, 0], [0, 1, 1]
    for settings in ({"n_groups": 12}, {"min_similarity": 0.5}):
        mixed = selector(**settings).select(pictures(), labels=boxes)
        assert set(mixed.influential) == {1, 13, 25, 6, 18, 30}
        assert len(selector(**settings, keep_influential=False).select(pictures(), labels=boxes).kept) == 12
    alternating = [[0], [0, 1], [1]] * 12
    alternating = [alternating[i // 12] for i in range(36)]
    with pytest.raises(ValueError, match="have too many images. Set keep_influential=False or scope='class'"):
        selector(0.5).select(pictures(), labels=alternating)
    assert len(selector(0.5, keep_influential=False).select(pictures(), labels=alternating).kept) == 18


def test_any_similarity_can_be_used():
    def correlation(a, b):
        a, b = (x.flatten(1) - x.flatten(1).mean(dim=1, keepdim=True) for x in (a, b))
        return (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))

    images = pictures()
    selection = selector(n_groups=12, similarity=correlation).select(images)
    assert len({(int(g), i % 12) for i, g in enumerate(selection.group)}) == 12
    bounded = selector(min_similarity=0.9, similarity=correlation).select(images)
    assert len(bounded.kept) == 12
    assert "correlation" in selector(0.5, similarity=correlation).config()["similarity"]

    def lopsided(a, b):
        return a.flatten(1).sum(dim=1) / b.flatten(1).sum(dim=1)

    with pytest.raises(ValueError, match="symmetric"):
        selector(n_groups=12, similarity=lopsided).select(images)


def test_decisions_of_a_person_stand():
    images = pictures()
    plain = selector(0.5).select(images)
    keep, remove = plain.removed[:2].tolist(), plain.kept[:2].tolist()
    for settings in ({"keep_fraction": 0.5}, {"n_groups": 20}, {"min_similarity": 0.9}):
        found = selector(**settings, always_keep=keep, always_remove=remove).select(images)
        assert set(keep) <= set(found.kept)
        assert [found.reasons[i] for i in remove] == ["excluded"] * 2


def test_edge_cases():
    one = torch.rand(1, 3, 16, 16)
    for settings in ({"keep_fraction": 1.0}, {"eigengap": 0.4}, {"n_groups": 1}, {"min_similarity": 0.9}):
        assert selector(**settings).select(one).reasons == ["kept"]
    same = torch.full((4, 1, 16, 16), 0.5)
    for settings in ({"eigengap": 0.4}, {"n_groups": 1}, {"min_similarity": 0.9}):
        assert selector(**settings).select(same).reasons == ["kept", *["redundant"] * 3]
    labels = [0, 0, 1, 1]
    excluded = selector(min_similarity=0.9, scope="class", always_remove=[0, 1]).select(same, labels=labels)
    assert excluded.reasons == ["excluded", "excluded", "kept", "redundant"]


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({}, "`keep_fraction` or `eigengap` or `n_groups` or `min_similarity` must be given, exactly one, got None"),
        ({"eigengap": 0.0}, "`eigengap` must be above 0, got 0.0"),
        ({"min_similarity": 1.5}, r"`min_similarity` must be in \(0, 1\], got 1.5"),
        ({"n_groups": 37}, "`n_groups` must be from 1 to the 36 images, got 37"),
        ({"eigengap": 0.4, "variant": "3d"}, "`variant` must be one of '2d', 'volume', got '3d'"),
        ({"eigengap": 0.4, "scope": "class"}, "`labels` must be given where scope='class'"),
    ],
)
def test_bad_settings_are_refused(settings, error):
    with pytest.raises(ValueError, match=error):
        selector(**settings).select(pictures())


def test_bad_images_are_refused():
    with pytest.raises(ValueError, match="negative|in \\[0, 1\\]"):
        selector(eigengap=0.4).select(pictures() - 1)
    with pytest.raises(ValueError, match="window"):
        selector(eigengap=0.4, variant="2d").select(torch.rand(4, 1, 8, 8))
    with pytest.raises(TypeError, match="`similarity` must be a function of two batches of images, got 'ssim'"):
        selector(eigengap=0.4, similarity="ssim").select(pictures())
    with pytest.raises(ValueError, match="`dataset` must be a data set of images, got None"):
        selector(eigengap=0.4).select()


@pytest.mark.data
def test_the_papers_class_is_cut_into_454_groups(data_folder, tmp_path):
    runpy.run_path(str(data_folder / "unpack_cifar.py"))["cifar100"](tmp_path)
    fish = np.load(tmp_path / "cifar-100-aquarium-fish.npz")["train"].transpose(0, 3, 1, 2)
    selection = selector(eigengap=0.4).select(np.ascontiguousarray(fish))
    assert len(selection.kept) == 454
    first, second = np.nonzero(np.triu((fish[:, None] == fish).all(axis=(2, 3, 4)), k=1))
    assert len(first) == 5
    assert np.array_equal(selection.group[first], selection.group[second])
