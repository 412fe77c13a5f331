"""Rounds and clips values to a dtype, for producers who ask for it."""

from typing import Any

import numpy as np
import numpy.typing as npt

from consumer.errors import UnsafeCast


def cast(values: npt.NDArray[Any], dtype: np.dtype[Any]) -> tuple[npt.NDArray[Any], int]:
    """Return `values` in `dtype`, and how many had to be clipped to its range.

    Integers and bool take the nearest value, halves the even one. Floating-point dtypes keep
    infinities and NaN.

    Raises
    ------
    UnsafeCast
        Where NaN would become an integer.
    """
    if np.can_cast(values.dtype, dtype, "safe"):
        return values.astype(dtype), 0
    if dtype.kind == "f":
        return _to_float(values, dtype)
    if values.dtype.kind == "f":
        return _float_to_integer(values, dtype)
    return _integer_to_integer(values, dtype)


def _range(dtype: np.dtype[Any]) -> tuple[int, int]:
    if dtype.kind == "b":
        return 0, 1
    return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)


def _to_float(values: npt.NDArray[Any], dtype: np.dtype[Any]) -> tuple[npt.NDArray[Any], int]:
    most = np.finfo(dtype).max
    with np.errstate(over="ignore"):
        found = values.astype(dtype)
    clipped = np.isinf(found) & np.isfinite(values)
    found[clipped] = np.copysign(most, found[clipped])
    return found, int(clipped.sum())


def _float_to_integer(
    values: npt.NDArray[Any], dtype: np.dtype[Any]
) -> tuple[npt.NDArray[Any], int]:
    # float16 would overflow in the comparisons.
    rounded = np.rint(values, dtype=np.result_type(values.dtype, np.float32))
    if np.isnan(rounded).any():
        raise UnsafeCast(f"tile 0: NaN has no value in {dtype}; replace it before publishing")
    low, high = _range(dtype)
    # In float32 the largest uint32 rounds up to 2**32, so what reaches it is set, not converted.
    below, above = rounded <= low, rounded >= high
    found = np.where(below | above, 0, rounded).astype(dtype)
    found[below], found[above] = low, high
    return found, int(((rounded < low) | (rounded > high)).sum())


def _integer_to_integer(
    values: npt.NDArray[Any], dtype: np.dtype[Any]
) -> tuple[npt.NDArray[Any], int]:
    (low, high), (least, most) = _range(values.dtype), _range(dtype)
    bounded = np.clip(values, max(low, least), min(high, most))
    return bounded.astype(dtype), int((bounded != values).sum())
