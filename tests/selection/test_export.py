import json
import os

import numpy as np
import pytest
from detection_data import write_data

from toolkit import RandomSelector, Selection
from toolkit.detection import read_data_yaml, read_split
from toolkit.selection import Labels, apply_selection, fiftyone_samples, write_yolo_list

NAMES = ("a/one.png", "a/two words.png", "b/ünïcödé ☃.png", "b/deep/er/four.png", "five.png")


def selection(names=NAMES, labels=(0, 0, 1, 1, 2), kept=(0, 2, 3, 4)):
    """One that goes (`a/two words.png`), for the first."""
    n = len(names)
    status = np.ones(n, np.uint8)
    status[list(kept)] = 0
    representative = np.where(status == 0, np.arange(n), 0)
    distance = np.where(status == 0, 0.0, 0.25).astype(np.float32)
    return Selection(
        status,
        representative,
        representative,
        distance,
        ids=tuple(names),
        labels=None if labels is None else Labels.of(list(labels), n),
    )


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(NAMES):
        path = tmp_path / "all" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]) * 10)
    return tmp_path / "all"


def files(root):
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir())


KEPT = sorted(["a/one.png", "b/ünïcödé ☃.png", "b/deep/er/four.png", "five.png"])


@pytest.mark.parametrize("mode", ["symlink", "copy"])
def test_the_kept_files_lie_under_their_paths(folder, tmp_path, mode):
    before = {name: (folder / name).read_bytes() for name in files(folder)}
    output = apply_selection(selection(), folder, tmp_path / "new" / "pruned", mode)
    assert files(output) == sorted([*KEPT, ".selection"])
    for name in KEPT:
        assert (output / name).read_bytes() == before[name]
        assert (output / name).is_symlink() == (mode == "symlink")
        assert (output / name).stat().st_mtime == (folder / name).stat().st_mtime
    assert {name: (folder / name).read_bytes() for name in files(folder)} == before
    again = apply_selection(selection(), folder, output, mode)
    assert files(again) == files(output), "doing it twice changes nothing"


def test_a_selection_applies_itself_beside_the_folder_or_elsewhere(folder, tmp_path, monkeypatch):
    chosen = selection()
    monkeypatch.chdir(folder)
    beside = chosen.apply(".")
    assert beside == tmp_path / "all_kept"
    assert files(beside) == sorted([*KEPT, ".selection"])
    assert (beside / "five.png").is_symlink()
    elsewhere = chosen.apply(folder, "copy", output=tmp_path / "copy")
    assert elsewhere == tmp_path / "copy"
    assert not (elsewhere / "five.png").is_symlink()
    assert files(chosen.apply(folder, mode="list", output="../list")) == [".selection", "kept.txt"]
    with pytest.raises(ValueError, match="`output` must be new, empty, or made from the same selection"):
        selection(kept=(0, 1)).apply(folder)
    with pytest.raises(ValueError, match="`mode` must be one of"):
        chosen.apply(folder, "move")


def test_links_do_not_depend_on_where_the_program_runs(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = apply_selection(selection(), "all", "pruned")
    monkeypatch.chdir(folder)
    assert (tmp_path / output / "five.png").read_bytes() == (folder / "five.png").read_bytes()


def test_a_list_has_absolute_paths(folder, tmp_path):
    output = apply_selection(selection(), folder, tmp_path / "list", "list")
    assert (output / "kept.txt").read_text().splitlines() == [
        str(folder / name) for i, name in enumerate(NAMES) if i != 1
    ]
    assert files(output) == [".selection", "kept.txt"]
    apply_selection(selection(), folder, output, "list")
    (output / "kept.txt").write_text("mine")
    with pytest.raises(ValueError, match="`output` must be without another file in the place of 'kept.txt'"):
        apply_selection(selection(), folder, output, "list")
    assert (output / "kept.txt").read_text() == "mine"


@pytest.mark.parametrize("mode", ["symlink", "copy"])
def test_an_interrupted_run_goes_on(folder, tmp_path, mode, monkeypatch):
    output = tmp_path / "pruned"
    done = []

    def fails(*args, **kwargs):
        if len(done) == 2:
            raise OSError("no space left")
        done.append(1)
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        if mode == "copy":
            original = __import__("shutil").copy2
            patch.setattr("toolkit.selection.export.shutil.copy2", fails)
        else:
            original = type(output).symlink_to
            patch.setattr(type(output), "symlink_to", fails)
        with pytest.raises(OSError, match="no space left"):
            apply_selection(selection(), folder, output, mode)
    assert len(files(output)) == 3
    (output / ".five.png.1.unfinished").write_bytes(b"half")
    apply_selection(selection(), folder, output, mode)
    assert set(KEPT) <= set(files(output))


def test_nothing_of_a_users_is_touched(folder, tmp_path):
    output = tmp_path / "pruned"
    output.mkdir()
    apply_selection(selection(), folder, output)
    with pytest.raises(ValueError, match="`output` must be new, empty, or made from the same selection"):
        apply_selection(selection(kept=(0, 1)), folder, output)
    with pytest.raises(ValueError, match="made from the same selection in the same mode"):
        apply_selection(selection(), folder, output, "copy")
    (output / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="without files that the selection did not put there, got 'notes.txt'"):
        apply_selection(selection(), folder, output)
    (output / "notes.txt").unlink()
    (output / "five.png").unlink()
    (output / "five.png").write_text("mine")
    with pytest.raises(ValueError, match="without another file in the place of 'five.png'"):
        apply_selection(selection(), folder, output)
    assert (output / "five.png").read_text() == "mine"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "photo.png").write_text("mine")
    with pytest.raises(ValueError, match="`output` must be new, empty, or made"):
        apply_selection(selection(), folder, mine, "copy")
    assert files(mine) == ["photo.png"]
    with pytest.raises(ValueError, match="`output` must be a folder, or a path where there is nothing"):
        apply_selection(selection(), folder, mine / "photo.png")


@pytest.mark.parametrize("place", [".", "inside", "a/inside", "..", "../.."])
def test_the_output_lies_apart_from_the_folder(folder, place):
    with pytest.raises(ValueError, match="`output` must be apart from the folder"):
        apply_selection(selection(), folder, folder / place)


def test_a_link_to_the_folder_is_not_apart(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(ValueError, match="`output` must be apart from the folder"):
        apply_selection(selection(), folder, tmp_path / "link" / "inside")


@pytest.mark.parametrize(
    "bad", ["/etc/passwd", "../up.png", "a/../../up.png", "C:\\up.png", "a\\..\\..\\up.png", "\\\\host\\up", "a\0b"]
)
@pytest.mark.parametrize("what", ["apply", "yolo", "fiftyone"])
def test_ids_that_leave_their_folder_are_refused(folder, tmp_path, bad, what):
    escaping = selection((bad, *NAMES[1:]))
    work = {
        "apply": lambda: apply_selection(escaping, folder, tmp_path / "out"),
        "yolo": lambda: write_yolo_list(escaping, tmp_path / "out", folder),
        "fiftyone": lambda: fiftyone_samples(escaping, tmp_path / "out", folder),
    }[what]
    with pytest.raises(ValueError, match="`selection` must be one whose ids are relative paths that do not leave"):
        work()
    assert not (tmp_path / "out").exists()


def test_line_ends_inside_names_do_not_reach_lists(folder, tmp_path):
    broken = selection(("a\u2028b.png", *NAMES[1:]))
    with pytest.raises(ValueError, match="`selection` must be one whose ids have no line ends, for a list"):
        write_yolo_list(broken, tmp_path / "train.txt", folder)
    with pytest.raises(ValueError, match="no line ends"):
        apply_selection(broken, folder, tmp_path / "out", "list")
    (folder / "a\u2028b.png").write_bytes(b"fine in a folder")
    assert "a\u2028b.png" in files(apply_selection(broken, folder, tmp_path / "out"))


@pytest.mark.skipif(os.name == "nt", reason="names are bytes on POSIX only")
def test_names_that_are_not_utf8_keep_their_bytes(folder, tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    (folder / name).write_bytes(b"latin")
    odd = selection((name, *NAMES[1:]))
    assert (apply_selection(odd, folder, tmp_path / "out", "copy") / name).read_bytes() == b"latin"
    assert b"caf\xe9.png\n" in write_yolo_list(odd, tmp_path / "train.txt", folder).read_bytes()


def test_errors_of_apply(folder, tmp_path):
    with pytest.raises(ValueError, match="`mode` must be one of 'symlink', 'copy', 'list', got 'move'"):
        apply_selection(selection(), folder, tmp_path / "out", "move")
    with pytest.raises(FileNotFoundError, match="`folder` must hold the kept files, .* without 1 of them: b/none.png"):
        apply_selection(selection((*NAMES[:4], "b/none.png")), folder, tmp_path / "out")
    (folder / "kept.txt").write_text("an image by another name")
    with pytest.raises(ValueError, match="`selection` must be one without files called .selection or kept.txt"):
        apply_selection(selection((*NAMES[:4], "kept.txt")), folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    nameless = Selection(*(np.zeros(2, kind) for kind in (np.uint8, np.int64, np.int64, np.float32)))
    with pytest.raises(ValueError, match="`selection` must have ids that are paths of files"):
        apply_selection(nameless, folder, tmp_path / "out")


def test_a_detection_set_is_read_again_from_a_list_of_its_kept_images(tmp_path):
    """The list may lie anywhere: boxes are found beside the images, whose files nobody touches."""
    whole = read_data_yaml(write_data(tmp_path / "data"))
    images = read_split(whole, "train")
    before = {name: (tmp_path / "data" / name).read_bytes() for name in files(tmp_path / "data")}
    names = [file.relative_to(images.root).as_posix() for file in images.files]
    chosen = RandomSelector(0.5, always_keep=[names[-1]]).select(names, labels=images.targets, ids=names)
    write_yolo_list(chosen, tmp_path / "pruned" / "train.txt", images.root)
    (tmp_path / "pruned" / "data.yaml").write_text("train: train.txt\nnames: [square, bar, dot]\n")
    again = read_split(read_data_yaml(tmp_path / "pruned" / "data.yaml"), "train")
    kept = images.take(chosen.kept.tolist())
    assert again.targets == kept.targets
    assert again.targets[-1] == [], "an image without boxes stays one"
    assert [file.resolve() for file in again.files] == [file.resolve() for file in kept.files]
    assert sum(map(len, again.targets)) == sum(count["boxes_kept"] for count in chosen.class_counts().values())
    assert {name: (tmp_path / "data" / name).read_bytes() for name in files(tmp_path / "data")} == before


def test_yolo_lists_are_replaced_only_if_written_here(folder, tmp_path):
    path = write_yolo_list(selection(), tmp_path / "lists" / "train.txt", folder)
    assert path.read_text().splitlines() == [str(folder / NAMES[i]) for i in (0, 2, 3, 4)]
    write_yolo_list(selection(kept=(0, 1)), path, folder)
    assert path.read_text().splitlines() == [str(folder / NAMES[i]) for i in (0, 1)]
    path.write_text("names:\n  0: cat\n")
    for target in (path, tmp_path / "lists"):
        with pytest.raises(ValueError, match="`path` must be a new file, or one that was written here before"):
            write_yolo_list(selection(), target, folder)
    assert path.read_text().startswith("names")
    assert files(tmp_path / "lists") == ["train.txt"]


def test_a_write_that_fails_leaves_what_was_there(folder, tmp_path, monkeypatch):
    path = write_yolo_list(selection(), tmp_path / "train.txt", folder)
    before = path.read_bytes()

    def fails(*_):
        raise OSError("no space left")

    monkeypatch.setattr(type(path), "replace", fails)
    with pytest.raises(OSError, match="no space left"):
        write_yolo_list(selection(kept=(0,)), path, folder)
    assert path.read_bytes() == before
    assert files(tmp_path) == sorted([*(f"all/{name}" for name in NAMES), "train.txt"])


def test_fiftyone_gets_labels_with_the_reasons_as_attributes(folder, tmp_path):
    path = fiftyone_samples(selection(labels=["cat", "cat", ["cat", "dog"], "dog", "dog"]), tmp_path / "f.json", folder)
    content = json.loads(path.read_text())
    labels = content["labels"]
    assert set(labels) == {str(folder / name) for name in NAMES}
    assert labels[str(folder / NAMES[1])] == {
        "label": "cat",
        "attributes": {"status": "redundant", "representative": str(folder / NAMES[0]), "distance": 0.25},
    }
    assert [target["label"] for target in labels[str(folder / NAMES[2])]] == ["cat", "dog"]
    by_status = json.loads(fiftyone_samples(selection(labels=None), path, folder).read_text())["labels"]
    assert by_status[str(folder / NAMES[1])]["label"] == "redundant"
    kept = json.loads(fiftyone_samples(selection(), path, folder, label="status", kept_only=True).read_text())["labels"]
    assert {target["label"] for target in kept.values()} == {"kept"}
    assert len(kept) == 4
    outlier = selection()
    outlier.representative[1] = -1
    alone = json.loads(fiftyone_samples(outlier, path, folder).read_text())["labels"][str(folder / NAMES[1])]
    assert alone["attributes"] == {"status": "redundant"}


def test_fiftyone_gets_the_names_of_classes(folder, tmp_path):
    path = tmp_path / "f.json"
    fiftyone_samples(selection(labels=[0, 0, [0, 1], 1, 2]), path, folder, class_names=["cat", "dog"])
    table = json.loads(path.read_text())["labels"].values()
    found = [[one["label"] for one in of] if isinstance(of, list) else of["label"] for of in table]
    assert found == ["cat", "cat", ["cat", "dog"], "dog", "2"]


def test_errors_of_fiftyone(folder, tmp_path):
    path = tmp_path / "f.json"
    with pytest.raises(ValueError, match="`label` must be one of 'class', 'status', got 'kind'"):
        fiftyone_samples(selection(), path, folder, label="kind")
    with pytest.raises(ValueError, match="`label` must be 'status' where the selection has no labels, got 'class'"):
        fiftyone_samples(selection(labels=None), path, folder, label="class")
    for text in ("not json", "[]", '{"labels": {}}', '{"info": 3}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="`path` must be a new file, or one that was written here before"):
            fiftyone_samples(selection(), path, folder)
        assert path.read_text() == text
