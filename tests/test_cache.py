import pytest

from toolkit import cache


def test_folder_is_the_argument_then_the_variable_then_the_home(monkeypatch, tmp_path):
    assert cache.cache_folder(tmp_path) == tmp_path
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "named"))
    assert cache.cache_folder() == tmp_path / "named"
    monkeypatch.delenv("TOOLKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_folder() == tmp_path / "xdg" / "dataset-pruning-toolkit"


def test_command_shows_and_clears_only_what_is_ours(tmp_path, capsys):
    (cache.writable_folder("features", "key", tmp_path) / "a.npy").write_bytes(b"0" * 2048)
    (tmp_path / "mine.txt").write_text("not the toolkit's")
    cache.main(["--cache_dir", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "2.0 KiB" in shown
    assert "features       1 kept" in shown
    cache.main(["--cache_dir", str(tmp_path), "--clear"])
    assert "2.0 KiB freed" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_unwritable_folder_names_the_argument_and_the_variable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"`cache_dir` must be a folder that can be written to, got .*TOOLKIT_CACHE"):
        cache.writable_folder("features", "key", tmp_path / "file")
