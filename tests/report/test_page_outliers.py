"""Cuts of a selection with outliers, in the page and in Python."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from report_checks import check_cuts

from toolkit import FeatureMapSelector
from toolkit.report import write_report
from toolkit.selection.result import OUTLIER

CASES = {
    "half and half": {},
    "by class": {"balance": "label"},
    "outliers only": {"outlier_share": 1.0, "keep_fraction": 0.7, "tree_floor": 0.7},
    "alike only": {"outlier_share": 0.0},
    "held and taken out": {
        "balance": "label",
        "outlier_share": 0.3,
        "always_keep": range(0, 40, 3),
        "always_remove": range(1, 40, 9),
    },
    "mostly outliers": {"outlier_share": 0.9, "tree_floor": 0.3, "linkage": "average", "always_keep": range(0, 100, 2)},
}


def chosen(digits, **more):
    vectors = digits.tensors[0].flatten(1).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Outliers of so few images are called modes.
        return FeatureMapSelector(vectors, progress=False, **{"tree_floor": 0.4, **more}).select(digits)


@pytest.mark.parametrize("case", CASES)
def test_cuts_are_those_of_python(case, digits, tmp_path, visit):
    selection = chosen(digits, **CASES[case])
    assert case == "alike only" or (selection.status == OUTLIER).any()
    check_cuts(selection, digits, tmp_path / "report.html", visit)


def test_heights_stand_in_the_table_only_where_trees_are_of_its_classes(digits, tmp_path, visit):
    by_label = chosen(digits, balance="label")
    page = visit(write_report(by_label, digits, tmp_path / "label.html", progress=False)).page
    assert "merged up to" in page.locator("#table").inner_text()
    # As many classes, but others: as a model predicts them.
    labels = np.roll(digits.tensors[1].numpy(), 1)
    vectors = digits.tensors[0].flatten(1).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        selector = FeatureMapSelector(vectors, tree_floor=0.4, balance="label", progress=False)
        other = replace(selector.select(digits, labels=labels), labels=by_label.labels)
    page = visit(write_report(other, digits, tmp_path / "other.html", progress=False)).page
    assert "merged up to" not in page.locator("#table").inner_text()
    assert page.evaluate("report.view.selection.heights.length") == 10


def test_outliers_have_a_gallery_in_the_order_of_their_scores(digits, tmp_path, visit):
    selection = chosen(digits)
    page = visit(write_report(selection, digits, tmp_path / "report.html", progress=False)).page
    page.locator("#tab-outliers").click()
    found = page.locator("#grid .thumb").evaluate_all("nodes => nodes.map((node) => Number(node.dataset.index))")
    outliers = np.flatnonzero(selection.status == OUTLIER)
    scores = selection.recut.scores.astype(np.float32)
    assert found == outliers[np.argsort(-scores[outliers], kind="stable")].tolist()
    page.locator("#grid .thumb").first.click()
    assert page.locator("#detail .why").inner_text() == "Goes: it is unlike the other images."
    facts = page.locator("#detail dl").inner_text().split("\n")
    assert float(facts[facts.index("outlier score") + 1]) == pytest.approx(float(scores[found[0]]), rel=0.01)
