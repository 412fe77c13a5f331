"""Store keys and array paths: which names are safe below the output root, and distinct on disk."""

import unicodedata
from functools import lru_cache

from consumer.errors import UnsafePath

# AMQP carries a routing key in a short string: one byte of length.
MAX_KEY_BYTES = 255
MAX_SEGMENT_BYTES = 255
MAX_PATH_BYTES = 1024
STORE_SUFFIX = ".zarr"
STATE_FOLDER = ".tiles"
# No store has its state there, since no store key begins with the name of the state folder.
TRIALS_FOLDER = f"{STATE_FOLDER}/{STATE_FOLDER}"
_RESERVED_ARRAY_SEGMENTS = {"zarr.json", "c"}


# The same few names come with message after message.
_remembered = lru_cache(maxsize=1024)


@_remembered
def check_store_key(key: str) -> str:
    """Return `key` if it names a store below the output root.

    Raises
    ------
    UnsafePath
        With the offending segment and what would be right.
    """
    segments = _segments(key, "store key", MAX_KEY_BYTES)
    if segments[0] == STATE_FOLDER:
        raise UnsafePath(f"store key {_shown(key)}: {STATE_FOLDER!r} holds the consumer's state")
    if not segments[-1].endswith(STORE_SUFFIX) or segments[-1] == STORE_SUFFIX:
        raise UnsafePath(
            f"store key {_shown(key)}: the last segment must be a name ending in .zarr"
        )
    for segment in segments[:-1]:
        if segment.endswith(STORE_SUFFIX):
            raise UnsafePath(
                f"store key {_shown(key)}: only the last segment may end in .zarr, "
                f"not {_shown(segment)}"
            )
    return key


@_remembered
def check_array_path(path: str) -> str:
    """Return `path` if it names an array inside a store.

    Raises
    ------
    UnsafePath
        With the offending segment and what would be right.
    """
    for segment in _segments(path, "array path", MAX_PATH_BYTES):
        if segment.startswith("."):
            raise UnsafePath(f"array path {_shown(path)}: {_shown(segment)} starts with a dot")
        if segment in _RESERVED_ARRAY_SEGMENTS:
            raise UnsafePath(f"array path {_shown(path)}: {_shown(segment)} is Zarr's own name")
        if segment.endswith(STORE_SUFFIX):
            raise UnsafePath(
                f"array path {_shown(path)}: {_shown(segment)} ends in .zarr, as only stores do"
            )
    return path


def _segments(name: str, what: str, limit: int) -> list[str]:
    if not name:
        raise UnsafePath(f"{what} '' is empty")
    if any(unicodedata.category(character) == "Cs" for character in name):
        raise UnsafePath(f"{what} {_shown(name)} has a lone surrogate; it must be valid Unicode")
    if len(name.encode()) > limit:
        raise UnsafePath(f"{what} {_shown(name)} is longer than {limit} bytes")
    if not unicodedata.is_normalized("NFC", name):
        raise UnsafePath(f"{what} {_shown(name)} is not in Unicode's normal form NFC")
    if any(unicodedata.category(character) == "Cc" for character in name):
        raise UnsafePath(f"{what} {_shown(name)} has a control character")
    if name.startswith("/"):
        raise UnsafePath(f"{what} {_shown(name)} is absolute; it must be relative")
    segments = name.split("/")
    for segment in segments:
        if segment in {"", ".", ".."}:
            raise UnsafePath(f"{what} {_shown(name)} has the segment {segment!r}")
        if len(segment.encode()) > MAX_SEGMENT_BYTES:
            raise UnsafePath(
                f"{what} {_shown(name)} has a segment longer than {MAX_SEGMENT_BYTES} bytes"
            )
    return segments


def _shown(name: str) -> str:
    return repr(name) if len(name) <= 80 else f"{name[:80]!r}… ({len(name)} characters)"
