"""Rounding and clipping for producers who ask for it."""

import numpy as np
import pytest

from consumer.casting import cast
from consumer.errors import UnsafeCast

CASES = {
    "halves go to the even integer": ([0.5, 1.5, 2.5, -0.5], "float32", "uint8", [0, 2, 2, 0], 0),
    "beyond the range goes to its end": ([-1.0, 300.0], "float32", "uint8", [0, 255], 2),
    "just within the range is not clipped": ([-0.4, 255.4], "float64", "uint8", [0, 255], 0),
    "infinities go to the ends": ([-np.inf, np.inf], "float16", "int32", [-(2**31), 2**31 - 1], 2),
    "the largest uint32 is not exact in float32": (
        [4294967296.0],
        "float32",
        "uint32",
        [2**32 - 1],
        0,
    ),
    "the largest int64 is not exact in float64": (
        [1e19, -1e19],
        "float64",
        "int64",
        [2**63 - 1, -(2**63)],
        2,
    ),
    "integers are clipped as integers": ([2**63 + 1, 5], "uint64", "int64", [2**63 - 1, 5], 1),
    "negative integers go to zero": ([-5, 7], "int8", "uint64", [0, 7], 1),
    "numbers become bool by rounding": ([0.4, 0.6, 9.0], "float32", "bool", [False, True, True], 1),
    "bool becomes any integer": ([True, False], "bool", "uint16", [1, 0], 0),
    "a safe cast stays as it is": ([1, 2], "uint8", "float32", [1.0, 2.0], 0),
    "floats round to fewer bits": ([1.0, 2.5], "float64", "float32", [1.0, 2.5], 0),
    "floats beyond the range go to its end": (
        [1e300, -1e300],
        "float64",
        "float16",
        [65504, -65504],
        2,
    ),
    "floats keep infinities": ([np.inf], "float64", "float16", [np.inf], 0),
}


@pytest.mark.parametrize(
    ("values", "given", "wanted", "expected", "clipped"), CASES.values(), ids=CASES
)
def test_casting(
    values: list[float], given: str, wanted: str, expected: list[float], clipped: int
) -> None:
    found, count = cast(np.array(values, given), np.dtype(wanted))

    assert found.dtype == wanted
    np.testing.assert_array_equal(found, np.array(expected, wanted))
    assert count == clipped


def test_nan_has_no_integer() -> None:
    with pytest.raises(UnsafeCast, match="NaN has no value in uint8"):
        cast(np.array([np.nan]), np.dtype("uint8"))


def test_nan_stays_nan_among_floats() -> None:
    found, clipped = cast(np.array([np.nan]), np.dtype("float32"))

    assert np.isnan(found).all()
    assert clipped == 0
