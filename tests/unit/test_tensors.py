"""Reading safetensors documents in place: what the library writes, and what nobody should."""

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from wire_documents import counting, document, span

from consumer import tensors
from consumer.errors import ParkError, TooLarge, Undecodable

DTYPES = ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]
DTYPES += ["float16", "float32", "float64"]

some_arrays = st.lists(
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(max_dims=5, max_side=4))
    ),
    max_size=4,
)
# The library writes no valid document of neither tensors nor metadata.
some_metadata = st.dictionaries(st.text(max_size=5), st.text(max_size=20), min_size=1, max_size=3)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


def _bits(arrays: list[npt.NDArray[Any]]) -> list[tuple[np.dtype[Any], tuple[int, ...], bytes]]:
    """Return what makes arrays equal voxel by voxel, NaN included."""
    return [(array.dtype, array.shape, array.tobytes()) for array in arrays]


@given(some_arrays, some_metadata)
def test_what_was_written_is_read_back(
    arrays: list[npt.NDArray[Any]], metadata: dict[str, str]
) -> None:
    found, _ = tensors.read(tensors.write(arrays, metadata))

    assert _bits(found) == _bits(arrays)


@given(some_arrays, some_metadata)
def test_metadata_that_was_written_is_read_back(
    arrays: list[npt.NDArray[Any]], metadata: dict[str, str]
) -> None:
    assert tensors.read(tensors.write(arrays, metadata))[1] == metadata


@given(some_arrays)
def test_what_the_library_wrote_is_read(arrays: list[npt.NDArray[Any]]) -> None:
    body = safetensors.numpy.save({str(i): array for i, array in enumerate(arrays)})

    assert _bits(tensors.read(body)[0]) == _bits(arrays)


@given(some_arrays)
def test_the_library_reads_what_was_written(arrays: list[npt.NDArray[Any]]) -> None:
    found = safetensors.numpy.load(tensors.write(arrays, {"tiles": "{}"}))

    assert _bits([found[str(i)] for i in range(len(arrays))]) == _bits(arrays)


@pytest.mark.parametrize(
    "array",
    [counting(4, 6)[::2, ::3], counting(4, 6).T, counting(4, 6, dtype=">i4")],
    ids=["strided", "transposed", "big-endian"],
)
def test_an_array_in_any_layout_keeps_its_values(array: npt.NDArray[Any]) -> None:
    (found,), _ = tensors.read(tensors.write([array], {}))

    np.testing.assert_array_equal(found, array)


def test_a_tensor_is_a_view_into_the_body() -> None:
    body = tensors.write([counting(3, 5)], {})

    (found,), _ = tensors.read(body)

    assert np.shares_memory(found, np.frombuffer(body, np.uint8))


def test_a_tensor_cannot_be_written_to() -> None:
    (found,), _ = tensors.read(tensors.write([counting(3, 5)], {}))

    assert not found.flags.writeable


def test_a_tensor_that_starts_at_an_odd_byte_is_read() -> None:
    array = counting(4, dtype="float64")
    body = document(
        {"0": span(0, 32, [4], "F64")} | {"__metadata__": {"odd": "x"}}, array.tobytes()
    )
    odd = body if body[0] % 2 else document(body[8:-32] + b" ", array.tobytes())

    np.testing.assert_array_equal(tensors.read(odd)[0][0], array)


def test_a_document_without_metadata_has_none() -> None:
    assert tensors.read(document({}))[1] == {}


def test_tensors_may_lie_in_another_order_than_their_numbers() -> None:
    header = {"0": span(4, 6, [2]), "1": span(0, 4, [4])}

    found, _ = tensors.read(document(header, bytes(range(6))))

    assert [array.tolist() for array in found] == [[4, 5], [0, 1, 2, 3]]


HUGE = 10**4000
UNDECODABLE = {
    "nothing": b"",
    "seven bytes": bytes(7),
    "header length beyond the body": (100).to_bytes(8, "little") + b"{}",
    "header length one beyond the body": (3).to_bytes(8, "little") + b"{}",
    "header length of 2**63": (1 << 63).to_bytes(8, "little") + b"{}",
    "header length of 2**64 - 1": b"\xff" * 8 + b"{}",
    "empty header": document(b""),
    "header is not JSON": document(b"{]"),
    "header is not UTF-8": document(b'{"\xff": 1}'),
    "header is a list": document([]),
    "header is a number": document(b"1"),
    "header is null": document(b"null"),
    "header goes on after its end": document(b"{}{}"),
    "header is NaN": document(b"NaN"),
    "header nested beyond the parser's depth": document(b'{"0":' + b"[" * 10_000 + b"]" * 10_000),
    "number of 100,000 digits": document(b'{"0":' + b"9" * 100_000 + b"}"),
    "metadata is a list": document({"__metadata__": []}),
    "metadata is null": document({"__metadata__": None}),
    "metadata holds a number": document({"__metadata__": {"tiles": 1}}),
    "metadata holds an object": document({"__metadata__": {"tiles": {}}}),
    "numbering starts at 1": document({"1": span()}, bytes(6)),
    "numbering has a gap": document({"0": span(), "2": span(6, 12)}, bytes(12)),
    "number with a leading zero": document({"00": span()}, bytes(6)),
    "name is no number": document({"tile": span()}, bytes(6)),
    "name is empty": document({"": span()}, bytes(6)),
    "one name twice": document(
        b'{"0":' + json.dumps(span()).encode() + b',"0":' + json.dumps(span(6, 12)).encode() + b"}",
        bytes(12),
    ),
    "entry is a list": document({"0": []}),
    "entry is null": document({"0": None}),
    "entry is a huge number": document({"0": 1 << 10_000}),
    "entry lacks the dtype": document({"0": {"shape": [1], "data_offsets": [0, 1]}}, bytes(1)),
    "entry lacks the offsets": document({"0": {"shape": [1], "dtype": "U8"}}, bytes(1)),
    "entry has one more key": document({"0": span() | {"strides": [1]}}, bytes(6)),
    "dtype BF16": document({"0": span(dtype="BF16", stop=12)}, bytes(12)),
    "dtype F8_E4M3": document({"0": span(dtype="F8_E4M3")}, bytes(6)),
    "dtype C64": document({"0": span(dtype="C64", stop=48)}, bytes(48)),
    "dtype O": document({"0": span(dtype="O", stop=48)}, bytes(48)),
    "dtype in lower case": document({"0": span(dtype="u8")}, bytes(6)),
    "dtype in NumPy's words": document({"0": span(dtype="uint8")}, bytes(6)),
    "dtype is a number": document({"0": span(dtype=8)}, bytes(6)),
    "dtype is a list": document({"0": span(dtype=["U8"])}, bytes(6)),
    "dtype is null": document({"0": span(dtype=None)}, bytes(6)),
    "shape is a number": document({"0": span(shape=6)}, bytes(6)),
    "shape is text": document({"0": span(shape="6")}, bytes(6)),
    "shape is an object": document({"0": span(shape={"0": 6})}, bytes(6)),
    "shape holds a float": document({"0": span(shape=[6.0])}, bytes(6)),
    "shape holds a bool": document({"0": span(0, 1, [True])}, bytes(1)),
    "shape holds text": document({"0": span(shape=["6"])}, bytes(6)),
    "shape holds NaN": document({"0": span(shape=[float("nan")])}, bytes(6)),
    "shape holds infinity": document({"0": span(shape=[float("inf")])}, bytes(6)),
    "shape holds zero": document({"0": span(0, 0, [0])}),
    "shape holds zero and the impossible": document({"0": span(0, 0, [1 << 62, 0])}),
    "shape is negative twice": document({"0": span(shape=[-2, -3])}, bytes(6)),
    "shape is empty": document({"0": span(0, 1, [])}, bytes(1)),
    "shape of 9 axes": document({"0": span(0, 1, [1] * 9)}, bytes(1)),
    "shape of 100 axes": document({"0": span(0, 1, [1] * 100)}, bytes(1)),
    "shape wraps to 0 in 64 bits": document({"0": span(0, 0, [1 << 32, 1 << 32])}),
    "shape wraps to 6 in 64 bits": document({"0": span(0, 6, [(1 << 64) + 6])}, bytes(6)),
    "shape and offsets are huge": document({"0": span(0, 10**400, [10**400])}, bytes(6)),
    "shape of 8 huge numbers": document({"0": span(0, 1, [HUGE - 1] * 8)}, bytes(1)),
    "offsets are a number": document({"0": span() | {"data_offsets": 6}}, bytes(6)),
    "offsets are one": document({"0": span() | {"data_offsets": [0]}}, bytes(6)),
    "offsets are three": document({"0": span() | {"data_offsets": [0, 3, 6]}}, bytes(6)),
    "offsets are floats": document({"0": span(0.0, 6.0)}, bytes(6)),
    "offsets are bools": document({"0": span(False, True, [1])}, bytes(1)),
    "offsets are negative": document({"0": span(-6, 0)}, bytes(6)),
    "offsets are swapped": document({"0": span(6, 0)}, bytes(6)),
    "offsets hold too little for the shape": document({"0": span(0, 5)}, bytes(5)),
    "offsets hold too much for the shape": document({"0": span(0, 7)}, bytes(7)),
    "offsets end beyond the body": document({"0": span()}, bytes(5)),
    "offsets lie beyond the body": document({"0": span(6, 12)}, bytes(6)),
    "offsets end before the body": document({"0": span()}, bytes(7)),
    "offsets start late": document({"0": span(1, 7)}, bytes(7)),
    "offsets leave a gap": document({"0": span(), "1": span(7, 13)}, bytes(13)),
    "offsets overlap": document({"0": span(), "1": span(5, 11)}, bytes(11)),
    "offsets are the same twice": document({"0": span(), "1": span()}, bytes(6)),
    "data without a tensor": document({}, bytes(1)),
    "BOOL holds a byte that is neither 0 nor 1": document(
        {"0": span(0, 2, [2], "BOOL")}, b"\x01\x02"
    ),
}


@pytest.mark.parametrize("body", UNDECODABLE.values(), ids=UNDECODABLE)
def test_a_document_that_does_not_hold_together_is_undecodable(body: bytes) -> None:
    with pytest.raises(Undecodable):
        tensors.read(body)


REASONS = {
    "header length": ((100).to_bytes(8, "little") + b"{}", "100"),
    "missing name": (document({"7": span()}, bytes(6)), "'7'"),
    "dtype": (document({"0": span(dtype="BF16", stop=12)}, bytes(12)), "'BF16'"),
    "shape": (document({"0": span(shape=[-2, -3])}, bytes(6)), "[-2, -3]"),
    "offsets": (document({"0": span(-6, 0)}, bytes(6)), "[-6, 0]"),
    "size": (document({"0": span(0, 5)}, bytes(5)), "[0, 5]"),
    "gap": (document({"0": span(), "1": span(7, 13)}, bytes(13)), "7"),
    "rest": (document({"0": span()}, bytes(999)), "999"),
}


@pytest.mark.parametrize(("body", "value"), REASONS.values(), ids=REASONS)
def test_the_reason_shows_the_value(body: bytes, value: str) -> None:
    with pytest.raises(Undecodable) as caught:
        tensors.read(body)

    assert value in str(caught.value)


LONG = {
    "tensor's name": document({"a" * 100_000: span()}, bytes(6)),
    "dtype": document({"0": span(dtype="a" * 100_000)}, bytes(6)),
    "shape": document({"0": span(shape=[1] * 100_000)}, bytes(6)),
    "offsets": document({"0": span() | {"data_offsets": [1] * 100_000}}, bytes(6)),
    "huge offset": document({"0": span(HUGE, HUGE + 6)}, bytes(6)),
    "key of an entry": document({"0": {"a" * 100_000: 1}}, bytes(6)),
}


@pytest.mark.parametrize("body", LONG.values(), ids=LONG)
def test_the_reason_stays_short_however_long_the_value(body: bytes) -> None:
    with pytest.raises(Undecodable) as caught:
        tensors.read(body)

    assert len(str(caught.value)) <= 1000


def test_a_header_of_the_most_bytes_is_read() -> None:
    assert tensors.read(document(b"{}".ljust(tensors.MAX_HEADER_BYTES))) == ([], {})


def test_a_header_of_one_byte_more_is_too_large() -> None:
    body = document(b"{}".ljust(tensors.MAX_HEADER_BYTES + 1))

    with pytest.raises(TooLarge, match=str(tensors.MAX_HEADER_BYTES + 1)):
        tensors.read(body)


def test_a_document_cut_anywhere_is_undecodable() -> None:
    body = tensors.write([counting(1, 2, 3), counting(1, 2, 3, dtype="float32")], {"tiles": "{}"})

    assert [cut for cut in range(len(body)) if not _is_undecodable(body[:cut])] == []


def _is_undecodable(body: bytes) -> bool:
    try:
        tensors.read(body)
    except Undecodable:
        return True
    return False


any_entry = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["U8", "F32", "BOOL", "X"]) | json_values,
        "shape": st.lists(st.integers(-1, 8) | st.integers(), max_size=10) | json_values,
        "data_offsets": st.lists(st.integers(-1, 40) | st.integers(), max_size=3) | json_values,
    }
)
any_header = st.dictionaries(
    st.sampled_from(["0", "1", "2", "__metadata__", "x"]), any_entry | json_values, max_size=4
)


@settings(max_examples=250)
@given(any_header | json_values, st.binary(max_size=40))
def test_any_header_gives_views_into_the_body_or_a_reason_to_park(header: Any, data: bytes) -> None:
    body = document(header, data)
    try:
        found, _ = tensors.read(body)
    except ParkError:
        return

    assert sum(array.nbytes for array in found) == len(data)


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_document_without_tensors_or_a_reason_to_park(body: bytes) -> None:
    try:
        found, _ = tensors.read(body)
    except ParkError:
        return

    assert found == []
