"""What a person does on the page, in a real browser."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from toolkit import RandomSelector, SemanticSelector, WaveletSelector
from toolkit.report import write_report
from toolkit.selection import STATUSES


@pytest.fixture(scope="module")
def selection(digits):
    vectors = digits.tensors[0].flatten(1).numpy()
    return SemanticSelector(vectors, 0.8, tree_floor=0.3, progress=False).select(digits)


@pytest.fixture(scope="module")
def report(selection, digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    vectors = digits.tensors[0].flatten(1).numpy()
    return write_report(selection, digits, path, vectors=vectors, title="Digits", progress=False)


def shown(digits, index):
    """The grey values of an image as the page should show them."""
    return np.rint(digits.tensors[0][index, 0].numpy() * 255).astype(int).tolist()


def detail(page):
    page.wait_for_selector("#detail dl")
    terms = page.locator("#detail dt").all_inner_texts()
    return dict(zip(terms, page.locator("#detail dd").all_inner_texts(), strict=True))


def table(page):
    rows = page.locator("#table tbody tr").all_inner_texts()
    return [[cell.replace(",", "") for cell in row.split("\t")] for row in rows]


def assert_counts(page, selection):
    counts = selection.counts()
    rows = table(page)
    assert [row[0] for row in rows] == list(counts)
    for row, count in zip(rows, counts.values(), strict=True):
        assert [int(cell) for cell in row[1:4]] == [
            sum(int(count[k]) for k in ("kept", "removed")),
            count["kept"],
            count["removed"],
        ]
    n_gone = len(selection.removed)
    assert page.locator("#lead").inner_text().startswith(f"{n_gone} of 240 images removed")


def test_it_opens_with_points_and_counts(report, selection, visit):
    opened = visit(report)
    page = opened.page
    page.wait_for_function("document.documentElement.dataset.cloud === 'drawn'")
    assert page.title() == page.locator("h1").inner_text() == "Digits"
    assert_counts(page, selection)
    assert opened.requests[0] == report.as_uri()
    assert len([url for url in opened.requests if url.startswith("file:")]) == 1
    drawn = page.evaluate(
        """() => {
            const canvas = document.getElementById("points");
            return new Set(new Uint32Array(canvas.getContext("2d")
                .getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size;
        }"""
    )
    assert drawn > 50


def test_the_slider_cuts_by_keyboard_as_python_does(report, selection, visit, tmp_path):
    page = visit(report).page
    slider = page.locator("#removed")
    slider.focus()
    removed = len(selection.removed)
    for key, step in (("ArrowRight", 1), ("ArrowRight", 1), ("PageUp", 10), ("Shift+ArrowLeft", -1), ("ArrowLeft", -1)):
        page.keyboard.press(key)
        removed += step
        page.wait_for_function(f"report.view.selection.n - report.view.selection.nKept === {removed}")
    assert page.locator("#kept-number").input_value() == str(240 - removed)
    cut = selection.with_keep_fraction((240 - removed) / 240)
    assert_counts(page, cut)
    with page.expect_download() as started:
        page.locator("#download").click()
    assert started.value.suggested_filename == "kept.txt"
    wanted = cut.save(tmp_path / "saved") / "kept.txt"
    assert started.value.path().read_bytes() == wanted.read_bytes()
    page.keyboard.press("Tab")
    page.locator("#as-saved").click()
    assert_counts(page, selection)
    assert slider.input_value() == str(len(selection.removed))
    slider.focus()
    page.keyboard.press("End")
    page.wait_for_function(f"report.view.selection.nKept === {selection.recut.min_kept()}")


def test_a_number_typed_is_held_within_what_the_trees_reach(report, selection, visit):
    page = visit(report).page
    for typed, kept in (("100", 100), ("3", selection.recut.min_kept()), ("999", 240)):
        page.locator("#kept-number").fill(typed)
        page.keyboard.press("Enter")
        page.wait_for_function(f"report.view.selection.nKept === {kept}")
        assert page.locator("#removed").input_value() == str(240 - kept)
    page.locator("#kept-number").fill("")
    page.locator("#search").focus()
    assert page.locator("#kept-number").input_value() == "240"


def test_a_click_on_a_point_shows_its_image_beside_its_representative(report, selection, digits, visit):
    opened = visit(report)
    page = opened.page
    page.wait_for_function("document.documentElement.dataset.cloud === 'drawn'")
    # A removed image whose point is in front of no other.
    index, left, top = page.evaluate(
        """() => {
            const cloud = report.cloudOf(), {view} = report;
            for (let point = 0; point < cloud.n; point++) {
                const [left, top] = cloud.placeOf(point);
                if (!view.selection.stays(view.shown[point]) && cloud.at(left, top) === point) {
                    return [view.shown[point], left, top];
                }
            }
            return null;
        }"""
    )
    canvas = page.locator("#points")
    canvas.hover(position={"x": left, "y": top})
    assert opened.pixels("#tip canvas") == shown(digits, index)
    canvas.click(position={"x": left, "y": top})
    of = int(selection.representative[index])
    assert opened.pixels(f"#detail .big canvas[data-index='{index}']") == shown(digits, index)
    assert opened.pixels(f"#detail .big canvas[data-index='{of}']") == shown(digits, of)
    facts = detail(page)
    assert facts["index"] == str(index)
    assert facts["class"] == str(int(digits.tensors[1][index]))
    assert float(facts["distance"]) == pytest.approx(float(selection.distance[index]), rel=0.05)
    members = np.flatnonzero(selection.group == selection.group[index])
    number, apart = facts["group"].split(", at most ")
    assert number == f"{len(members)} images"
    assert float(apart.removesuffix(" apart")) >= 0.99 * float(selection.distance[members].max())
    thumbs = page.locator("#detail .thumb").evaluate_all("nodes => nodes.map((node) => Number(node.dataset.index))")
    assert sorted(thumbs) == members.tolist()
    assert thumbs[0] == of
    page.get_by_role("button", name=f"show #{of}").click()
    assert detail(page)["index"] == str(of)
    assert "stands for" in page.locator("#detail .why").inner_text()


def test_points_turn_zoom_and_move(report, visit):
    page = visit(report).page
    page.wait_for_function("document.documentElement.dataset.cloud === 'drawn'")
    state = "(({yaw, pitch, zoom, pan, centre}) => [yaw, pitch, zoom, ...pan, ...centre])(report.cloudOf())"
    seen = [page.evaluate(state)]

    def changed():
        seen.append(page.evaluate(state))
        return seen[-1] != seen[-2]

    canvas = page.locator("#points")
    box = canvas.bounding_box()
    x, y = box["x"] + 30, box["y"] + 30
    scrolled = page.evaluate("scrollY")
    page.mouse.move(x, y)
    page.mouse.wheel(0, 40)
    page.wait_for_function(f"scrollY > {scrolled}")
    assert not changed(), "the wheel scrolls the page until the points have the focus"
    page.evaluate("scrollTo(0, 0)")
    box = canvas.bounding_box()
    x, y = box["x"] + 30, box["y"] + 30
    for key in ("ArrowLeft", "ArrowDown", "+", "-"):
        canvas.press(key)
        assert changed(), key
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y + 20)
    page.mouse.up()
    assert changed()
    page.keyboard.down("Shift")
    page.mouse.down()
    page.mouse.move(x + 90, y + 20)
    page.mouse.up()
    page.keyboard.up("Shift")
    assert changed()
    page.mouse.wheel(0, -40)
    page.wait_for_function(f"report.cloudOf().zoom > {seen[-1][2]}")
    page.get_by_role("button", name="Zoom out").click()
    assert changed()
    page.locator("#search").fill("12")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="turn about it").click()
    assert changed()
    canvas.press("0")
    assert page.evaluate(state) == seen[0]


def test_a_long_cloud_fills_the_stage(tmp_path, visit):
    rng = np.random.default_rng(0)
    vectors = rng.uniform(1, 2, (300, 3)) * [40.0, 1.0, 1.0]
    selection = SemanticSelector(vectors, 0.9, scope="dataset", progress=False).select()
    path, images = tmp_path / "report.html", torch.zeros(300, 1, 4, 4)
    page = visit(write_report(selection, images, path, vectors=vectors, progress=False)).page
    for width in (1200, 360):
        page.set_viewport_size({"width": width, "height": 800})
        page.locator("#reset-view").click()
        share = page.evaluate(
            """() => {
                const {x, y, canvas, zoom} = report.cloudOf();
                report.cloudOf().project();
                const within = (place, size) => place > 0 && place < size;
                const inside = x.filter((place, i) => within(place, canvas.width) && within(y[i], canvas.height));
                return [(Math.max(...x) - Math.min(...x)) / canvas.width, inside.length / x.length, zoom];
            }"""
        )
        assert share[0] > 0.6
        assert share[1] > 0.95
        assert 1 <= share[2] <= 2


def test_a_double_click_turns_about_a_point_and_two_fingers_zoom(report, visit):
    page = visit(report, has_touch=True).page
    page.wait_for_function("document.documentElement.dataset.cloud === 'drawn'")
    left, top = page.evaluate("report.cloudOf().placeOf(5)")
    page.locator("#points").dblclick(position={"x": left, "y": top})
    assert page.evaluate("report.cloudOf().centre") != [0, 0, 0]
    box = page.locator("#points").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    touch = page.context.new_cdp_session(page)

    def fingers(kind, *places):
        points = [{"x": x + across, "y": y, "id": number} for number, across in enumerate(places)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    before = page.evaluate("report.cloudOf().zoom")
    fingers("touchStart", -20, 20)
    fingers("touchMove", -60, 60)
    page.wait_for_function(f"report.cloudOf().zoom > {1.5 * before}")
    fingers("touchEnd")
    yaw = page.evaluate("report.cloudOf().yaw")
    fingers("touchStart", 0)
    fingers("touchMove", 50)
    page.wait_for_function(f"report.cloudOf().yaw > {yaw}")
    fingers("touchEnd")


@pytest.mark.parametrize("typed", ["17", "#17", " 17 "])
def test_the_search_finds_by_index(typed, report, digits, visit):
    opened = visit(report)
    opened.page.locator("#search").fill(typed)
    opened.page.keyboard.press("Enter")
    assert detail(opened.page)["index"] == "17"
    assert opened.pixels("#detail .big canvas") == shown(digits, 17)
    opened.page.get_by_role("button", name=re.compile("^next")).click()
    opened.page.wait_for_selector("#detail .big canvas[data-index='18']")
    assert opened.pixels("#detail .big canvas") == shown(digits, 18)


def test_the_search_says_when_there_is_nothing(report, visit):
    page = visit(report).page
    page.locator("#search").fill("240")
    page.keyboard.press("Enter")
    assert page.locator("#matches").inner_text() == "No image is called “240”."


def test_status_and_class_filter_points_and_pictures(report, selection, digits, visit):
    page = visit(report).page
    page.locator("#tab-all").click()
    page.get_by_role("button", name=re.compile("^kept")).first.click()
    visible = "report.view.shown.filter((_, point) => report.cloudOf().visible[point]).length"
    page.wait_for_function(f"{visible} === {len(selection.removed)}")
    indices = "nodes => nodes.map((node) => Number(node.dataset.index))"
    assert page.locator("#grid .thumb").evaluate_all(indices) == selection.removed.tolist()
    page.locator("#class-filter").select_option("3")
    of_class = [index for index in selection.removed.tolist() if digits.tensors[1][index] == 3]
    assert page.locator("#grid .thumb").evaluate_all(indices) == of_class
    assert page.evaluate(visible) == len(of_class)
    page.locator("#color-by").select_option("class")
    assert page.locator("#class-legend span").count() == 10
    colors = page.evaluate("new Set(report.cloudOf().color).size")
    assert colors == 10
    page.locator("#lines").uncheck()
    assert page.evaluate("report.cloudOf().showLines") is False


def test_galleries_by_keyboard(report, selection, digits, visit):
    opened = visit(report)
    page = opened.page
    page.locator("#tab-groups").focus()
    titles = page.locator("[role=tab]").all_inner_texts()
    assert [title.split()[0] for title in titles] == [
        "Groups",
        "Removed",
        "Outliers",
        "Influential",
        "Isolated",
        "Images",
    ]
    sizes = np.bincount(selection.group[selection.group >= 0])
    first = page.locator("#grid .group").first
    assert first.locator("h3").inner_text().startswith(f"{sizes.max()} images of ")
    assert first.locator(".thumb.frame").count() == 1
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-gone"
    assert page.locator("#grid .thumb").count() == min(60, len(selection.removed))
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.id") == "tab-all"
    assert page.locator("#n-pages").inner_text() == "4"
    page.locator("#next-page").click()
    index = int(page.locator("#grid .thumb").first.get_attribute("data-index"))
    assert index == 60
    page.locator("#page").fill("4")
    page.keyboard.press("Enter")
    assert page.locator("#grid .thumb").count() == 60
    assert page.locator("#next-page").is_disabled()
    last = page.locator("#grid .thumb").last
    last.focus()
    page.keyboard.press("Enter")
    assert detail(page)["index"] == "239"
    assert opened.pixels("#detail .big canvas") == shown(digits, 239)
    assert last.get_attribute("aria-current") == "true"
    page.locator("#tab-isolated").click()
    assert page.locator("#grid .pair").count() == 24
    page.locator("#tab-outliers").click()
    assert page.locator("#panel-hint").inner_text() == "No image goes as an outlier."
    assert page.locator("#grid .thumb").count() == 0


def test_focus_can_be_seen_and_everything_has_a_name(report, visit):
    page = visit(report).page
    seen = set()
    for _ in range(25):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            """() => {
                const node = document.activeElement, style = getComputedStyle(node);
                const name = node.getAttribute("aria-label") || node.innerText || (node.labels && node.labels.length);
                return [node.id || node.className, Boolean(name), style.outlineStyle !== "none"];
            }"""
        )
        seen.add(focused[0])
        assert focused[1:] == [True, True], focused
    assert {"removed", "kept-number", "as-saved", "download", "points", "tab-groups", "class-filter"} <= seen


@pytest.mark.parametrize("width", [360, 700, 1200])
def test_nothing_is_wider_than_the_screen(width, report, visit):
    page = visit(report, width=width, height=720).page
    page.locator("#search").fill("5")
    page.keyboard.press("Enter")
    detail(page)
    for tab in ("groups", "isolated", "all"):
        page.evaluate(f"document.getElementById('tab-{tab}').click()")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width < 900:
        page.locator("#detail .close").click()
        assert not page.locator("#detail").is_visible()


def test_the_dark_page_has_dark_paper_and_light_points(report, visit):
    page = visit(report, color_scheme="dark").page
    page.wait_for_function("document.documentElement.dataset.cloud === 'drawn'")
    paper = page.evaluate("report.cloudOf().paper")
    assert all((paper >> shift) & 255 < 60 for shift in (0, 8, 16))
    page.emulate_media(color_scheme="light")
    page.wait_for_function("report.cloudOf().paper === 0xffffff")


NASTY = [
    "<img src=x onerror=window.hacked=1>",
    "</script><script>window.hacked=1</script>",
    "<!-- <script>",
    "a&b'\"`${1}",
]


class Nasty(Dataset):
    """Images whose names and classes are HTML, some of them unreadable."""

    targets = (0, 1, 2, 3) * 3

    def fingerprint(self):
        return "nasty"

    def __len__(self):
        return 12

    def __getitem__(self, index):
        if index in {3, 8}:
            raise OSError("broken")
        return torch.full((3, 40, 20), index / 12), self.targets[index]


def test_names_are_never_read_as_html_and_broken_images_are_counted(tmp_path, visit):
    dataset = Nasty()
    ids = [f"{NASTY[k % 4]}{k}" for k in range(11)] + ["name\udcff.png"]
    selection = SemanticSelector(np.random.default_rng(0).normal(size=(12, 3)), 0.5, scope="dataset", progress=False)
    chosen = selection.select(dataset, ids=ids)
    with pytest.warns(UserWarning, match="2 of 12 images have no thumbnail"):
        path = write_report(
            chosen,
            dataset,
            tmp_path / "r.html",
            class_names=NASTY,
            title=NASTY[1],
            vectors=selection.features,
            progress=False,
        )
    opened = visit(path)
    page = opened.page
    assert page.title() == page.locator("h1").inner_text() == NASTY[1]
    assert "2 images could not be read" in page.locator("#notes").inner_text()
    page.locator("#color-by").select_option("class")
    for tab in page.locator("[role=tab]").all():
        tab.click()
    for index, name in ((0, ids[0]), (3, ids[3]), (1, ids[1])):
        page.locator("#search").fill(name)
        page.keyboard.press("Enter")
        facts = detail(page)
        assert (facts["index"], facts["id"], facts["class"]) == (str(index), name, NASTY[index])
        if index == 3:
            assert facts["picture"] == "could not be read"
            assert "missing" in page.locator("#detail .big canvas").first.get_attribute("class")
        else:
            assert opened.pixels("#detail .big canvas")[0] == [round(index / 12 * 255)] * 20
    page.locator("#search").fill("onerror")
    page.keyboard.press("Enter")
    assert page.locator("#matches li").all_inner_texts() == [f"#{k} {ids[k]}" for k in (0, 4, 8)]
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img, aside img").count() == 0
    with page.expect_download() as started:
        page.locator("#download").click()
    assert started.value.path().read_bytes() == (chosen.save(tmp_path / "saved") / "kept.txt").read_bytes()


def test_bytes_of_names_that_are_no_text_come_back(tmp_path, visit):
    dataset = TensorDataset(torch.rand(4, 1, 4, 4))
    ids = ["a\udcff\udc80.png", "ü😀.png", "plain.png", "\udce9"]
    selection = RandomSelector(1.0).select(dataset, ids=ids)
    page = visit(write_report(selection, dataset, tmp_path / "r.html", progress=False)).page
    with page.expect_download() as started:
        page.locator("#download").click()
    assert started.value.path().read_bytes() == "\n".join([*ids, ""]).encode(errors="surrogateescape")


def test_without_vectors_labels_and_recut(digits, tmp_path, visit):
    from toolkit import Selection

    chosen = RandomSelector(0.5).select(digits.tensors[0])
    bare = Selection(chosen.status, chosen.group, chosen.representative, chosen.distance)
    page = visit(write_report(bare, digits.tensors[0], tmp_path / "r.html", progress=False)).page
    assert not page.locator("#cloud").is_visible()
    assert not page.locator("#cut-controls").is_visible()
    assert "cannot be changed here" in page.locator("#no-cut").inner_text()
    assert not page.locator("#class-field").is_visible()
    assert "No vectors were given" in page.locator("#notes").inner_text()
    assert page.locator("#tab-isolated").count() == 0
    assert table(page)[0][:4] == ["all", "240", "120", "120"]
    page.locator("#tab-gone").click()
    page.locator("#grid .thumb").first.click()
    assert page.locator("#detail .why").inner_text() == "Goes: drawn at random."


def test_a_sample_says_so_and_still_counts_all(selection, digits, tmp_path, visit):
    vectors = digits.tensors[0].flatten(1).numpy()
    path = write_report(selection, digits, tmp_path / "r.html", vectors=vectors, max_images=50, progress=False)
    page = visit(path).page
    assert "random sample of 50 of 240 images" in page.locator("#notes").inner_text()
    assert_counts(page, selection)
    shown = page.evaluate("Array.from(report.view.shown)")
    assert page.evaluate("report.cloudOf().n") == len(shown) == 50
    absent = next(index for index in range(240) if index not in shown)
    page.locator("#search").fill(str(absent))
    page.keyboard.press("Enter")
    assert detail(page)["picture"] == "not in this page's sample"


def test_influential_images_are_pairs_and_groups(digits, tmp_path, visit):
    vectors = digits.tensors[0].flatten(1).numpy()
    selector = WaveletSelector(n_groups=50, tree_floor=0.5, features=vectors, progress=False)
    selection = selector.select(digits)
    page = visit(write_report(selection, digits, tmp_path / "r.html", vectors=vectors, progress=False)).page
    page.locator("#tab-influential").click()
    first = page.locator("#grid .pair").first.locator(".thumb")
    pair = first.evaluate_all("nodes => nodes.map((node) => Number(node.dataset.index))")
    labels = digits.tensors[1]
    assert labels[pair[0]] != labels[pair[1]]
    assert selection.group[pair[0]] == selection.group[pair[1]]
    first.first.click()
    assert "alike to images of another class" in page.locator("#detail .why").inner_text()
    for _ in range(int(page.locator("#n-pages").inner_text()) - 1):
        page.locator("#next-page").click()
    last = page.locator("#grid .group").last
    shown = last.locator(".thumb").evaluate_all("nodes => nodes.map((node) => Number(node.dataset.index))")
    assert set(shown) <= set(selection.influential.tolist())
    assert last.locator(".thumb.frame").count() == len(shown)


def test_a_sheet_that_cannot_be_decoded_leaves_placeholders(selection, digits, tmp_path, visit):
    path = write_report(selection, digits, tmp_path / "r.html", progress=False)
    text = path.read_text()
    start = text.index('id="sheet-0">') + len('id="sheet-0">')
    path.write_text(text[: start + 40] + "A" * 400 + text[start + 440 :])
    page = visit(path).page
    page.locator("#search").fill("3")
    page.keyboard.press("Enter")
    page.wait_for_selector("#detail canvas.missing")
    assert detail(page)["index"] == "3"


def test_images_kept_at_the_boundary_have_a_gallery(selection, digits, tmp_path, visit):
    status = selection.status.copy()
    walked = selection.removed[:3]
    status[walked] = STATUSES.index("boundary")
    kept = replace(selection, status=status)
    page = visit(write_report(kept, digits, tmp_path / "r.html", progress=False)).page
    assert_counts(page, kept)
    page.locator("#tab-boundary").click()
    page.locator("#grid .thumb").first.click()
    assert detail(page)["index"] == str(walked[0])
    assert page.locator("#detail .why").inner_text().startswith("Stays: the model changes its mind")
    page.locator("#kept-number").fill("190")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('#grid .thumb').length === 0")


def test_a_status_of_a_later_version_is_shown_as_it_is(selection, digits, tmp_path, visit):
    path = write_report(selection, digits, tmp_path / "r.html", progress=False)
    path.write_text(path.read_text().replace('"redundant","outlier"', '"folded","outlier"'))
    page = visit(path).page
    page.locator("#tab-gone").click()
    page.locator("#grid .thumb").first.click()
    assert page.locator("#detail .why").inner_text() == "Goes: folded."


@pytest.mark.slow
def test_more_sheets_than_are_held_at_once(tmp_path, visit):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20_000, 1, 4, 4), dtype=np.uint8)
    dataset = TensorDataset(torch.from_numpy(images))
    selection = RandomSelector(0.5).select(dataset)
    opened = visit(write_report(selection, dataset, tmp_path / "r.html", progress=False))
    assert opened.page.evaluate("report.facts.sheets.count") == 20
    for index in [*range(500, 20_000, 1024), 500]:
        opened.page.locator("#search").fill(str(index))
        opened.page.keyboard.press("Enter")
        opened.page.wait_for_selector(f"#detail .big canvas[data-index='{index}'][data-drawn]")
        assert opened.pixels("#detail .big canvas") == images[index, 0].tolist()
    assert opened.page.evaluate("report.thumbnailsOf().bitmaps.size") == 16
