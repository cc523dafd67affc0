"""What the page cuts anew is, image by image, what Python cuts."""

import warnings

import numpy as np
import pytest
from report_checks import check_cuts

from toolkit import RandomSelector, Selection, SemanticSelector, WaveletSelector
from toolkit.report import write_report
from toolkit.selection import quota


def semantic(**more):
    def select(digits):
        vectors = digits.tensors[0].flatten(1).numpy()
        options = {"keep_fraction": 0.85, "tree_floor": 0.2, "progress": False, **more}
        return SemanticSelector(vectors, **options).select(digits)

    return select


def wavelet(digits):
    return WaveletSelector(n_groups=50, tree_floor=0.5, progress=False).select(digits)


def wrong_labels(digits):
    vectors = digits.tensors[0].flatten(1).numpy()
    labels = digits.tensors[1].numpy().copy()
    labels[::9] = (labels[::9] + 1) % 10
    # One merge in three brings two labels together, and always_keep holds images in such groups.
    return WaveletSelector(0.8, features=vectors, tree_floor=0.6, always_keep=range(40, 60), progress=False).select(
        labels=labels
    )


def ranked(**more):
    return lambda digits: RandomSelector(0.5, seed=3, **more).select(digits)


def edited(folder):
    def select(digits):
        place = semantic()(digits).save(folder)
        names = (place / "kept.txt").read_text().split()
        gone = sorted(set(map(str, range(240))) - set(names), key=int)
        (place / "kept.txt").write_text("\n".join([*names[5:], *gone[:4]]) + "\n")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Selection.load(place)

    return select


CASES = {
    "proportional": semantic(),
    "global": semantic(quota="global"),
    "held and taken out": semantic(always_keep=[0, 1, 2, 10, 20, 30, 31, 32, 33], always_remove=[5, 6, 7, 100]),
    "global, held and taken out": semantic(quota="global", always_keep=range(0, 60, 3), always_remove=range(1, 60, 9)),
    "whole data set": semantic(scope="dataset", linkage="average"),
    "single linkage, random": semantic(scope="dataset", linkage="single", representative="random"),
    "threshold": semantic(keep_fraction=None, threshold=0.03),
    "groups kept whole": wavelet,
    "many groups kept whole": wrong_labels,
    "ranking": ranked(),
    "ranking by class": ranked(balance="label", always_keep=range(20), always_remove=range(30, 50)),
}


@pytest.mark.parametrize("case", CASES)
def test_cuts_are_those_of_python(case, digits, tmp_path, visit):
    selection = CASES[case](digits)
    if "kept whole" in case:
        assert len(selection.influential)
    check_cuts(selection, digits, tmp_path / "report.html", visit)


def test_what_a_person_moved_stays_moved(digits, tmp_path, visit):
    selection = edited(tmp_path / "saved")(digits)
    assert len(selection.edits) == 9
    check_cuts(selection, digits, tmp_path / "report.html", visit)


@pytest.mark.parametrize("linkage", ["complete", "average"])
def test_a_group_tells_its_largest_distance(linkage, digits, tmp_path, visit):
    selection = semantic(keep_fraction=0.7, linkage=linkage)(digits)
    vectors = digits.tensors[0].flatten(1).numpy()
    path = write_report(selection, digits, tmp_path / "report.html", vectors=vectors, progress=False)
    page = visit(path)
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors, axis=1, keepdims=True)
    apart = 1 - unit @ unit.T

    def check(of):
        members = [np.flatnonzero(of.group == g) for g in of.group]
        wanted = [apart[np.ix_(m, m)].max() for m in members]
        found = page.page.evaluate("Array.from(report.view.selection.spread)")
        assert found == pytest.approx(wanted, abs=1e-6)
        assert sum(len(m) > 2 for m in members) > 2

    check(selection)
    largest = page.page.evaluate("report.view.selection.spread[report.view.selection.inGroup[0]]")
    page.page.locator("#grid .group h3 small").first.wait_for()
    texts = page.page.locator("#grid .group h3 small").all_inner_texts()
    assert largest >= 0
    assert all(", at most " in text and text.endswith(" apart") for text in texts)
    page.page.locator("#grid .group .thumb").first.click()
    assert texts[0].split(", ")[1] in page.page.locator("#detail dl").inner_text()
    page.page.evaluate("report.view.selection.cut(180)")
    if linkage == "complete":
        check(selection.with_keep_fraction(0.75))
    else:
        assert page.page.evaluate("report.view.selection.spread") is None
        page.page.evaluate("report.view.selection.asSaved()")
        check(selection)


@pytest.mark.parametrize("quota_of", ["proportional", "global"])
def test_the_distance_at_the_cut_is_that_of_the_last_merge(quota_of, digits, tmp_path, visit):
    selection = semantic(quota=quota_of)(digits)
    path = write_report(selection, digits, tmp_path / "report.html", progress=False)
    page = visit(path)
    forest = selection.recut
    profile = page.page.evaluate("report.profileOf(report.view.selection.recut)")
    assert [profile[0][0], profile[-1][0], len(profile)] == [240, forest.min_kept(), 101]
    assert profile[0][1] == 0
    for n_kept in (profile[20][0], profile[90][0]):
        cut = forest.cut(n_kept)
        heights = [
            tree.heights[len(images) - len(np.unique(cut.group[images])) - 1]
            for tree, images in zip(forest.trees, forest.images, strict=True)
            if len(images) > len(np.unique(cut.group[images]))
        ]
        found = page.page.evaluate(
            "(n) => { report.view.selection.cut(n); return report.view.selection.heights; }", n_kept
        )
        assert [height for height in found if height is not None] == pytest.approx(heights, rel=0, abs=0)
        assert len(heights) > 1
        assert dict(profile)[n_kept] == max(heights)
        merged, kept = forest.curve()
        if quota_of == "global":
            assert kept[np.flatnonzero(merged == max(heights))[-1]] == n_kept


def test_seats_are_those_of_python(digits, tmp_path, visit):
    path = write_report(ranked()(digits), digits, tmp_path / "report.html", progress=False)
    page = visit(path)
    rng = np.random.default_rng(0)
    tables = []
    for _ in range(300):
        n_classes = int(rng.integers(1, 9))
        sizes = rng.integers(0, 30, n_classes)
        low = rng.integers(0, sizes + 1)
        high = rng.integers(low, sizes + 1)
        total = int(rng.integers(low.sum(), high.sum() + 1))
        tables.append([total, sizes.tolist(), low.tolist(), high.tolist()])
    found = page.page.evaluate("(tables) => tables.map((table) => report.allocate(...table))", tables)
    wanted = [quota.allocate(total, *map(np.array, rest)).tolist() for total, *rest in tables]
    assert found == wanted
    with pytest.raises(Exception, match="cannot be spread"):
        page.page.evaluate("report.allocate(9, [3, 4], [0, 0], [3, 4])")
