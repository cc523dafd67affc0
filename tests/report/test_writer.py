import base64
import json
import re
import zlib

import numpy as np
import pytest
import torch
from drawn_scenes import DrawnScenes
from torch.utils.data import TensorDataset

from toolkit import RandomSelector, Selection, SemanticSelector
from toolkit.drawing import class_color
from toolkit.report import write_report, writer
from toolkit.selection.recut import MergeForest


@pytest.fixture
def vectors(digits):
    return digits.tensors[0].flatten(1).numpy()


@pytest.fixture
def selection(digits, vectors):
    return SemanticSelector(vectors, 0.8, tree_floor=0.5, progress=False).select(digits)


def write(selection, dataset, path, **more):
    return write_report(selection, dataset, path, progress=False, **more)


def facts_of(path):
    return json.loads(re.search(r'id="facts">(.*?)</script>', path.read_text()).group(1))


def array_of(path, name):
    kind, text = re.search(rf'id="array-{name}" data-type="(\w+)">([^<]*)<', path.read_text()).groups()
    content = zlib.decompress(base64.b64decode(text))
    return json.loads(content) if kind == "json" else np.frombuffer(content, kind)


def test_the_file_is_whole_and_asks_for_nothing(selection, digits, vectors, tmp_path):
    path = write(selection, digits, tmp_path / "new" / "report.html", vectors=vectors, title="A & B")
    text = path.read_text()
    assert text.startswith("<!DOCTYPE html>")
    assert text.endswith("</html>\n")
    assert "<title>A &amp; B</title>" in text
    assert "%%" not in text
    assert not re.findall(r"(?:src|href)=\"(?!data:,|#)", text)
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
    assert array_of(path, "status").tolist() == selection.status.tolist()
    assert facts_of(path)["images"] == facts_of(path)["shown"] == 240


def test_a_title_that_is_no_text_does_not_stop_the_report(selection, digits, tmp_path):
    path = write(selection, digits, tmp_path / "report.html", title="caf\udce9 <ü>")
    assert "<title>caf&#56553; &lt;&#252;&gt;</title>" in path.read_text(encoding="utf-8")


def test_the_same_selection_makes_the_same_file(selection, digits, vectors, tmp_path):
    status, before = selection.status.copy(), vectors.copy()
    first = write(selection, digits, tmp_path / "a.html", vectors=vectors).read_bytes()
    assert write(selection, digits, tmp_path / "b.html", vectors=vectors).read_bytes() == first
    assert np.array_equal(selection.status, status)
    assert np.array_equal(vectors, before)


def test_a_report_is_replaced_and_another_file_is_not(selection, digits, tmp_path):
    path = write(selection, digits, tmp_path / "report.html", title="first")
    write(selection.with_keep_fraction(0.6), digits, path, title="second")
    assert "<title>second</title>" in path.read_text()
    mine = tmp_path / "mine.html"
    mine.write_text("<!DOCTYPE html><title>mine</title>")
    with pytest.raises(ValueError, match=r"`path` must be a new file or a report to replace, got .*mine\.html"):
        write(selection, digits, mine)
    assert mine.read_text() == "<!DOCTYPE html><title>mine</title>"
    with pytest.raises(ValueError, match="`path` must be a file, got .the folder"):
        write(selection, digits, tmp_path)


def test_a_write_that_fails_leaves_the_file_before(selection, digits, tmp_path, monkeypatch):
    path = write(selection, digits, tmp_path / "report.html")
    before = path.read_bytes()

    def broken(self):
        yield "<!DOCTYPE html>"
        raise OSError("no space left")

    monkeypatch.setattr(writer._Page, "parts", broken)
    with pytest.raises(OSError, match="no space left"):
        write(selection, digits, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_a_sample_brings_representatives_along(digits, vectors, tmp_path):
    selection = SemanticSelector(vectors, 0.6, progress=False).select(digits)
    standing = selection.representative
    shown = {}
    for seed in (0, 1):
        for most in (1, 7, 60, 239):
            path = write(selection, digits, tmp_path / "report.html", max_images=most, seed=seed)
            shown[seed, most] = found = array_of(path, "shown")
            assert len(set(found.tolist())) == len(found) == facts_of(path)["shown"] == most
            assert set(standing[found].tolist()) <= set(found.tolist())
            order = [(selection.labels.codes[index], selection.group[index], index) for index in found.tolist()]
            assert order == sorted(order)
    assert not np.array_equal(shown[0, 60], shown[1, 60])
    assert sorted(array_of(write(selection, digits, tmp_path / "all.html"), "shown").tolist()) == list(range(240))


class Unknown:
    """A way to cut that the page has never heard of."""

    excluded = np.zeros(240, bool)

    def arrays(self):
        return {"kind": np.array("crystal_ball"), "seen": np.arange(3)}


def changed(selection, **more):
    parts = {name: getattr(selection, name) for name in ("status", "group", "representative", "distance", "labels")}
    return Selection(**{**parts, **more})


def test_without_a_known_recut_the_page_says_why(selection, digits, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    assert facts_of(write(selection, digits, path))["recut"]["kind"] == "merge_forest"
    assert facts_of(write(changed(selection), digits, path))["noRecut"].startswith("The selection was stored without")
    facts = facts_of(write(changed(selection, recut=Unknown()), digits, path))
    assert facts["recut"] is None
    assert "of this kind (crystal_ball)" in facts["noRecut"]
    monkeypatch.setattr(writer, "_MOST_RECUT_BYTES", 100)
    assert "too large for a page" in facts_of(write(selection, digits, path))["noRecut"]
    assert "recut-images" not in path.read_text()


def test_isolated_images_and_pairs_are_those_of_insight(digits, vectors, tmp_path, monkeypatch):
    from toolkit import WaveletSelector
    from toolkit.insight import most_isolated

    selection = WaveletSelector(n_groups=50, tree_floor=0.5, features=vectors, progress=False).select(digits)
    path = write(selection, digits, tmp_path / "report.html", vectors=vectors)
    assert facts_of(path)["metric"] == "euclidean"
    wanted = most_isolated(vectors, 120)
    assert array_of(path, "isolated").tolist() == wanted.indices.tolist()
    assert array_of(path, "isolated-nearest").tolist() == wanted.nearest.tolist()
    pairs, labels = array_of(path, "pairs").reshape(-1, 2).astype(int), digits.tensors[1].numpy()
    assert len(pairs)
    assert (labels[pairs[:, 0]] != labels[pairs[:, 1]]).all()
    assert set(pairs.ravel().tolist()) <= set(selection.influential.tolist())
    apart = np.linalg.norm(vectors[pairs[:, 0]] - vectors[pairs[:, 1]], axis=1)
    assert np.allclose(array_of(path, "pairs-distance"), apart, rtol=1e-5)
    monkeypatch.setattr(writer, "_MOST_FOR_ISOLATED", 100)
    facts = facts_of(write(selection, digits, path, vectors=vectors))
    assert facts["isolatedNote"] == "Not looked for among more than 100 images."
    assert 'id="array-isolated"' not in path.read_text()


def test_the_metric_is_that_of_the_trees(selection, digits, vectors, tmp_path):
    assert facts_of(write(selection, digits, tmp_path / "a.html", vectors=vectors))["metric"] == "cosine"
    plain = RandomSelector(0.5).select(digits)
    assert facts_of(write(plain, digits, tmp_path / "b.html", vectors=vectors))["metric"] == "euclidean"


def test_one_image_is_enough(tmp_path):
    dataset = TensorDataset(torch.rand(1, 3, 5, 4))
    selection = RandomSelector(1.0).select(dataset)
    path = write(selection, dataset, tmp_path / "report.html", vectors=np.ones((1, 3)))
    assert facts_of(path)["classes"] is None
    assert array_of(path, "points").tolist() == [0, 0, 0]


def test_class_names_are_for_labels_that_are_numbers(digits, vectors, tmp_path):
    labels = [[int(label), 7] if label < 3 else int(label) for label in digits.tensors[1]]
    selection = SemanticSelector(vectors, 0.8, progress=False).select(digits, labels=labels)
    path = write(selection, digits, tmp_path / "report.html", class_names=["zero", "one", "two", "three"])
    facts = facts_of(path)
    assert facts["classes"] == ["zero", "one", "two", "three", "4", "5", "6", "7", "8", "9"]
    assert facts["several"] == {"counted": False, "nothing": -1}
    assert array_of(path, "codes").max() == 9


def test_colours_go_with_the_number_of_a_class(digits, tmp_path):
    for labels, numbers in (([3, 1] * 120, [1, 3]), (["b", "a"] * 120, [0, 1]), ([-1, 5] * 120, [0, 1])):
        selection = RandomSelector(0.5).select(digits, labels=labels)
        path = write(selection, digits, tmp_path / "report.html")
        assert facts_of(path)["colors"] == [class_color(number) for number in numbers]


def test_large_trees_leave_room_for_thumbnails(selection, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "_MOST_BYTES", 10_000)
    monkeypatch.setattr(writer, "_LEAST_SHEET_BYTES", 2_000)
    assert isinstance(selection.recut, MergeForest)
    assert facts_of(write(selection, digits, tmp_path / "report.html"))["sheets"]["quality"] is not None


@pytest.mark.parametrize(
    ("more", "error", "match"),
    [
        ({"vectors": np.ones((3, 2))}, ValueError, "`vectors` must be one for each of the 240 images, got '3 vectors'"),
        ({"vectors": np.full((240, 2), np.nan)}, ValueError, "`vectors` must be finite"),
        ({"projection": "tsne"}, ValueError, "`projection` must be one of 'pca', 'umap', got 'tsne'"),
        ({"max_images": 0}, ValueError, "`max_images` must be at least 1, got 0"),
        ({"max_images": 2.5}, TypeError, "`max_images` must be a whole number, got 2.5"),
        ({"max_images": True}, TypeError, "`max_images` must be a whole number, got True"),
        ({"dataset": [1, 2]}, ValueError, "`dataset` must be the data set of 240 images that was chosen from"),
    ],
)
def test_errors(more, error, match, selection, digits, tmp_path):
    dataset = more.pop("dataset", digits)
    with pytest.raises(error, match=match):
        write(selection, dataset, tmp_path / "report.html", **more)
    assert list(tmp_path.iterdir()) == []


def test_more_images_than_thumbnails_can_be(tmp_path):
    selection = RandomSelector(0.5).select(range(200_001))
    with pytest.raises(ValueError, match="`max_images` must be at most 200000, got 200001"):
        write(selection, range(200_001), tmp_path / "report.html", max_images=10**6)


def test_objects_are_counted_by_class_where_images_hold_several(tmp_path, digits):
    boxes = [[0, 0, 1] if index % 2 else [1] for index in range(len(digits))]
    boxes[0] = []
    selection = RandomSelector(0.5, seed=1).select(range(len(digits)), labels=boxes)
    path = write(selection, digits, tmp_path / "report.html", class_names=["car", "sign"])
    facts = facts_of(path)
    assert facts["classes"] == ["car", "sign", "no objects"]
    assert facts["several"] == {"counted": True, "nothing": 2}
    assert len(facts["colors"]) == len(set(facts["colors"])) == 3
    counts = np.bincount(array_of(path, "object-label"), array_of(path, "object-count"))
    assert counts.tolist() == [sum(item.count(label) for item in boxes) for label in (0, 1)]
    plain = write(RandomSelector(0.5).select(digits), digits, tmp_path / "plain.html")
    assert facts_of(plain)["several"] is None


def test_boxes_are_those_of_the_images_in_the_order_of_their_thumbnails(tmp_path, monkeypatch):
    scenes = DrawnScenes(30, n_classes=4)
    scenes.targets = [[2 * name for name in names] for names in scenes.targets]
    selection = RandomSelector(0.5).select(scenes)
    path = write(selection, scenes, tmp_path / "report.html", class_names=["a", "b", "c"])
    facts, shown = facts_of(path), array_of(path, "shown")
    assert facts["boxes"]["titles"] == ["a", "c", "4", "6"]
    assert facts["boxes"]["colors"] == [class_color(number) for number in (0, 2, 4, 6)]
    assert facts["boxes"]["drawn"]
    assert array_of(path, "box-counts").tolist() == [len(scenes.targets[index]) for index in shown]
    assert (2 * array_of(path, "box-classes")).tolist() == [name for index in shown for name in scenes.targets[index]]
    assert len(array_of(path, "box-corners")) == 4 * sum(facts["boxes"]["totals"])
    assert facts["videos"] == []
    monkeypatch.setattr(writer, "MOST_BOXES", 10)
    assert not facts_of(write(selection, scenes, path))["boxes"]["drawn"]
    assert "array-box-" not in path.read_text()


def test_frames_of_videos_are_in_the_page(tmp_path):
    scenes = DrawnScenes(20, video="drive")
    path = write(RandomSelector(0.5).select(scenes), scenes, tmp_path / "report.html")
    assert facts_of(path)["videos"] == ["frame"]
    assert array_of(path, "video-frames").tolist() == list(range(20))
    assert array_of(path, "video-lengths").tolist() == [20]
