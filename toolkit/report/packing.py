"""Values and arrays as text inside an HTML page, where nothing that they hold can end the element they are in."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

#: What a page's typed arrays can hold, the smallest first.
_WHOLE = ("uint8", "int8", "uint16", "int16", "int32", "uint32")


def json_text(value: Any) -> str:
    r"""JSON in ASCII that may stand inside `<script>`: `<`, `>` and `&` are written as `\u003c` and so on.

    Example:
        >>> json_text("</script><!--")
        '"\\u003c/script\\u003e\\u003c!--"'
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def plain(value: Any) -> Any:
    """A value as JSON can write it: numbers that are not finite become None, other objects their text.

    Example:
        >>> plain({"a": (1, np.float32(0.5)), 2: float("nan"), "b": {3}})
        {'a': [1, 0.5], '2': None, 'b': '{3}'}
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value)


def narrowest(array: npt.ArrayLike) -> npt.NDArray[Any]:
    """The same numbers in the smallest type that a page's typed arrays have for them, little-endian.

    Args:
        array: Booleans, integers within 32 bits, float32 or float64.

    Raises:
        ValueError: If an integer is out of range.

    Example:
        >>> [narrowest(values).dtype.name for values in ([0, 300], [-1, 5], [True])]
        ['uint16', 'int8', 'uint8']
    """
    values = np.asarray(array)
    if values.dtype.kind == "f":
        return values.astype("<f4" if values.dtype.itemsize <= 4 else "<f8")
    if values.dtype.kind == "b":
        return values.astype(np.uint8)
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    for name in _WHOLE:
        kind = np.iinfo(name)
        if kind.min <= low and high <= kind.max:
            return values.astype(np.dtype(name).newbyteorder("<"))
    raise ValueError(f"`array` must hold integers within 32 bits, got {low} to {high}.")


def packed(content: bytes) -> str:
    """Bytes deflated and in base64."""
    return base64.b64encode(zlib.compress(content, 6)).decode()


def array_element(name: str, array: npt.ArrayLike) -> str:
    r"""An array as an element of a page, which its script reads by name.

    Example:
        >>> array_element("codes", np.zeros(3, np.int64))
        '<script type="text/plain" id="array-codes" data-type="uint8">eJxjYGAAAAADAAE=</script>\n'
    """
    values = narrowest(array)
    return (
        f'<script type="text/plain" id="array-{name}" data-type="{values.dtype.name}">'
        f"{packed(np.ascontiguousarray(values).tobytes())}</script>\n"
    )


def text_element(name: str, value: Any) -> str:
    """A value that is long as JSON, as an element of a page."""
    content = packed(json.dumps(value, ensure_ascii=True).encode())
    return f'<script type="text/plain" id="array-{name}" data-type="json">{content}</script>\n'
