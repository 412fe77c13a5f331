"""Reads back what a scenario has left, with plain zarr and plain files, and says what is wrong.

Knows only what was published with a confirm.
"""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import zarr

from chaos import product
from chaos.images import Place
from faults import Image

STATE_FOLDER = ".tiles"
# Folders of these names hold one entry for each tenure that was not let go.
_TENURES = ("epochs", "fenced")
_JOURNAL = "lone"
# In here, one for each trial of the root that was cut short.
TRIALS = ".tiles"

Confirmed: TypeAlias = Mapping[Image, Collection[Place]]


@dataclass
class Found:
    """What is wrong.

    Attributes
    ----------
    lost : int
        Confirmed tiles that are not wholly there, or that the ledger calls missing.
    corrupt : int
        Voxels of confirmed tiles that hold another value.
    foreign : int
        Voxels outside every crop that are not the fill value, or that the ledger calls filled;
        arrays and files that nobody sent.
    leftovers : int
        Temporary files, tenures and trials that are over, messages still in the queue.
    notes : list of str
        Where, for a person.
    """

    lost: int = 0
    corrupt: int = 0
    foreign: int = 0
    leftovers: int = 0
    notes: list[str] = field(default_factory=list)

    def __iadd__(self, other: Self) -> Self:
        for name in ("lost", "corrupt", "foreign", "leftovers"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.notes += other.notes
        return self


def examine(root: Path, confirmed: Confirmed, known: Collection[str] = ()) -> Found:
    """Compare every voxel and every file below the root; `known` names what lay there before."""
    found = Found()
    for image, places in confirmed.items():
        found += _array(root, image, places)
        found += _ledger(root, image, places)
    found += _strangers(root, confirmed, known)
    found += _leftovers(root / STATE_FOLDER)
    return found


def snapshot(*tops: Path) -> dict[str, str]:
    """Return the digest of every file in or below some paths; of a link, where it leads."""
    paths = (path for top in tops for path in (top, *top.rglob("*")))
    return {str(path): _digest(path) for path in paths if path.is_symlink() or path.is_file()}


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return what two snapshots do not have in common: made, changed or removed."""
    return [
        f"{name} was {'made' if name not in before else 'changed or removed'}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def _digest(path: Path) -> str:
    if path.is_symlink():
        return f"to {path.readlink()}"
    content = path.read_bytes()
    if path.name == "zarr.json":
        # An array that is opened gets an id in its attributes.
        with contextlib.suppress(ValueError):
            said = json.loads(content)
            said.get("attributes", {}).pop(product.LEDGER_ATTRIBUTE, None)
            content = json.dumps(said, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


def _array(root: Path, image: Image, places: Collection[Place]) -> Found:
    where = f"{image.store}/{image.path}"
    try:
        array = zarr.open_array(root / image.store, path=image.path, mode="r")
        stored = np.asarray(array[:], dtype=np.uint32)
    except Exception as error:  # whatever zarr finds wrong with what is stored
        return Found(lost=len(places), notes=[f"{where} cannot be read: {error!r}"])
    found, covered = Found(), _covered(image, places)
    for place in places:
        region = (slice(None), *image.box(place))
        found += _tile(f"{where} {place}", stored[region], image.truth[region])
    foreign = int(np.count_nonzero(stored[~covered]))
    if foreign:
        found += Found(foreign=foreign, notes=[f"{where} has {foreign} voxels outside all tiles"])
    return found


def _tile(where: str, stored: npt.NDArray[Any], truth: npt.NDArray[Any]) -> Found:
    absent = int(np.count_nonzero(stored == 0))
    other = int(np.count_nonzero(stored != truth)) - absent
    notes = [f"{where} lacks {absent} and has {other} other voxels of {truth.size}"]
    return Found(bool(absent), other, notes=notes) if absent or other else Found()


def _covered(image: Image, places: Collection[Place]) -> npt.NDArray[np.bool_]:
    covered = np.zeros((1, *image.size), bool)
    for place in places:
        covered[(slice(None), *image.box(place))] = True
    return covered


def _ledger(root: Path, image: Image, places: Collection[Place]) -> Found:
    """Compare the ledger with what was confirmed."""
    where, covered = f"the ledger of {image.store}/{image.path}", _covered(image, places)
    missing = np.zeros_like(covered)
    try:
        for slices in product.missing(root, image.store, image.path):
            missing[slices] = True
    except product.NoLedger as error:
        return Found(lost=len(places), notes=[f"{where}: {error}"])
    lost = [p for p in places if missing[(slice(None), *image.box(p))].any()]
    foreign = int(np.count_nonzero(~missing & ~covered))
    notes = [f"{where} misses {len(lost)} tiles, {lost[:3]}, and has {foreign} voxels too many"]
    return Found(len(lost), 0, foreign, notes=notes) if lost or foreign else Found()


def _strangers(root: Path, confirmed: Confirmed, known: Collection[str]) -> Found:
    """Count files that are neither metadata nor a chunk of what was sent."""
    found = Found()
    expected = {name for image in confirmed for name in _files_of(root, image)}
    for path in _files(root):
        name = path.relative_to(root)
        if name.parts[0] not in {STATE_FOLDER, *known} and str(name) not in expected:
            found += Found(foreign=1, notes=[f"{name} was sent by nobody"])
    return found


def _files_of(root: Path, image: Image) -> Iterator[str]:
    """Yield the names that an image's files may have: of its groups, itself and its chunks."""
    groups = [Path(image.path), *Path(image.path).parents]
    yield from (str(Path(image.store) / group / "zarr.json") for group in groups)
    with contextlib.suppress(Exception):  # whatever zarr finds wrong: it is told as lost
        array = zarr.open_array(root / image.store, path=image.path, mode="r")
        sides = zip(array.shape, array.shards or array.chunks, strict=True)
        for chunk in itertools.product(*(range(-(-size // side)) for size, side in sides)):
            yield str(Path(image.store) / image.path / array.metadata.encode_chunk_key(chunk))


def _leftovers(state: Path) -> Found:
    """Count files, tenures and trials below the consumer's own folder that should be gone by now.

    Ledgers stay, but none that was damaged and set aside; and what the journal says of a handling
    that was cut short, it says for a day.
    """
    found = Found()
    for path in sorted(state.rglob("*")):
        inside = path.relative_to(state).parts
        folder = path.is_dir() and (path.parent.name in _TENURES or path.parent == state / TRIALS)
        if folder or (path.is_file() and not _is_kept(inside)):
            found += Found(leftovers=1, notes=[f"{STATE_FOLDER}/{Path(*inside)} is left over"])
    return found


def _is_kept(inside: tuple[str, ...]) -> bool:
    journal = inside[0] == _JOURNAL and inside[-1].endswith(".json")
    return journal or ("ledger" in inside and product.is_ledger(inside[-1]))


def _files(root: Path) -> Iterator[Path]:
    return (path for path in sorted(root.rglob("*")) if not path.is_dir())
