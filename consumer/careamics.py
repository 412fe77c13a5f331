"""CAREamics' predictions, published instead of written: a write strategy for its callback.

Imports none of CAREamics. What its regions say is `consumer.regions`', sending
`consumer.publisher`'s.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterable
from functools import partial
from multiprocessing.util import Finalize
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np

from consumer.endpoint import Endpoint
from consumer.publisher import TilePublisher
from consumer.regions import Grid, Place, Region, layout_of, path_of, place_of, stored_grid

_CUT = ("crop_coords", "crop_size")

_Writer = TypeVar("_Writer")


class PublishTiles:
    """A write strategy for CAREamics' `PredictionWriterCallback` that publishes.

    Each region becomes one tile of the array that CAREamics' Zarr strategy would write, with
    these differences. Arrays of other axis orders are created in the contract's, STCZYX. A model
    that changes the number of channels decides the array's, and a larger channel chunk is
    clamped; regions of releases before 0.3.3, which know no target axes, get C where the model
    returns several channels. Those before 0.1.0 tell S and T only as their product: with both,
    the array has S alone. What was predicted from TIFF or in memory lies below the output root
    as well: `<stem>.zarr` and `prediction.zarr`, with the image's number as the array.

    The store key is `dirpath` relative to `output_root`, then the source's folder relative to
    `source_base`, then `<stem>_output.zarr`. Without `source_base` the first source of a stem
    gets that name, and one of another folder that folder's name in front.

    Publishing goes on after `write_batch` returned. CAREamics does not tell its strategies when
    a prediction ends, so use this as a context manager, `attach` it, or call `flush`; what is left
    at the end of the process is then still waited for. It can be pickled, and has one publisher
    in each process.

    Parameters
    ----------
    output_root : path
        The folder that stands for the consumer's output root: `dirpath` must lie in it.
    broker : str or Endpoint
        As `TilePublisher` takes it.
    run : str, optional
        What names this prediction: a second run into the same array is refused by the consumer.
    source_base : path, optional
        The folder that all sources have in common. Releases since 0.3.3 tell it by themselves.
    **options
        Those of `TilePublisher`.

    Raises
    ------
    UnusableSettings
        With the parameter at fault.
    """

    def __init__(
        self,
        output_root: str | Path,
        broker: str | Endpoint = "localhost:5672",
        *,
        run: str | None = None,
        source_base: str | Path | None = None,
        **options: Any,
    ) -> None:
        self._root = _absolute(output_root)
        self._broker = broker
        self._run = run
        self._options = options
        self._base = self._told_base = None if source_base is None else path_of(source_base)
        self._owners: dict[str, PurePosixPath] = {}
        self._grids: dict[str, Grid] = {}
        self._children: set[int] = set()
        self._publisher = self._new_publisher()

    def set_source_base(self, source_base: Path | None) -> None:
        """Take the folder that all sources have in common; CAREamics tells it at the start."""
        if self._told_base is None:
            self._base = None if source_base is None else path_of(source_base)

    def write_batch(self, dirpath: Path, predictions: Iterable[Region]) -> None:
        """Publish regions as tiles; return once they are taken, not once they are confirmed.

        Parameters
        ----------
        dirpath : Path
            Where CAREamics would write.
        predictions : iterable of Region
            Data C(Z)YX, with what CAREamics knows of their source.

        Raises
        ------
        ValueError
            Where `dirpath` is outside the output root, a source has no name that can be used, or
            the axes have no place for the model's channels.
        ParkError, PublishError
            As `TilePublisher.publish`.
        """
        self._close_with_process()
        for region in predictions:
            self._publish(dirpath, region)

    def array_of(self, dirpath: Path, region: Region) -> dict[str, Any]:
        """Return what messages say of the array that a region goes into.

        Returns
        -------
        dict
            Fields of `consumer.contract.ArrayEntry`.

        Raises
        ------
        ValueError
            As `write_batch`.
        """
        place = place_of(str(region.source), region.region_spec["data_idx"])
        array = {
            "store": self._store_key(self._folder(dirpath), place),
            "array": place.array,
            "dtype": "float32",
            "source": str(region.source),
            "run": self._run,
        }
        told = {key: value for key, value in array.items() if value is not None}
        return told | layout_of(region, region.data.shape[0], self._grid(region))

    def attach(self, writer: _Writer) -> _Writer:
        """Make a `PredictionWriterCallback` publish, and return it.

        It keeps this strategy whatever `CAREamist.predict_to_disk` sets, and waits at the end of
        each prediction, on each rank, until every tile is confirmed. Batches may mix images in
        Zarr with and without shards, which CAREamics refuses otherwise.
        """
        named: Any = writer
        named.setup = partial(_set_up, named.setup)
        named.write_strategy = self
        named.set_writing_strategy = self._keep
        named.on_predict_end = self._end
        return writer

    def flush(self) -> None:
        """Return once every tile is confirmed.

        Raises
        ------
        PublishError
            Where nothing was confirmed for `timeout_s`, or waiting does not help.
        """
        self._publisher.flush()

    def close(self) -> None:
        """Wait until every tile is confirmed, and end the connection; the next batch opens it anew.

        Raises
        ------
        PublishError
            Where tiles were not confirmed: they are lost.
        """
        publisher, self._publisher = self._publisher, self._new_publisher()
        publisher.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close; where the block raised, that error stands and says what was not published."""
        publisher, self._publisher = self._publisher, self._new_publisher()
        publisher.__exit__(kind, error, trace)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_publisher": None, "_children": set()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._publisher = self._new_publisher()

    def _keep(self, *_: Any, **__: Any) -> None:
        """Stand in for `set_writing_strategy`, which would replace this strategy."""

    def _end(self, *_: Any) -> None:
        self.flush()

    def _new_publisher(self) -> TilePublisher:
        return TilePublisher(self._broker, **self._options)

    def _close_with_process(self) -> None:
        # Before Python 3.12 the children of multiprocessing run no atexit handlers.
        if multiprocessing.parent_process() is not None and os.getpid() not in self._children:
            self._children.add(os.getpid())
            Finalize(None, self.close, exitpriority=0)

    def _folder(self, dirpath: str | Path) -> PurePosixPath:
        try:
            return PurePosixPath(_absolute(dirpath).relative_to(self._root))
        except ValueError:
            raise ValueError(
                f"dirpath {str(dirpath)!r} is outside output_root {str(self._root)!r}; choose a "
                "folder in it"
            ) from None

    def _publish(self, dirpath: Path, region: Region) -> None:
        array, spec = self.array_of(dirpath, region), region.region_spec
        sampled = not {"S", "T"}.isdisjoint(array["axes"])
        cut: dict[str, Any] = {k: _integers(spec[k]) for k in _CUT if k in spec}
        self._publisher.publish(
            array,
            np.asarray(region.data),
            # Without tiling a region is a whole image.
            _integers(spec["stitch_coords" if cut else "coords"]),
            **cut,
            sample_idx=int(spec["sample_idx"]) if sampled else None,
        )

    def _store_key(self, folder: PurePosixPath, place: Place) -> str:
        """Return the key of an output store that no source of another folder has."""
        source = place.source
        parents = [part for part in source.parent.parts if part != "/"]
        for count in range(self._depth(source), len(parents) + 1):
            key = str(PurePosixPath(folder, *parents[len(parents) - count :], place.name))
            if self._owners.setdefault(key, source) == source:
                return key
        raise ValueError(
            f"{str(source)!r} and {str(self._owners[key])!r} would both be stored as {key!r}; "
            "rename one, or choose another dirpath"
        )

    def _depth(self, source: PurePosixPath) -> int:
        """How many of the source's folders the store key keeps."""
        if self._base is None or not source.parent.is_relative_to(self._base):
            return 0
        return len(source.parent.relative_to(self._base).parts)

    def _grid(self, region: Region) -> Grid:
        """Return how the source is cut.

        Releases before 0.3.3 lose that on the way, and collating a batch leaves the shards out
        where its first region's source has none.
        """
        source = str(region.source)
        if source not in self._grids:
            self._grids[source] = stored_grid(region)
        return self._grids[source]


class _WithoutShards:
    """A dataset whose regions do not tell shards, so that those of any sources make a batch."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: Any) -> tuple[Any, ...]:
        return tuple(map(_without_shards, self._dataset[index]))

    def __getattr__(self, name: str) -> Any:
        if name == "_dataset":  # not there yet while being unpickled
            raise AttributeError(name)
        return getattr(self._dataset, name)


def _without_shards(region: Any) -> Any:
    told = {k: v for k, v in region.additional_metadata.items() if k != "shards"}
    return region._replace(additional_metadata=told)


def _set_up(set_up: Callable[..., None], trainer: Any, module: Any, stage: str) -> None:
    """Stand in for the callback's `setup`: at that point the dataset is there, its loader not."""
    set_up(trainer, module, stage)
    images = getattr(trainer, "datamodule", None)
    if stage == "predict" and images is not None:
        images.predict_dataset = _WithoutShards(images.predict_dataset)


def _absolute(path: str | Path) -> Path:
    return Path(os.path.normpath(Path(path).absolute()))


def _integers(values: Iterable[Any]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)
