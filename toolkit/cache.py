"""The folder where features, selections, baselines and drawn data sets are kept between runs.

`python -m toolkit.cache` shows where it is and what is in it; `python -m toolkit.cache --clear` empties it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path

#: Environment variable that names the folder.
ENVIRONMENT_VARIABLE = "TOOLKIT_CACHE"
#: What the folder holds, one sub-folder each.
KINDS = ("features", "selections", "baselines", "scenes")


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Where results are kept: the argument, else `$TOOLKIT_CACHE`, else `~/.cache/dataset-pruning-toolkit`."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    if os.environ.get(ENVIRONMENT_VARIABLE):
        return Path(os.environ[ENVIRONMENT_VARIABLE]).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "dataset-pruning-toolkit"


def writable_folder(kind: str, key: str, cache_dir: str | Path | None = None) -> Path:
    """The folder of one cached result, created and tried out before any long work starts.

    Raises:
        OSError: If nothing can be written there; the message says how to choose another folder.
    """
    folder = cache_folder(cache_dir) / kind / key
    hint = f" Name another with `cache_dir` or the environment variable {ENVIRONMENT_VARIABLE}."
    return check_writable(folder, "cache_dir", hint)


def check_writable(folder: Path, name: str, hint: str = "") -> Path:
    """A folder, made if need be, once a file could be written into it; else an error that names the argument."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0" * 4096)
            file.flush()
    except OSError as error:
        raise OSError(
            f"`{name}` must be a folder that can be written to, got {str(folder)!r} ({error.strerror or error}).{hint}"
        ) from error
    return folder


def folder_size(folder: Path) -> int:
    """Bytes in the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def format_size(size: float) -> str:
    """Bytes in words.

    Example:
        >>> format_size(3_500_000)
        '3.3 MiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def clear(cache_dir: str | Path | None = None) -> int:
    """Delete what the toolkit keeps there, and nothing else; returns the bytes freed."""
    freed = 0
    for kind in KINDS:
        folder = cache_folder(cache_dir) / kind
        freed += folder_size(folder)
        if folder.is_dir():
            shutil.rmtree(folder)
    return freed


def main(args: list[str] | None = None) -> None:
    """Show or clear the cache folder."""
    parser = argparse.ArgumentParser(prog="python -m toolkit.cache", description=main.__doc__)
    parser.add_argument("--cache_dir", help=f"the folder; ${ENVIRONMENT_VARIABLE} or a folder in ~/.cache if not given")
    parser.add_argument("--clear", action="store_true", help="delete what the toolkit keeps there")
    options = parser.parse_args(args)
    folder = cache_folder(options.cache_dir)
    if options.clear:
        print(f"{folder}: {format_size(clear(options.cache_dir))} freed")
        return
    print(f"{folder}: {format_size(sum(folder_size(folder / kind) for kind in KINDS))}")
    for kind in KINDS:
        entries = sorted((folder / kind).iterdir()) if (folder / kind).is_dir() else []
        print(f"  {kind:<11} {len(entries):>4} kept  {format_size(folder_size(folder / kind)):>10}")


if __name__ == "__main__":
    main()
