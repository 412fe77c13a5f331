"""The client for producers: takes predicted tiles as NumPy arrays, publishes them, loses none.

Runs inside other people's services: importing it loads neither zarr nor the service. Preparing
tiles is `consumer.batches`', sending them `consumer.sender`'s.
"""

import atexit
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from types import TracebackType
from typing import Any, Self

import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from consumer.batches import Batch, Batches, Prepared, prepare
from consumer.completions import Completions
from consumer.connection import check_credentials
from consumer.contract import Scalar, reason_of
from consumer.endpoint import Endpoint, Seconds, endpoint
from consumer.errors import PublishError, Unconfirmed, UnusableSettings
from consumer.message import MAX_MESSAGE_BYTES
from consumer.sender import Outgoing, Sender
from consumer.window import Window

WINDOW_BYTES = 64 << 20
BATCH_BYTES = 256 << 10
# Messages that stand ready while so much is unconfirmed: RabbitMQ confirms many at a time.
_READY_SHARE = 2
_RECONNECT_MAX_S = 5.0


class _Limits(BaseModel):
    """What `TilePublisher` is given, less the endpoint."""

    model_config = ConfigDict(strict=True, frozen=True)

    timeout_s: Seconds
    window_bytes: int = Field(ge=1)
    batch_bytes: int = Field(ge=0)
    linger_s: float = Field(ge=0, le=7 * 86400)
    max_message_bytes: int = Field(ge=1)
    # AMQP's short string, with room for what the connection is called.
    app_id: str = Field(max_length=200, pattern="^[ -~]+$")


@dataclass(slots=True)
class _State:
    """What belongs to one process: a forked child starts with its own."""

    window: Window
    batches: Batches
    completions: Completions | None
    lock: Any = field(default_factory=threading.Lock)
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    numbers: Iterator[int] = field(default_factory=lambda: count(1))
    sender: Sender | None = None
    lingering: bool = False
    closed: bool = False


class TilePublisher:
    """Publishes tiles until RabbitMQ has confirmed each: at least once.

    A tile that `publish` has taken is sent again after a lost connection, a restart of the broker
    or a refusal, until it is confirmed or the publisher is closed. Where `publish` raises, that
    tile was not taken, and those before it are still kept and tried. Use it as a context manager,
    or call `close`: tiles wait up to `linger_s` for company.

    It may be used from several threads. The connection, on a thread of its own, is opened at the
    first tile, so that a publisher survives a fork; a child publishes over a connection of its own.

    Parameters
    ----------
    broker : str or Endpoint
        `host[:port]`, several of them behind commas, or `amqp[s]://user:password@host:port/vhost`.
    timeout_s : float
        Longest wait of `publish`, `flush` and `close` in which nothing is confirmed, seconds.
    window_bytes : int
        Bytes that may be sent and unconfirmed. Half as many again may stand ready before `publish`
        waits.
    batch_bytes : int
        Tiles of one array go into a message until it has so many bytes; 0: each tile alone.
    linger_s : float
        How long a tile waits at most for its message to fill, seconds.
    max_message_bytes : int
        The consumer's setting. Larger tiles are cut into several.
    compress : bool
        Compress messages with zstd.
    checksum : bool
        Give each message its CRC-32C, which the consumer checks.
    completions : bool
        Hear of completed arrays, for `wait_completed`: needs the right to declare a queue.
    app_id : str, optional
        What names this producer in logs and parked messages; default: the host.
    **access
        Fields of `consumer.endpoint.Endpoint`, e.g. `username`, `password`, `tls_ca_file`,
        `topology_prefix`.

    Raises
    ------
    UnusableSettings
        With the parameter at fault.
    """

    def __init__(
        self,
        broker: str | Endpoint = "localhost:5672",
        *,
        timeout_s: float = 60.0,
        window_bytes: int = WINDOW_BYTES,
        batch_bytes: int = BATCH_BYTES,
        linger_s: float = 0.05,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        compress: bool = False,
        checksum: bool = True,
        completions: bool = False,
        app_id: str | None = None,
        **access: Any,
    ) -> None:
        self._endpoint = _endpoint(broker, access)
        check_credentials(self._endpoint)
        limits = _limits(
            timeout_s=timeout_s,
            window_bytes=window_bytes,
            batch_bytes=batch_bytes,
            linger_s=linger_s,
            max_message_bytes=max_message_bytes,
            app_id=app_id or socket.gethostname(),
        )
        self._timeout_s = limits.timeout_s
        self._window_bytes = limits.window_bytes
        self._batch_bytes = limits.batch_bytes
        self._linger_s = limits.linger_s
        self._max_bytes = limits.max_message_bytes
        self._encoding = {"compress": compress, "checksum": checksum, "max_bytes": self._max_bytes}
        self._completions = completions
        self._app_id = limits.app_id
        self._states: dict[int, _State] = {}

    def publish(
        self,
        array: Mapping[str, Any],
        tile: npt.ArrayLike,
        stitch_coords: Sequence[int],
        *,
        crop_coords: Sequence[int] | None = None,
        crop_size: Sequence[int] | None = None,
        sample_idx: int | None = None,
        channel: int = 0,
        cast: bool = False,
    ) -> None:
        """Take a tile for publishing; wait where too many bytes are unconfirmed.

        Only the crop is sent, and copied at once.

        Parameters
        ----------
        array : mapping
            What `consumer.contract.ArrayEntry` describes: `store`, `array`, `axes`, `shape`, …
        tile : array_like
            C(Z)YX, as predicted.
        stitch_coords : sequence of int
            (Z)YX, voxels: where the crop's first voxel goes in the array.
        crop_coords, crop_size : sequence of int, optional
            (Z)YX, voxels: the part of the tile to keep; default: all of it.
        sample_idx : int, optional
            s * T + t; required where the axes have S or T.
        channel : int
            The first channel that the tile's channels fill.
        cast : bool
            Round to the array's `dtype` and clip to its range; clipping is logged.

        Raises
        ------
        ParkError
            As the consumer would park the tile with, e.g. `OutOfBounds`.
        PublishError
            Where there was no room for `timeout_s`, or tiles before can never be taken.
        """
        place = {
            "stitch_coords": stitch_coords,
            "crop_coords": crop_coords,
            "crop_size": crop_size,
            "sample_idx": sample_idx,
            "channel": channel,
        }
        self._take(array, prepare(array, tile, place, to_dtype=cast, max_bytes=self._max_bytes))

    def fill(
        self,
        array: Mapping[str, Any],
        value: Scalar,
        stitch_coords: Sequence[int],
        crop_size: Sequence[int],
        *,
        sample_idx: int | None = None,
        channel: int = 0,
    ) -> None:
        """Take a tile of one value, e.g. skipped background, which costs no bytes.

        The parameters and what is raised are those of `publish`.
        """
        place = {
            "stitch_coords": stitch_coords,
            "crop_size": crop_size,
            "sample_idx": sample_idx,
            "channel": channel,
            "fill": value,
        }
        self._take(array, prepare(array, None, place, to_dtype=False, max_bytes=self._max_bytes))

    @property
    def held_bytes(self) -> int:
        """Bytes of tiles that were taken and are not confirmed."""
        return self._state().window.held_bytes

    def flush(self, timeout_s: float | None = None) -> None:
        """Return once every tile is confirmed.

        Raises
        ------
        PublishError
            Where nothing was confirmed for `timeout_s`, or waiting does not help. The tiles are
            kept: another `flush` waits for them again.
        """
        self._flush(self._state(), self._timeout_s if timeout_s is None else timeout_s)

    def wait_completed(self, timeout_s: float) -> None:
        """Return once every array that was published to is complete: filled and durable.

        Of tiles that are sent once more to an array that is complete already, some may not be
        written then; give them another `run`, where consumers have `TILES_ON_NEW_RUN=replace`.

        Raises
        ------
        NotCompleted
            With the arrays that are not complete after `timeout_s`.
        PublishError
            Where tiles cannot be published.
        """
        state = self._state()
        if state.completions is None:
            raise ValueError("wait_completed needs TilePublisher(…, completions=True)")
        deadline = time.monotonic() + timeout_s
        self.flush(timeout_s)
        state.completions.wait(timeout_s, deadline)

    def close(self) -> None:
        """Wait until every tile is confirmed, and end the connection, whatever comes of it.

        Raises
        ------
        PublishError
            Where tiles were not confirmed: they are lost with the publisher.
        """
        state = self._states.get(os.getpid())
        if state is None:
            return
        with state.lock:
            closed, state.closed = state.closed, True
        if closed:
            return
        try:
            self._flush(state, self._timeout_s)
        finally:
            atexit.unregister(self.close)
            if state.sender is not None:
                state.sender.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close; where the block raised, that error stands and says what was not published."""
        try:
            self.close()
        except PublishError as unpublished:
            if error is None:
                raise
            error.add_note(f"tiles published before were not confirmed: {unpublished}")

    def _take(self, array: Mapping[str, Any], prepared: Prepared) -> None:
        state = self._state()
        sender = self._sender(state)
        state.window.take(prepared.nbytes, self._timeout_s)
        if state.completions is not None:
            state.completions.expect(array["store"], array["array"], array.get("run"))
        with state.lock:
            if state.closed:  # while there was no room
                state.window.give_back(prepared.nbytes)
                raise _closed()
            batches = state.batches.add(prepared)
            linger = bool(state.batches) and not state.lingering
            state.lingering = state.lingering or linger
        self._send_all(state, batches)
        if linger:
            sender.call_later(self._linger_s, lambda: self._lingered(state))

    def _flush(self, state: _State, timeout_s: float) -> None:
        self._send_open(state)
        state.window.wait_empty(timeout_s)

    def _lingered(self, state: _State) -> None:
        state.lingering = False
        self._send_open(state)

    def _send_open(self, state: _State) -> None:
        with state.lock:
            batches = state.batches.close()
        self._send_all(state, batches)

    def _send_all(self, state: _State, batches: Sequence[Batch]) -> None:
        for sent, batch in enumerate(batches, 1):
            try:
                self._send(state, batch)
            except BaseException as error:
                for left in batches[sent:]:
                    _lose(state, left, error)
                raise

    def _send(self, state: _State, batch: Batch) -> None:
        try:
            encoded = batch.encode(sent_ms=time.time_ns() // 1_000_000, **self._encoding)
        except BaseException as error:
            # Every tile was checked before: memory has run out, or Ctrl-C was pressed.
            _lose(state, batch, error)
            if isinstance(error, Exception):
                return
            raise
        encoded.properties.update(
            message_id=f"{state.id}-{next(state.numbers)}",
            app_id=self._app_id,
            timestamp=int(time.time()),
        )
        self._sender(state).send(Outgoing(encoded, batch.nbytes))

    def _sender(self, state: _State) -> Sender:
        with state.lock:
            if state.sender is None:
                if state.closed:
                    raise _closed()
                state.sender = Sender(
                    self._endpoint,
                    state.window,
                    state.completions,
                    owner=self._app_id,
                    most_bytes=self._window_bytes,
                )
                atexit.register(self.close)
            return state.sender

    def _state(self) -> _State:
        pid = os.getpid()
        state = self._states.get(pid)
        if state is None:
            # Atomic, whereas a lock might have been held by another thread when we were forked.
            state = self._states.setdefault(pid, self._new_state())
        if state.closed:
            raise _closed()
        return state

    def _new_state(self) -> _State:
        prefix = self._endpoint.topology_prefix
        return _State(
            Window(self._window_bytes + self._window_bytes // _READY_SHARE),
            Batches(self._batch_bytes, self._max_bytes),
            Completions(prefix) if self._completions else None,
        )


def _lose(state: _State, batch: Batch, error: BaseException) -> None:
    trouble = Unconfirmed(
        f"{len(batch.parts)} tiles of {batch.array.store} are lost, since they could not be "
        f"encoded ({error!r}); publish them again"
    )
    state.window.lose(batch.nbytes, trouble)


def _endpoint(broker: str | Endpoint, access: dict[str, Any]) -> Endpoint:
    if isinstance(broker, str):
        return endpoint(broker, **{"reconnect_max_s": _RECONNECT_MAX_S, **access})
    if not isinstance(broker, Endpoint):
        raise UnusableSettings(
            "broker: must be host[:port], an AMQP URL or an Endpoint (got one of type "
            f"{type(broker).__name__})"
        )
    if access:
        raise UnusableSettings(f"{', '.join(access)}: already in the Endpoint; give it there")
    return broker


def _limits(**given: Any) -> _Limits:
    try:
        return _Limits.model_validate(given)
    except ValidationError as error:
        raise UnusableSettings(reason_of(error)) from None


def _closed() -> ValueError:
    return ValueError("this TilePublisher is closed; make a new one")
