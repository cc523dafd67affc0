"""What tests of the report's page share."""

import numpy as np

from toolkit.report import write_report
from toolkit.selection.result import INFLUENTIAL, KEPT


def assert_same(found, wanted):
    """A selection that the page holds, against one of Python."""
    for name in ("status", "group", "representative"):
        assert found[name] == getattr(wanted, name).tolist(), name
    assert np.array_equal(np.array(found["distance"], np.float32), wanted.distance, equal_nan=True)


def check_cuts(selection, digits, path, visit):
    """Write a report and compare cuts at many budgets, image by image."""
    write_report(selection, digits, path, progress=False)
    page = visit(path)
    assert_same(page.selection(), selection)
    low = selection.recut.min_kept() / len(selection)
    high = 1 - selection.recut.excluded.sum() / len(selection)
    for fraction in (low, *np.linspace(low, high, 9)[1:-1].round(4).tolist(), high, 0.29 if low < 0.29 else 0.7):
        wanted = selection.with_keep_fraction(fraction)
        page.page.evaluate(
            "(fraction) => report.view.selection.cut(report.fractionOf(fraction, report.facts.images))", fraction
        )
        assert_same(page.selection(), wanted)
        assert page.page.evaluate("report.view.selection.keptText()") == wanted._kept_text()
        table = page.page.evaluate("report.view.selection.table().map((row) => Array.from(row))")
        for row, count in zip(table, wanted.counts().values(), strict=True):
            staying = row[KEPT] + row[INFLUENTIAL]
            assert (staying, sum(row) - staying) == (count["kept"], count["removed"])
    page.page.evaluate("report.view.selection.asSaved()")
    assert_same(page.selection(), selection)
