"""Which store keys and array paths are taken, and that no two of them share a file."""

import itertools
import posixpath
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from consumer.errors import UnsafePath
from consumer.keys import STATE_FOLDER, check_array_path, check_store_key

Check = Callable[[str], str]

GOOD_STORES = {
    "one segment": "d.zarr",
    "folders": "plate7/well_A1/d_output.zarr",
    "spaces": "my plate/d output.zarr",
    "beyond ASCII, composed": "Größe/d.zarr",
    "state folder's name further down": "a/.tiles/d.zarr",
    "dots inside": "a..b/v1.2.zarr",
    "three dots": "a/.../d.zarr",
    "zarr without its dot": "zarr/d.zarr",
    "suffix in capitals in the middle": "a.ZARR/d.zarr",
    "wildcards of a topic": "#/*.zarr",
    "backslash": "a\\b.zarr",
    "255 bytes": "a" * 250 + ".zarr",
}
GOOD_ARRAYS = {
    "one segment": "img",
    "group": "g1/img",
    "deep": "/".join("abd" * 20),
    "name that begins with c": "c0/cc",
    "capital C": "C",
    "dot inside": "v1.2",
    "segment of 255 bytes": "a" * 255,
    "1024 bytes": "/".join(["a" * 255] * 3 + ["a" * 254, "b"]),
}
BAD_ANYWHERE = {
    "parent first": "../{}",
    "parent in the middle": "a/../{}",
    "absolute": "/{}",
    "two slashes first": "//{}",
    "two slashes in the middle": "a//{}",
    "slash last": "{}/",
    "here first": "./{}",
    "here in the middle": "a/./{}",
    "NUL": "a\0b/{}",
    "newline": "a\nb/{}",
    "delete": "a\x7fb/{}",
    "C1 control": "a\x85b/{}",
    "decomposed": unicodedata.normalize("NFD", "Größe") + "/{}",
    "compatibility angstrom": "\u212b/{}",
    "lone surrogate": "\ud800/{}",
}
BAD_STORES = {
    "empty": "",
    "here": ".",
    "parent": "..",
    "no suffix": "plate7/d",
    "suffix in capitals": "d.ZARR",
    "nothing but the suffix": ".zarr",
    "nothing but the suffix last": "a/.zarr",
    "suffix in the middle": "a.zarr/b.zarr",
    "bare suffix in the middle": ".zarr/b.zarr",
    "state folder": ".tiles/d.zarr",
    "state folder with a folder": ".tiles/a/d.zarr",
    "parent last": "a.zarr/..",
    "256 bytes": "a" * 251 + ".zarr",
    "257 bytes of fewer characters": "é" * 126 + ".zarr",
    "257 bytes of fewer characters in short segments": f"{'é' * 50}/{'é' * 50}/{'é' * 25}.zarr",
} | {name: text.format("d.zarr") for name, text in BAD_ANYWHERE.items()}
BAD_ARRAYS = {
    "empty": "",
    "here": ".",
    "parent": "..",
    "chunk folder": "c",
    "chunk folder below a group": "g/c",
    "group named like the chunk folder": "c/img",
    "metadata": "zarr.json",
    "metadata below a group": "g/zarr.json",
    "group named like the metadata": "zarr.json/img",
    "dot first": ".img",
    "dot first below a group": "g/.img",
    "group with a dot first": ".g/img",
    "state folder": ".tiles",
    "state folder below a group": "g/.tiles",
    "store suffix": "img.zarr",
    "store suffix of a group": "g.zarr/img",
    "segment of 256 bytes": "a" * 256,
    "segment of 256 bytes and fewer characters": "é" * 128,
    "1025 bytes": "/".join(["a" * 255] * 3 + ["a" * 254, "bb"]),
} | {name: text.format("img") for name, text in BAD_ANYWHERE.items()}


@pytest.mark.parametrize("key", GOOD_STORES.values(), ids=GOOD_STORES)
def test_a_safe_store_key_is_returned_as_given(key: str) -> None:
    assert check_store_key(key) == key


@pytest.mark.parametrize("path", GOOD_ARRAYS.values(), ids=GOOD_ARRAYS)
def test_a_safe_array_path_is_returned_as_given(path: str) -> None:
    assert check_array_path(path) == path


@pytest.mark.parametrize("key", BAD_STORES.values(), ids=BAD_STORES)
def test_an_unsafe_store_key_is_refused(key: str) -> None:
    with pytest.raises(UnsafePath):
        check_store_key(key)


@pytest.mark.parametrize("path", BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_an_unsafe_array_path_is_refused(path: str) -> None:
    with pytest.raises(UnsafePath):
        check_array_path(path)


@pytest.mark.parametrize(
    ("check", "name", "what"),
    [
        *((check_store_key, key, "store key") for key in BAD_STORES.values()),
        *((check_array_path, path, "array path") for path in BAD_ARRAYS.values()),
    ],
    ids=[f"store: {case}" for case in BAD_STORES] + [f"array: {case}" for case in BAD_ARRAYS],
)
def test_the_reason_names_what_is_wrong_and_its_value(check: Check, name: str, what: str) -> None:
    with pytest.raises(UnsafePath) as caught:
        check(name)

    assert str(caught.value).startswith(f"{what} {name[:80]!r}")


@pytest.mark.parametrize("check", [check_store_key, check_array_path], ids=["store", "array"])
def test_the_reason_for_a_very_long_name_is_short(check: Check) -> None:
    with pytest.raises(UnsafePath) as caught:
        check("a" * 100_000)

    assert len(str(caught.value)) < 200


any_text = st.text(st.characters() | st.characters(categories=["Cs"]) | st.sampled_from("./"))


def _accepted(check: Check, name: str) -> bool:
    try:
        check(name)
    except UnsafePath:
        return False
    return True


@given(any_text.map(lambda text: f"{text}.zarr"))
@example("\ud800.zarr")
def test_whatever_the_text_an_accepted_store_key_is_the_path_below_the_root(text: str) -> None:
    assert not _accepted(check_store_key, text) or _below_root(text) == f"/out/{text}"


@given(any_text)
@example("\ud800")
def test_whatever_the_text_an_accepted_array_path_is_the_path_below_the_root(text: str) -> None:
    assert not _accepted(check_array_path, text) or _below_root(text) == f"/out/{text}"


def _below_root(path: str) -> str:
    return posixpath.normpath(posixpath.join("/out", path))


# Names that are hard to tell apart, or that the consumer and Zarr use themselves: enough to meet
# every rule in every place, few enough to try all pairs.
SEGMENTS = ["a", "b", "c", "d", "zarr.json", "epochs", "ledger", ".tiles", "a.zarr", "c.zarr"]
SEGMENTS += ["A", "...", ".zarr", ".", "..", "", "é", "e\u0301"]


@pytest.fixture(scope="module")
def stores() -> list[str]:
    """Every accepted store key of up to three segments."""
    return [key for key in _paths(3) if _accepted(check_store_key, key)]


@pytest.fixture(scope="module")
def arrays() -> list[str]:
    """Every accepted array path of up to three segments."""
    return [path for path in _paths(3) if _accepted(check_array_path, path)]


def _paths(most: int) -> list[str]:
    return [
        "/".join(names)
        for n in range(1, most + 1)
        for names in itertools.product(SEGMENTS, repeat=n)
    ]


def _parents(path: str) -> list[str]:
    segments = path.split("/")
    return ["/".join(segments[:n]) for n in range(1, len(segments))]


def test_no_accepted_store_lies_inside_another(stores: list[str]) -> None:
    assert not [key for key in stores if not set(stores).isdisjoint(_parents(key))]


def test_no_accepted_array_is_or_lies_in_another_arrays_metadata_or_chunks(
    arrays: list[str],
) -> None:
    own = {f"{path}/{name}" for path in arrays for name in ("zarr.json", "c")}

    assert not [path for path in arrays if not own.isdisjoint([path, *_parents(path)])]


def test_no_two_accepted_arrays_of_any_stores_are_one_folder(
    stores: list[str], arrays: list[str]
) -> None:
    short = [path for path in arrays if path.count("/") < 2]
    folders = [_below_root(f"{store}/{array}") for store in stores for array in short]

    assert len(set(folders)) == len(stores) * len(short)


def test_no_accepted_store_lies_in_the_folder_of_the_consumers_state(stores: list[str]) -> None:
    assert not [key for key in stores if key.startswith(f"{STATE_FOLDER}/")]


def test_no_epoch_lies_in_another_stores_ledger_or_the_other_way_round(stores: list[str]) -> None:
    folders = {f"{store}/{name}" for store in stores for name in ("epochs", "ledger")}

    assert not [folder for folder in folders if not folders.isdisjoint(_parents(folder))]
