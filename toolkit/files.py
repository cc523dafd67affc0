"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def write_whole(path: Path, parts: Iterable[str]) -> Path:
    """Write a file so that under its name there is either all of it, on disk, or what was there before.

    Args:
        path: The file, in a folder that exists.
        parts: Its text, in pieces; UTF-8, with line ends as they are.

    Returns:
        The path.

    Raises:
        OSError: If it cannot be written; nothing of it is left.

    Example:
        >>> import tempfile
        >>> write_whole(Path(tempfile.mkdtemp()) / "a.txt", ["some ", "words"]).read_text()
        'some words'
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("w", encoding="utf-8", newline="\n") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    return path
