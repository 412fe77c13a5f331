"""What is predicted: real images in stores and files, and where each prediction has to be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
import zarr
from skimage import data

Values = npt.NDArray[Any]

AXES = "STCZYX"
RIGHT, WRONG, REFUSED = "yes", "no", "refuses"


@dataclass(frozen=True)
class Source:
    """An image, and where CAREamics and we put what is predicted from it.

    Parameters
    ----------
    at : str
        Where it lies below the folder of sources: `a/d.zarr/g/img`, `d.tif` or `d.npy`.
    image : ndarray
        Its voxels, in the case's axes.
    ours, theirs : str
        Where the prediction lies, below the output root and below the case's folder.
    chunks, shards : sequence of int
        Of an array in Zarr.
    """

    at: str
    image: Values
    ours: str
    theirs: str
    chunks: Sequence[int] | None = None
    shards: Sequence[int] | None = None

    @property
    def is_zarr(self) -> bool:
        """Whether it is an array in a store."""
        return ".zarr/" in self.at

    def write(self, folder: Path) -> str:
        """Write it; return what names it for CAREamics."""
        path = folder / self.at
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.is_zarr:
            store, inside = split(folder, self.at)
            group = zarr.open_group(store, mode="a")
            array = group.create_array(
                inside,
                shape=self.image.shape,
                dtype=self.image.dtype,
                chunks=tuple(self.chunks or ()),
                shards=None if self.shards is None else tuple(self.shards),
            )
            array[:] = self.image
            return f"file://{path}"
        if path.suffix == ".tif":
            tifffile.imwrite(path, self.image, photometric="minisblack")
        else:
            np.save(path, self.image)
        return str(path)


@dataclass(frozen=True)
class Case:
    """A prediction, and whether CAREamics itself gets it right."""

    title: str
    sources: Sequence[Source]
    theirs: str = RIGHT
    axes: str = "YX"
    target_axes: str | None = None
    channels: tuple[int, int] = (1, 1)
    tile: Sequence[int] = (64, 64)
    overlap: Sequence[int] = (16, 16)
    batch_size: int = 2
    devices: int = 1
    careamist: bool = False
    attach: bool = False
    # The layout of our arrays where it is not the source's, by axis.
    layout: Mapping[str, Any] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """Its title as the name of a folder."""
        return "".join(c if c.isalnum() else "-" for c in self.title.lower())

    @property
    def data_type(self) -> str:
        """What CAREamics calls its sources."""
        first = self.sources[0]
        return "zarr" if first.is_zarr else {".tif": "tiff", ".npy": "array"}[Path(first.at).suffix]

    @property
    def result_axes(self) -> str:
        """The axes of the arrays that we make."""
        wanted = self.layout.get("axes") or self.target_axes or self.axes
        return "".join(axis for axis in AXES if axis in wanted)

    def sizes(self, source: Source) -> dict[str, int]:
        """Return the size of a prediction along each axis."""
        found = dict(zip(self.axes, source.image.shape, strict=True))
        return {**found, "C": self.channels[1], **self.layout.get("sizes", {})}

    def stitch(self, tiles: Sequence[tuple[Values, Mapping[str, Any]]]) -> list[Values]:
        """Return what plain numpy makes of the tiles, one array for each source."""
        axes = self.result_axes
        arrays = []
        for source in self.sources:
            sizes = self.sizes(source)
            arrays.append(np.zeros([sizes[axis] for axis in axes], "float32"))
        for tile, spec in tiles:
            sizes = self.sizes(self.sources[spec["data_idx"]])
            array = arrays[spec["data_idx"]]
            array[self._index(axes, sizes, spec)] = self._crop(tile, spec, axes)
        return arrays

    def _index(self, axes: str, sizes: Mapping[str, int], spec: Mapping[str, Any]) -> Any:
        places = list(zip(spec["stitch_coords"], spec["crop_size"], strict=True))
        space = [axis for axis in "ZYX" if axis in axes]
        index: dict[str, Any] = {
            axis: slice(a, a + n) for axis, (a, n) in zip(space, places, strict=True)
        }
        index["C"] = slice(None)
        times = sizes.get("T", 1) if "T" in axes else 1
        index["S"], index["T"] = divmod(spec["sample_idx"], times)
        return tuple(index[axis] for axis in axes)

    def _crop(self, tile: Values, spec: Mapping[str, Any], axes: str) -> Values:
        cut = zip(spec["crop_coords"], spec["crop_size"], strict=True)
        crop = tile[(slice(None), *(slice(a, a + n) for a, n in cut))]
        return crop if "C" in axes else crop[0]


def split(folder: Path, at: str) -> tuple[Path, str]:
    """Return store and array of `a/d.zarr/g/img` below a folder."""
    store, _, inside = at.partition(".zarr/")
    return folder / f"{store}.zarr", inside


def photograph() -> Values:
    """Return it whole, 512 x 512."""
    whole: Values = data.camera()  # type: ignore[no-untyped-call]
    return whole


def grey(height: int = 200, width: int = 264, at: int = 0) -> Values:
    """Return a part of a photograph, another one for each number."""
    y, x = 37 * at % 200, 53 * at % 200
    return photograph()[y : y + height, x : x + width].copy()


def stack(*counts: int) -> Values:
    """Return parts of the photograph, stacked."""
    count = int(np.prod(counts))
    parts = np.stack([grey(120, 136, at) for at in range(count)])
    return parts.reshape(*counts, *parts.shape[1:])


def stained() -> Values:
    """Return a part of a stained tissue, CYX."""
    whole: Values = data.immunohistochemistry()  # type: ignore[no-untyped-call]
    return np.moveaxis(whole[100:300, 100:364], -1, 0).copy()


def _zarr(at: str, image: Values, folder: str = "", **options: Any) -> Source:
    """Return an array in Zarr whose prediction has its usual name."""
    store, _, inside = at.partition(".zarr/")
    usual = f"{Path(store).name}_output.zarr/{inside}"
    chunks = options.pop("chunks", (1,) * (image.ndim - 2) + (32, 32))
    return Source(at, image, folder + usual, usual, chunks=chunks, **options)


SHARDED: dict[str, Any] = {"shards": (128, 128)}

NEWER: Sequence[Case] = (
    Case("One image, sharded", [_zarr("d.zarr/g/img", grey(), **SHARDED)]),
    Case(
        "Two images of one store, in groups",
        [_zarr("d.zarr/g/a", grey()), _zarr("d.zarr/g/h/b", grey(at=1))],
    ),
    Case(
        "Z, sharded",
        [_zarr("d.zarr/img", stack(12), shards=(4, 64, 64))],
        axes="ZYX",
        tile=(8, 64, 64),
        overlap=(4, 16, 16),
    ),
    Case(
        "S, T and C",
        [_zarr("d.zarr/img", np.stack([stack(2, 3), stack(2, 3) // 2], axis=2))],
        axes="STCYX",
        channels=(2, 2),
    ),
    Case("T alone", [_zarr("d.zarr/img", stack(5), shards=(5, 64, 64))], axes="TYX"),
    Case(
        "3 channels to 1",
        [_zarr("d.zarr/img", stained(), chunks=(3, 32, 32), shards=(3, 64, 64))],
        axes="CYX",
        channels=(3, 1),
    ),
    Case(
        "No channel axis to 2 channels",
        [_zarr("d.zarr/img", grey())],
        target_axes="CYX",
        channels=(1, 2),
    ),
    Case(
        "Axes in another order",
        [_zarr("d.zarr/img", np.moveaxis(stained(), 0, -1).copy(), chunks=(32, 32, 3))],
        axes="YXC",
        channels=(3, 3),
        theirs=REFUSED,
    ),
    Case(
        "Two stores, equal array names",
        [_zarr("a.zarr/g/img", grey()), _zarr("b.zarr/g/img", grey(at=1))],
        theirs=WRONG,
    ),
    Case(
        "Two stores of one name in two folders",
        [
            _zarr("p/d.zarr/img", grey(), folder="p/"),
            _zarr("q/d.zarr/img", grey(at=1), folder="q/"),
        ],
        theirs=WRONG,
    ),
    Case(
        "Unsharded, then sharded, in one batch",
        [_zarr("a.zarr/x", grey(120, 120)), _zarr("b.zarr/y", grey(at=1), **SHARDED)],
        batch_size=4,
    ),
    Case(
        "Sharded, then unsharded, one tile a batch",
        [_zarr("a.zarr/x", grey(120, 120), **SHARDED), _zarr("b.zarr/y", grey(at=1))],
        batch_size=1,
    ),
    Case(
        "Sharded, then unsharded, in one batch",
        [_zarr("a.zarr/x", grey(120, 120), **SHARDED), _zarr("b.zarr/y", grey(at=1))],
        batch_size=4,
        attach=True,
        theirs=REFUSED,
    ),
    Case(
        "Two TIFF files",
        [
            Source("d.tif", grey(), "d.zarr/0", "../sources-False/d.zarr/0"),
            Source("e.tif", grey(at=1), "e.zarr/1", "../sources-False/e.zarr/1"),
        ],
    ),
    Case(
        "Two arrays in memory",
        [
            Source("d.npy", grey(), "prediction.zarr/0", "prediction.zarr/0"),
            Source("e.npy", grey(at=1), "prediction.zarr/1", "prediction.zarr/1"),
        ],
    ),
    Case("CAREamist, after a step of training", [_zarr("d.zarr/img", grey())], careamist=True),
)

DDP: Sequence[Case] = (
    Case(
        "Two ranks (DDP), sharded",
        [_zarr("d.zarr/img", photograph(), shards=(512, 512))],
        devices=2,
        theirs=WRONG,
    ),
    Case(
        "Two ranks (DDP), S, T and channels 3 to 2, two stores",
        [
            _zarr(
                f"{name}.zarr/g/img",
                np.stack([stained()] * 4).reshape(2, 2, *stained().shape) // (1 + at),
                shards=(2, 2, 3, 128, 128),
            )
            for at, name in enumerate("ab")
        ],
        axes="STCYX",
        channels=(3, 2),
        devices=2,
        theirs=WRONG,
    ),
    Case(
        "CAREamist, two ranks (DDP), sharded",
        [_zarr("d.zarr/img", photograph(), shards=(512, 512))],
        devices=2,
        careamist=True,
        theirs=WRONG,
    ),
)

OLDER: Sequence[Case] = (
    Case("0.0.22: one image, sharded", [_zarr("d.zarr/g/img", grey(), **SHARDED)]),
    Case("0.0.22: T alone", [_zarr("d.zarr/img", stack(5))], axes="TYX", theirs=REFUSED),
    Case(
        "0.0.22: S and T, merged into S",
        [_zarr("d.zarr/img", stack(2, 3))],
        axes="STYX",
        layout={"axes": "SYX", "sizes": {"S": 6}},
    ),
    Case(
        "0.0.22: 3 channels to 2",
        [_zarr("d.zarr/img", stained())],
        axes="CYX",
        channels=(3, 2),
        theirs=REFUSED,
    ),
    Case(
        "0.0.22: no channel axis to 2 channels",
        [_zarr("d.zarr/img", grey())],
        channels=(1, 2),
        layout={"axes": "CYX"},
        theirs=REFUSED,
    ),
    Case(
        "0.0.22: two stores of one name in two folders",
        [_zarr("p/d.zarr/img", grey()), _zarr("q/d.zarr/img", grey(at=1), folder="q/")],
        theirs=WRONG,
    ),
)
