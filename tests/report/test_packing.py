import base64
import json
import zlib

import numpy as np
import pytest

from toolkit.report.packing import array_element, json_text, narrowest, plain, text_element

NASTY = ["</script>", "<!--", "<img src=x onerror=alert(1)>", "]]>", "&lt;", "\u2028", "ü \udcff", '"\\']


@pytest.mark.parametrize("text", NASTY)
def test_json_ends_no_element_and_reads_back(text):
    written = json_text({"name": text})
    assert json.loads(written) == {"name": text}
    assert not set(written) & set("<>&\u2028")
    assert written.isascii()


def test_json_refuses_what_javascript_cannot_read():
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_text(float("nan"))


def content_of(element):
    return zlib.decompress(base64.b64decode(element.partition(">")[2].partition("<")[0]))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.array([True, False]), "uint8"),
        (np.array([0, 255]), "uint8"),
        (np.array([-1, 127]), "int8"),
        (np.array([0, 256]), "uint16"),
        (np.array([-1, 128]), "int16"),
        (np.array([-1, 40_000]), "int32"),
        (np.array([0, 70_000]), "int32"),
        (np.array([0, 2**32 - 1], np.int64), "uint32"),
        (np.array([], np.int64), "uint8"),
        (np.array([[1, 2], [3, -4]]), "int8"),
        (np.array([0.5, np.nan], np.float16), "float32"),
        (np.array([0.1, np.nan], np.float32), "float32"),
        (np.array([0.1, np.inf]), "float64"),
        (np.array([0.1], ">f8"), "float64"),
    ],
)
def test_arrays_read_back_from_the_narrowest_type(values, kind):
    assert narrowest(values).dtype.name == kind
    element = array_element("name", values)
    assert f'id="array-name" data-type="{kind}"' in element
    read = np.frombuffer(content_of(element), np.dtype(kind).newbyteorder("<")).reshape(values.shape)
    assert np.array_equal(read, values, equal_nan=values.dtype.kind == "f")


def test_integers_beyond_32_bits_are_refused():
    with pytest.raises(ValueError, match="`array` must hold integers within 32 bits, got 0 to 4294967296"):
        narrowest([0, 2**32])


def test_texts_read_back():
    assert json.loads(content_of(text_element("ids", NASTY))) == NASTY


def test_settings_become_plain_values():
    settings = {"a": np.int64(3), 4: [np.float32(0.5), None, float("inf")], "c": (True, NASTY), "d": np.arange(2)}
    assert plain(settings) == {"a": 3, "4": [0.5, None, None], "c": [True, NASTY], "d": "[0 1]"}
