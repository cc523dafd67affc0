import csv
import json
import os
import subprocess
import sys
import textwrap
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from toolkit import RandomSelector, Selection, SemanticSelector
from toolkit.selection import SelectionFileError

BOXES = [[0, 0, 1], [], [0] * 11, [1, 1, 1], [0, 5]]
NAMES = [f"ant/{i:02d} b.png" for i in range(40)]


def chosen(keep_fraction=0.75, n=40, **options):
    x = np.random.default_rng(0).normal(size=(n, 4))
    selector = SemanticSelector(x, keep_fraction, progress=False, **options)
    return selector.select(labels=np.arange(n) % 3, ids=NAMES[:n])


def same(a, b):
    for name in ("status", "group", "representative", "distance"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), name)
    assert a.ids == b.ids
    assert (a.labels is None) == (b.labels is None)
    assert a.labels is None or list(a.labels) == list(b.labels)
    assert a.labels is None or np.array_equal(a.labels.repeats, b.labels.repeats)
    assert dict(a.config) == dict(b.config)
    assert a.fingerprint == b.fingerprint
    return True


@pytest.mark.parametrize(
    "make",
    [
        chosen,
        lambda: chosen(always_keep=[NAMES[0]], always_remove=[NAMES[1]], quota="global"),
        lambda: replace(chosen(), labels=None, ids=None),
        lambda: RandomSelector(0.5).select(range(9), labels=[[1, 2], [], [3], [1], [2, 1], [3], [1], [], [1]]),
        lambda: RandomSelector(0.5).select(range(4), labels=["7", "cat", "7", "a, b"]),
        lambda: RandomSelector(0.5).select(range(5), labels=BOXES),
        lambda: RandomSelector(0.5).select(range(5), labels=[["a, b", "c"] * 12, [], ["x", "x"], ["2"], ["c"]]),
        lambda: RandomSelector(0.5).select(range(3), labels=[[], [], []]),
    ],
)
def test_what_is_saved_is_loaded(make, tmp_path):
    selection = make()
    assert selection.save(tmp_path / "s") == tmp_path / "s"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(Selection.load(tmp_path / "s"), selection)
    expected = {"selection.csv", "kept.txt", "tree.npz", "selection.json"}
    assert {path.name for path in (tmp_path / "s").iterdir()} == expected


def test_files_are_readable_by_people(tmp_path):
    selection = chosen()
    selection.save(tmp_path)
    with (tmp_path / "selection.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["index", "id", "label", "status", "group", "representative", "distance"]
    gone = rows[int(selection.removed[0])]
    assert gone["status"] == "redundant"
    assert gone["id"] == NAMES[selection.removed[0]]
    assert rows[int(gone["representative"])]["status"] == "kept"
    assert float(gone["distance"]) == pytest.approx(float(selection.distance[selection.removed[0]]))
    assert (tmp_path / "kept.txt").read_text().splitlines() == [NAMES[i] for i in selection.kept]
    summary = json.loads((tmp_path / "selection.json").read_text())
    assert summary["kept"] == 30
    assert summary["classes"]["0"] == {"kept": 10, "removed": 4, "redundant": 4}
    assert summary["config"]["selector"] == "SemanticSelector"
    assert summary["config"]["seed"] == 0
    assert "torch" in summary["versions"]
    assert set(summary["sha256"]) == {"selection.csv", "kept.txt", "tree.npz"}


def test_subset_is_the_kept_images():
    selection = chosen()
    dataset = TensorDataset(torch.arange(40))
    assert [int(item[0]) for item in selection.subset(dataset)] == selection.kept.tolist()
    with pytest.raises(ValueError, match="`dataset` must be the data set of 40 images .* got '5 images'"):
        selection.subset(range(5))


def test_below_the_floor_is_an_error_that_names_the_argument():
    selection = chosen(0.75, tree_floor=0.6)
    assert len(selection.with_keep_fraction(0.6).kept) == 24
    with pytest.raises(ValueError, match=r"`keep_fraction` must be at least 0.6 \(24 of 40 images\).*got 0.59"):
        selection.with_keep_fraction(0.59)
    with pytest.raises(ValueError, match=r"`keep_fraction` must be in \(0, 1\], got 0"):
        selection.with_keep_fraction(0)
    with pytest.raises(ValueError, match="stored without a merge tree"):
        replace(selection, recut=None).with_keep_fraction(0.9)
    with pytest.raises(ValueError, match="`keep_fraction` must be at most 0.975: 1 images are excluded, got 1.0"):
        chosen(always_remove=[NAMES[0]]).with_keep_fraction(1.0)


def test_edits_in_kept_txt_are_honoured_with_a_warning(tmp_path):
    selection = chosen()
    selection.save(tmp_path)
    added, taken = int(selection.removed[0]), int(selection.kept[3])
    lines = [NAMES[i] for i in selection.kept if i != taken] + [NAMES[added]]
    (tmp_path / "kept.txt").write_text("\r\n".join(lines))
    with pytest.warns(UserWarning, match="was edited since the selection was saved: 1 images added, 1 taken out"):
        edited = Selection.load(tmp_path)
    assert edited.reasons[added] == "kept"
    assert edited.reasons[taken] == "excluded"
    assert set(edited.kept) == set(selection.kept) - {taken} | {added}
    assert not np.isin(edited.representative, taken).any(), "nobody is represented by an image that is gone"
    edited.save(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = Selection.load(tmp_path)
    assert same(again, edited)
    recut = again.with_keep_fraction(0.6)
    assert recut.reasons[added] == "kept"
    assert recut.reasons[taken] == "excluded"


def test_an_excluded_image_can_be_put_back_by_hand(tmp_path):
    selection = chosen(always_remove=[NAMES[0]])
    selection.save(tmp_path)
    (tmp_path / "kept.txt").write_text("\n".join([NAMES[0], *(NAMES[i] for i in selection.kept)]) + "\n")
    with pytest.warns(UserWarning, match="1 images added, 0 taken out"):
        edited = Selection.load(tmp_path)
    assert edited.reasons[0] == "kept"
    assert edited.with_keep_fraction(0.9).reasons[0] == "kept"


def test_an_editor_may_take_the_last_line_end_off(tmp_path):
    selection = chosen()
    selection.save(tmp_path)
    (tmp_path / "kept.txt").write_text((tmp_path / "kept.txt").read_text().rstrip("\n"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(Selection.load(tmp_path), selection)


def test_names_of_any_kind_survive(tmp_path):
    names = ["a, b", 'c"d', "e\u2028f", "g\x85h", "caf\u00e9", "bad\udce9byte"]
    selection = RandomSelector(n_images=5).select(range(6), ids=names)
    selection.save(tmp_path)
    assert Selection.load(tmp_path).ids == tuple(names)
    lines = (tmp_path / "kept.txt").read_bytes().split(b"\n")
    (tmp_path / "kept.txt").write_bytes(b"\n".join(lines[1:]))
    with pytest.warns(UserWarning, match="0 images added, 1 taken out"):
        assert len(Selection.load(tmp_path).kept) == 4


def replace_in(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def cut(path, by):
    content = path.read_bytes()
    path.write_bytes(content[:-by] if by else content[:-1] + b"9")


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda p: cut(p / "kept.txt", 40), "kept.txt was cut short"),
        (lambda p: (p / "kept.txt").write_text(""), "kept.txt was cut short"),
        (lambda p: (p / "kept.txt").write_text("\n"), "must hold at least one id"),
        (lambda p: (p / "kept.txt").write_text("ant/00 b.png\nwasp.png\n"), "got 1 others: wasp.png"),
        (lambda p: cut(p / "selection.csv", 30), "selection.csv was cut short or altered"),
        (lambda p: cut(p / "tree.npz", 0), "tree.npz was cut short or altered"),
        (lambda p: (p / "tree.npz").unlink(), "tree.npz is missing"),
        (lambda p: cut(p / "selection.json", 100), "selection.json was cut short or altered"),
        (lambda p: (p / "kept.txt").write_bytes("ant/00 b.png\n".encode("utf-16")), "must hold ids of this selection"),
        (lambda p: replace_in(p / "selection.json", '"redundant"', '"odd"'), "was altered"),
        (lambda p: replace_in(p / "selection.json", '"edits": {}', '"edits": 3'), "was altered"),
        (lambda p: (p / "selection.json").write_text("{}"), "selection.json was cut short or altered"),
        (lambda p: (p / "selection.json").write_text('{"sha256": {}, "images": 3, "format": 99}'), "newer version"),
    ],
)
def test_damage_is_recognised(damage, match, tmp_path):
    chosen().save(tmp_path)
    damage(tmp_path)
    with pytest.raises(SelectionFileError, match=match):
        Selection.load(tmp_path)


def test_a_folder_without_a_selection(tmp_path):
    with pytest.raises(FileNotFoundError, match="`folder` must hold a saved selection .* which has none"):
        Selection.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="which does not exist"):
        Selection.load(tmp_path / "nowhere")


class Killed(BaseException):
    """Ends a save as a kill would: nothing in the code under test catches or cleans up after it."""


def stop_after(monkeypatch, steps, stop):
    """Let `stop` happen before the n-th renaming or deleting of a file."""
    left = [steps]
    for name in ("replace", "unlink"):
        real = getattr(Path, name)

        def step(self, *args, real=real, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                stop()
            return real(self, *args, **kwargs)

        monkeypatch.setattr(Path, name, step)


def kill():
    raise Killed


def test_a_killed_process_leaves_the_old_selection_or_the_new(tmp_path, monkeypatch):
    old, new = RandomSelector(0.5, seed=0).select(range(30)), RandomSelector(0.5, seed=1).select(range(30))
    outcomes = []
    for steps in range(20):
        folder = tmp_path / str(steps)
        old.save(folder)
        finished = True
        with monkeypatch.context() as patch:
            stop_after(patch, steps, kill)
            try:
                new.save(folder)
            except Killed:
                finished = False
        loaded = Selection.load(folder)
        outcomes.append("old" if np.array_equal(loaded.kept, old.kept) else "new")
        assert np.array_equal(loaded.kept, (old if outcomes[-1] == "old" else new).kept)
        old.save(folder)  # and the next one can be written over it
        assert np.array_equal(Selection.load(folder).kept, old.kept)
        if finished:
            break
    assert outcomes[0] == "old"
    assert outcomes[-1] == "new"
    assert outcomes == sorted(outcomes, reverse=True), "once new, it stays new"
    assert 5 < len(outcomes) < 20


DIES = """
    import os, sys
    from pathlib import Path
    from toolkit import RandomSelector

    real = Path.replace

    def replace(self, target):
        if Path(target).name == "selection.json":
            os._exit(9)
        return real(self, target)

    Path.replace = replace
    RandomSelector(0.5, seed=1).select(range(30)).save(sys.argv[1])
"""


def test_a_process_that_really_dies_leaves_the_old_selection(tmp_path):
    old = RandomSelector(0.5, seed=0).select(range(30))
    old.save(tmp_path / "s")
    (tmp_path / "dies.py").write_text(textwrap.dedent(DIES))
    done = subprocess.run([sys.executable, tmp_path / "dies.py", tmp_path / "s"], env=os.environ, check=False)
    assert done.returncode == 9
    assert np.array_equal(Selection.load(tmp_path / "s").kept, old.kept)


def test_a_failed_write_leaves_the_old_selection(tmp_path, monkeypatch):
    old = RandomSelector(0.5, seed=0).select(range(30))
    old.save(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        RandomSelector(0.5, seed=1).select(range(30)).save(tmp_path)
    monkeypatch.undo()
    assert np.array_equal(Selection.load(tmp_path).kept, old.kept)
    assert len(list(tmp_path.iterdir())) == 4


def test_checkpoint_state_is_plain(tmp_path):
    selection = chosen()
    torch.save(selection.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    again = Selection.from_state_dict(state, NAMES, np.arange(40) % 3)
    assert same(again, replace(selection, config=json.loads(json.dumps(dict(selection.config)))))
    assert again.recut is None


def test_checkpoint_state_passes_over_what_select_passes_over():
    state = chosen().state_dict()
    again = Selection.from_state_dict(state, ["twice"] * 40, [np.zeros((2, 2))] * 40)
    assert (again.ids, again.labels) == (None, None)
    np.testing.assert_array_equal(again.kept, chosen().kept)


def test_summary_is_a_table():
    text = chosen().summary(["ant", "bee", "cat"])
    assert text.splitlines()[0].split() == ["class", "images", "kept", "removed", "removed", "%"]
    assert text.splitlines()[1].split() == ["0", "ant", "14", "10", "4", "28.6"]
    assert text.splitlines()[-1].split() == ["total", "40", "30", "10", "25.0"]


def boxed(**options):
    """Images 2 and 4 stay; both boxes of class 5 and 12 of 15 of class 0 with them."""
    options = {"always_keep": [2, 4]} | options
    return RandomSelector(n_images=2, **options).select(range(5), labels=BOXES)


def test_each_class_is_counted_over_all_images_that_hold_it(tmp_path):
    selection = boxed()
    expected = {
        "0": {"images": 3, "images_kept": 2, "boxes": 14, "boxes_kept": 12},
        "1": {"images": 2, "images_kept": 0, "boxes": 4, "boxes_kept": 0},
        "5": {"images": 1, "images_kept": 1, "boxes": 1, "boxes_kept": 1},
    }
    assert selection.class_counts() == expected
    assert list(selection.counts()) == ["", "0", "0;1", "0;5", "1"], "sets of labels are classes"
    assert Selection.load(selection.save(tmp_path)).class_counts() == expected
    assert json.loads((tmp_path / "selection.json").read_text())["classes"] == expected
    torch.save(selection.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert Selection.from_state_dict(state, labels=BOXES).class_counts() == expected
    single = RandomSelector(0.5, balance="label").select(range(8), labels=["a", "b"] * 4)
    assert single.class_counts()["a"] == {"images": 4, "images_kept": 2, "boxes": 4, "boxes_kept": 2}
    assert RandomSelector(0.5).select(range(8)).class_counts() == {}


def test_a_file_tells_people_how_many_boxes_there_are(tmp_path):
    boxed().save(tmp_path)
    with (tmp_path / "selection.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["index", "id", "label", "boxes", "status", "group", "representative", "distance"]
    assert [(row["label"], row["boxes"]) for row in rows] == [("0;1", "2;1"), ("", ""), ("0", "11"), ("1", "3"),
                                                             ("0;5", "1;1")]  # fmt: skip
    replace_in(tmp_path / "selection.json", '"format": 2', '"format": 3')
    with pytest.raises(SelectionFileError, match=r"written by a newer version \(3\)"):
        Selection.load(tmp_path)
    chosen().save(tmp_path)
    assert '"format": 1,' in (tmp_path / "selection.json").read_text(), "older versions can read these"


def test_a_selection_from_before_boxes_were_counted_is_read(tmp_path):
    """Its files had a set of labels an image and no column of their numbers."""
    labels = [sorted(set(each)) for each in BOXES]
    RandomSelector(n_images=2, always_keep=[2, 4]).select(range(5), labels=labels).save(tmp_path)
    assert (tmp_path / "selection.csv").read_text().splitlines()[0] == (
        "index,id,label,status,group,representative,distance"
    )
    loaded = Selection.load(tmp_path)
    assert list(map(list, loaded.labels)) == labels
    assert loaded.class_counts()["0"] == {"images": 3, "images_kept": 2, "boxes": 3, "boxes_kept": 2}


def test_a_summary_of_images_with_several_labels_is_by_label():
    assert boxed().summary(["car", "sign"]).splitlines() == [
        "class     images  kept  removed  removed %  boxes  boxes kept  boxes removed  boxes removed %",
        "0 car          3     2        1       33.3     14          12              2             14.3",
        "1 sign         2     0        2      100.0      4           0              4            100.0",
        "5              1     1        0        0.0      1           1              0              0.0",
        "no boxes       1     0        1      100.0",
        "total          5     2        3       60.0     19          13              6             31.6",
    ]
    sets = RandomSelector(1.0).select(range(3), labels=[[1, 2], [], [2]]).summary()
    assert [line.split() for line in sets.splitlines()] == [
        ["class", "images", "kept", "removed", "removed", "%"],
        ["1", "1", "1", "0", "0.0"],
        ["2", "2", "2", "0", "0.0"],
        ["no", "label", "1", "1", "0", "0.0"],
        ["total", "3", "3", "0", "0.0"],
    ]
    assert len(RandomSelector(1.0).select(range(3), labels=[[], [], []]).summary().splitlines()) == 2


@pytest.mark.parametrize(
    ("ids", "match"),
    [
        (["a", "a"], "`ids` must be different for every image, got '1 repeated'"),
        (["a"], "`ids` must be one for each of the 2 images, got '1 ids'"),
        (["a", "b\nc"], "`ids` must be texts of one line"),
        (["a", " b"], "`ids` must be texts of one line without space at either end"),
    ],
)
def test_id_errors(ids, match):
    with pytest.raises(ValueError, match=match):
        RandomSelector(0.5).select(range(2), ids=ids)


@pytest.mark.parametrize("name", ["kept.txt", "selection.csv", "tree.npz"])
def test_a_file_that_belongs_to_no_selection_is_not_replaced(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"`folder` must be a new folder, .* where {name} would be replaced, got"):
        RandomSelector(0.5).select(range(4)).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"
