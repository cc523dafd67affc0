"""The page of a detection data set, in a real browser: boxes, labels that an image has several of, videos."""

import re

import numpy as np
import pytest
from drawn_scenes import DrawnScenes

from toolkit import SemanticSelector, WaveletSelector
from toolkit.drawing import class_color
from toolkit.report import write_report

NAMES = ["car", "sign", "person"]


@pytest.fixture(scope="module")
def scenes():
    return DrawnScenes(60, shape=(48, 64), video="drive")


@pytest.fixture(scope="module")
def selection(scenes):
    options = {"scope": "dataset", "tree_floor": 0.3, "progress": False}
    return SemanticSelector(scenes.vectors(), 0.7, **options).select(scenes)


@pytest.fixture(scope="module")
def report(selection, scenes, tmp_path_factory):
    path = tmp_path_factory.mktemp("scenes") / "report.html"
    return write_report(selection, scenes, path, vectors=scenes.vectors(), class_names=NAMES, progress=False)


def find(page, index):
    page.locator("#search").fill(f"#{index}")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"#detail .big canvas[data-drawn='{index}']")


def colors_near(page, index, x, y):
    """The colours about a place of an image shown in full, which is told as shares of its width and height."""
    return page.evaluate(
        """([selector, x, y]) => {
            const canvas = document.querySelector(selector);
            const left = Math.max(0, Math.round(x * canvas.width) - 3), top = Math.floor(y * canvas.height);
            const {data} = canvas.getContext("2d").getImageData(left, top, 6, 1);
            return Array.from({length: 6}, (_, k) =>
                "#" + [...data.slice(4 * k, 4 * k + 3)].map((part) => part.toString(16).padStart(2, "0")).join(""));
        }""",
        [f"#detail .big canvas[data-index='{index}']", x, y],
    )


def indices(page, selector="#grid .thumb"):
    return page.locator(selector).evaluate_all("nodes => nodes.map((node) => Number(node.dataset.index))")


def words(scenes, index):
    names = scenes.targets[index]
    counts = {NAMES[name]: names.count(name) for name in sorted(set(names))}
    return " + ".join(f"{name} x{n}" if n > 1 else name for name, n in counts.items()) or "no objects"


def test_boxes_lie_over_the_image_and_can_be_switched_off(report, scenes, visit):
    opened = visit(report)
    page = opened.page

    # An image whose first box has its left edge free: in the middle of it no other box is drawn.
    def is_free(index):
        boxes = scenes.boxes[index]
        if len(boxes) == 0:
            return False
        x, y = boxes[0][0] - boxes[0][2] / 2, boxes[0][1]
        others = boxes[1:]
        near = np.abs(others[:, :2] - [x, y]) < others[:, 2:] / 2 + 0.03
        return not near.all(axis=1).any() and x > 0.02

    index = next(index for index in range(60) if is_free(index))
    find(page, index)
    x, y = scenes.boxes[index][0][0] - scenes.boxes[index][0][2] / 2, scenes.boxes[index][0][1]
    assert class_color(scenes.targets[index][0]) in colors_near(page, index, x, y)
    shown = page.locator("#detail .big canvas").first
    assert shown.evaluate("canvas => canvas.width") > 64
    page.locator("#boxes").uncheck()
    page.wait_for_function("document.querySelector('#detail .big canvas').width === 64")
    find(page, index)
    assert opened.pixels("#detail .big canvas") == scenes.images[index, :, :, 0].tolist()
    page.locator("#boxes").check()
    page.wait_for_function("document.querySelector('#detail .big canvas').width > 64")
    legend = page.locator("#box-legend span")
    assert legend.all_inner_texts() == NAMES
    colors = legend.locator("i").evaluate_all("nodes => nodes.map((node) => getComputedStyle(node).borderTopColor)")
    assert [re.findall(r"\d+", color) for color in colors] == [
        [str(part) for part in bytes.fromhex(class_color(number)[1:])] for number in range(3)
    ]


def test_an_image_is_called_after_its_objects(report, selection, scenes, visit):
    page = visit(report).page
    for index in (next(k for k in range(60) if not scenes.targets[k]), 0, 1, int(selection.removed[0])):
        find(page, index)
        terms = page.locator("#detail dt").all_inner_texts()
        facts = dict(zip(terms, page.locator("#detail dd").all_inner_texts(), strict=True))
        assert facts["classes"] == words(scenes, index)
    page.locator("#tab-all").click()
    captions = page.locator("#grid .thumb .mark span").all_inner_texts()
    assert captions == [words(scenes, index) for index in range(60)]


def test_objects_are_counted_along_the_slider(report, selection, scenes, visit):
    page = visit(report).page

    def rows():
        found = {}
        for text in page.locator("#object-table tbody tr").all_inner_texts():
            name, images, images_kept, _, boxes, boxes_kept, _ = text.split("\t")
            found[name] = [int(cell) for cell in (images, images_kept, boxes, boxes_kept) if cell]
        return found

    def expected(cut):
        counts = cut.class_counts()
        columns = ("images", "images_kept", "boxes", "boxes_kept")
        found = {NAMES[int(label)]: [count[column] for column in columns] for label, count in counts.items()}
        empty = [index for index in range(60) if not scenes.targets[index]]
        return found | {"no objects": [len(empty), len(np.intersect1d(empty, cut.kept))]}

    assert rows() == expected(selection)
    total = page.locator("#object-table tfoot tr").inner_text().split("\t")
    assert [total[1], total[2], total[4]] == ["60", "42", str(sum(map(len, scenes.targets)))]
    page.locator("#kept-number").fill("30")
    page.keyboard.press("Enter")
    page.wait_for_function("report.view.selection.nKept === 30")
    assert rows() == expected(selection.with_keep_fraction(0.5))


def test_filter_and_colours_go_by_single_classes(report, scenes, visit):
    page = visit(report).page
    page.locator("#tab-all").click()
    options = page.locator("#class-filter option").all_inner_texts()
    assert options == ["all", *NAMES, "no objects"]
    page.locator("#class-filter").select_option(label="sign")
    assert indices(page) == [index for index in range(60) if 1 in scenes.targets[index]]
    page.locator("#class-filter").select_option(label="no objects")
    assert indices(page) == [index for index in range(60) if not scenes.targets[index]]
    page.locator("#class-filter").select_option(label="all")
    totals = [sum(names.count(number) for names in scenes.targets) for number in range(3)]
    for way, key in (("most", lambda names, c: (-names.count(c), c)), ("rarest", lambda names, c: (totals[c], c))):
        page.locator("#color-by").select_option(way)
        assert page.locator("#class-legend span").count() == 4
        found = page.evaluate("Array.from(report.view.shown, (index, point) => [index, report.cloudOf().color[point]])")
        for index, color in found:
            names = scenes.targets[index]
            wanted = class_color(min(set(names), key=lambda c: key(names, c))) if names else "#8a8f94"
            red, green, blue = bytes.fromhex(wanted[1:])
            assert color == (blue << 16) | (green << 8) | red


def test_alike_images_tell_what_not_all_have(scenes, tmp_path, visit):
    selector = WaveletSelector(features=scenes.vectors(), n_groups=42, tree_floor=0.6, progress=False)
    selection = selector.select(scenes)
    assert len(selection.influential)
    path = tmp_path / "report.html"
    page = visit(
        write_report(selection, scenes, path, vectors=scenes.vectors(), class_names=NAMES, progress=False)
    ).page
    page.locator("#tab-influential").click()
    pair = page.locator("#grid .pair").first
    first, second = indices(page, "#grid .pair:first-child .thumb")
    sets = [set(scenes.targets[index]) for index in (first, second)]
    assert sets[0] != sets[1]
    for thumb, own, other in ((0, *sets), (1, *sets[::-1])):
        bold = pair.locator(".thumb").nth(thumb).locator("b").all_inner_texts()
        expected = [NAMES[name] for name in sorted(own - other)] or ([] if own else ["no objects"])
        assert [text.split(" x")[0] for text in bold] == expected
        caption = pair.locator(".thumb").nth(thumb).locator(".mark span").inner_text()
        assert caption.startswith(" + ".join(bold))
    pair.locator(".thumb").first.click()
    assert "alike to images with other classes" in page.locator("#detail .why").inner_text()
    page.locator("#tab-groups").click()
    group = page.locator("#grid .group").first
    members = indices(page, "#grid .group:first-child .thumb")
    counts = [scenes.targets[index].count(0) for index in members]
    title = group.locator("h3").inner_text()
    assert title.startswith(f"{len(members)} images with ")
    if any(counts):
        wanted = f"car x{min(counts)}\N{EN DASH}{max(counts)}" if min(counts) != max(counts) else "car"
        assert wanted in title


def test_videos_show_which_frames_stay(report, selection, scenes, visit):
    page = visit(report).page
    line = page.locator("#videos .video")
    assert line.count() == 1

    def text(cut):
        kept = np.isin(np.arange(60), cut.kept)
        gap = max(len(run) for run in "".join("x" if stays else "." for stays in kept).split("x"))
        return f"{kept.sum()} of 60, gap {gap}"

    assert line.locator("span").all_inner_texts() == ["frame", text(selection)]
    alphas = """() => {
        const canvas = document.querySelector("#videos canvas");
        const {data} = canvas.getContext("2d").getImageData(0, 10, canvas.width, 1);
        return Array.from({length: 60}, (_, k) => data[4 * Math.floor((k + 0.5) * canvas.width / 60)]);
    }"""
    red = np.array(page.evaluate(alphas))
    stays = np.isin(np.arange(60), selection.kept)
    assert len(set(red[stays])) == len(set(red[~stays])) == 1
    assert red[stays][0] < red[~stays][0]
    box = line.locator("canvas").bounding_box()
    line.locator("canvas").click(position={"x": box["width"] * 17.5 / 60, "y": 8})
    assert page.evaluate("report.view.chosen") == 17
    page.locator("#kept-number").fill("30")
    page.keyboard.press("Enter")
    page.wait_for_function("report.view.selection.nKept === 30")
    assert line.locator("span").last.inner_text() == text(selection.with_keep_fraction(0.5))


def test_many_combinations_and_classes_end(tmp_path, visit):
    scenes = DrawnScenes(150, shape=(20, 20), n_classes=90)
    selection = SemanticSelector(scenes.vectors(), 0.7, scope="dataset", progress=False).select(scenes)
    path = write_report(selection, scenes, tmp_path / "report.html", vectors=scenes.vectors(), progress=False)
    page = visit(path).page
    combinations = {tuple(sorted(set(names))) for names in scenes.targets}
    assert f"20 most frequent of {len(combinations)} combinations" in page.locator("#combinations").inner_text()
    rows = page.locator("#table tbody tr").all_inner_texts()
    assert len(rows) == 20
    sizes = [int(row.split("\t")[1]) for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    assert page.locator("#table tfoot tr").inner_text().split("\t")[1] == "150"
    n_classes = len({name for names in scenes.targets for name in names})
    assert page.locator("#box-legend span").count() == 12
    assert page.locator("#box-legend").inner_text().endswith(f"and {n_classes - 12} more")
    assert page.locator("#class-filter option").count() == n_classes + 2
    page.locator("#color-by").select_option("rarest")
    assert page.locator("#class-legend span").count() == 60


def test_a_page_without_boxes_has_no_switch(digits, tmp_path, visit):
    vectors = digits.tensors[0].flatten(1).numpy()
    labels = [[int(label), 11] if label < 3 else [int(label)] for label in digits.tensors[1]]
    selection = SemanticSelector(vectors, 0.8, scope="dataset", progress=False).select(digits, labels=labels)
    page = visit(write_report(selection, digits, tmp_path / "report.html", vectors=vectors, progress=False)).page
    for hidden in ("#boxes-field", "#box-legend", "#timeline"):
        assert not page.locator(hidden).is_visible()
    assert page.locator("#object-table thead th").all_inner_texts() == ["class", "images", "kept", "kept %"]
    assert page.locator("#color-by option").all_inner_texts() == ["status", "rarest class in it"]
