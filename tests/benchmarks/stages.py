"""Where the time goes: each stage of a tile's way alone, beside the least that it could take.

In ms of one core per MB of payload, but for commits, which mostly wait: there in ms that pass. Run
by `make bench-stages`.
"""

import gc
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
from numcodecs.zstd import Zstd
from rich.console import Console
from rich.table import Table

from benchmarks.cases import STORE, Case, find
from benchmarks.preload import preload
from benchmarks.rivals import DrainOnly, outline
from consumer.arena import Arena, give_memory_back
from consumer.arrays import OpenArray, open_array, open_store
from consumer.assembler import Assembler
from consumer.blocks import DeliveryId, StoredArray
from consumer.budget import Budget
from consumer.connection import RECEIVE_BYTES
from consumer.coverage import Box
from consumer.delivery import Delivery
from consumer.encoder import Objects
from consumer.flow import Flow
from consumer.message import Encoded, Envelope, Message, decode
from consumer.metrics import Metrics
from consumer.requests import Opened, Written
from consumer.scratch import Scratch
from consumer.settings import Settings
from consumer.testing import RabbitMQ
from consumer.topology import topology

_REPEATS = 3
_DISK_MB = 128e6


class Stages:
    """Measures the stages of one case on the disk that holds `folder`."""

    def __init__(self, case: Case, folder: Path) -> None:
        self._case = case
        self._folder = folder
        self._messages = list(case.messages())
        self._mb = case.payload_bytes / 1e6
        case.create(folder)
        self._array = _opened(folder, case)
        self._blocks = self._assembled()

    def rows(self, broker: RabbitMQ) -> Iterator[tuple[str, float, str, float]]:
        """Yield each stage with its time, and its floor with its own, in ms per MB of payload."""
        yield "receive", self._drained(broker), "recv on loopback", self._received()
        bodies = [np.frombuffer(message.body, np.uint8) for message in self._messages]
        target = np.empty(max(map(len, bodies)), np.uint8)
        copy = self._core(lambda: _copy(bodies, target))
        yield "decode", self._core(self._decode), "", 0.0
        yield "place", self._place(), "memcpy", copy
        yield "decode, place, settle", self._core(self._flow), "memcpy", copy
        floor = "zstd alone" if self._case.compressed else "memcpy"
        yield "encode", self._core(self._encode), floor, self._core(self._codec)
        yield "commit", self._commit(), "write and sync", self._raw_files()

    def _core(self, work: Callable[[], object]) -> float:
        times = []
        for _ in range(_REPEATS):
            began = time.thread_time()
            work()
            times.append(time.thread_time() - began)
        return sorted(times)[_REPEATS // 2] * 1e3 / self._mb

    # -- receiving ------------------------------------------------------------------------------

    def _drained(self, broker: RabbitMQ) -> float:
        settings = Settings(output_root=self._folder)
        preload(broker.host, settings, self._case)
        drain = DrainOnly(self._folder, self._case)
        began = time.thread_time()
        drain.run(broker.host, topology(settings).partitions[0].name)
        return (time.thread_time() - began) * 1e3 / self._mb

    def _received(self) -> float:
        def send(port: int) -> None:
            with socket.create_connection(("127.0.0.1", port)) as sending:
                for message in self._messages:
                    sending.sendall(message.body)

        with socket.create_server(("127.0.0.1", 0)) as server:
            thread = threading.Thread(target=send, args=(server.getsockname()[1],))
            thread.start()
            receiving, _ = server.accept()
            began = time.thread_time()
            with receiving:
                while receiving.recv(RECEIVE_BYTES):
                    pass
            seconds = time.thread_time() - began
            thread.join()
        return seconds * 1e3 / self._mb

    # -- the owning thread ----------------------------------------------------------------------

    def _decode(self) -> None:
        for message in self._messages:
            decode(_envelope(message), message.body)

    def _place(self) -> float:
        decoded = [decode(_envelope(message), message.body) for message in self._messages]
        return self._core(lambda: sum(1 for _ in _assemble(decoded, self._array)))

    def _flow(self) -> None:
        posted: list[Callable[[], None]] = []
        broker: Any = SimpleNamespace(acknowledge=lambda _identity: True)
        storage: Any = _Instant(self._array, posted.append)
        with closing(Scratch(self._folder, 1 << 30)) as scratch:
            flow = Flow(
                Settings(output_root=self._folder),
                broker,
                storage,
                Arena(2 << 30),
                scratch,
                Metrics(),
                post=posted.append,
                stop=_raise,
            )
            for number, message in enumerate(self._messages):
                properties = SimpleNamespace(message_id=None, app_id=None)
                identity = DeliveryId(1, number)
                flow.deliver(Delivery(identity, _envelope(message), properties, 0), message.body)
                while posted:
                    posted.pop(0)()

    # -- the writer process ---------------------------------------------------------------------

    def _assembled(self) -> list[tuple[Box, npt.NDArray[Any]]]:
        decoded = [decode(_envelope(message), message.body) for message in self._messages]
        return [(write.box, write.buffer.copy()) for write in _assemble(decoded, self._array)]

    def _encode(self) -> None:
        for _ in self._encoded():
            pass

    def _encoded(self) -> Iterator[Objects]:
        for box, buffer in self._blocks:
            yield self._array.encoder.encode(box, buffer, [Box.of_shape(box.shape)])

    def _codec(self) -> None:
        codec, size = Zstd(level=0), 4 * int(np.prod(self._case.chunks))
        for _, buffer in self._blocks:
            raw = buffer.reshape(-1).view(np.uint8)
            for start in range(0, len(raw), size):
                chunk = raw[start : start + size]
                _ = codec.encode(chunk) if self._case.compressed else chunk.copy()

    def _commit(self) -> float:
        seconds, done, commit = 0.0, 0, self._array.store.commit
        for objects, (_, buffer) in zip(self._encoded(), self._blocks, strict=True):
            began = time.monotonic()
            commit.commit(objects)
            seconds += time.monotonic() - began
            done += buffer.nbytes
            if done > _DISK_MB:
                break
        return self._per_mb_of_payload(seconds, done)

    def _raw_files(self) -> float:
        folder = self._folder / "raw"
        folder.mkdir()
        seconds, done = 0.0, 0
        for objects, (_, buffer) in zip(self._encoded(), self._blocks, strict=True):
            contents = [b"".join(parts) for parts in objects.values() if parts is not None]
            began = time.monotonic()
            for number, content in enumerate(contents):
                file = os.open(folder / f"{done}-{number}", os.O_WRONLY | os.O_CREAT)
                os.write(file, content)
                os.fsync(file)
                os.close(file)
            seconds += time.monotonic() - began
            done += buffer.nbytes
            if done > _DISK_MB:
                break
        return self._per_mb_of_payload(seconds, done)

    def _per_mb_of_payload(self, seconds: float, stitched: int) -> float:
        share = stitched / self._case.stitched_bytes
        return seconds * 1e3 / (self._mb * share)


class _Instant:
    """A storage that has written everything at once."""

    root_writable = True

    def __init__(self, array: OpenArray, post: Callable[[Callable[[], None]], None]) -> None:
        self._stored = StoredArray(array.key, array.layout)
        self._post = post

    def open(
        self, _outline: object, _most: int, done: Callable[..., None], **_renew: object
    ) -> None:
        self._post(lambda: done(Opened(self._stored, taken=None), None))

    def write(self, _write: object, done: Callable[..., None], **_bound: object) -> None:
        self._post(lambda: done(Written(1, 1, 0.0), None))


def _opened(root: Path, case: Case) -> OpenArray:
    """Open the array as the consumer does."""
    store = open_store(root, STORE, file_mode=0o644, folder_mode=0o755)
    entry = outline(case).entry
    return open_array(store, entry, write_empty_chunks=True, max_block_bytes=1 << 40)


def _copy(bodies: list[npt.NDArray[np.uint8]], target: npt.NDArray[np.uint8]) -> None:
    for body in bodies:
        target[: len(body)] = body


def _assemble(decoded: list[Message], array: OpenArray) -> Iterator[Any]:
    """Yield every write of the messages' tiles; each counts as done when the next is asked for."""
    assembler = Assembler(Budget(1 << 40), Arena(2 << 30), idle_s=1e9, max_age_s=1e9)
    for number, message in enumerate(decoded):
        identity = DeliveryId(1, number)
        assembler.add(identity, array.key, array.layout, message.tiles, since=0, now=0)
        while (write := assembler.next_write(0, idle=False)) is not None:
            yield write
            assembler.wrote(write)


def _envelope(message: Encoded) -> Envelope:
    properties = message.properties
    return Envelope(message.routing_key, properties["type"], properties["content_type"])


def _raise(error: Exception) -> None:
    raise error


def main() -> int:
    """Measure and print a table for each case."""
    # As the consumer has its memory treated.
    give_memory_back()
    gc.freeze()
    folder = Path("bench-results/stages")
    console = Console()
    for name in sys.argv[1:] or ["sharded-zstd", "unsharded-zstd"]:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        table = Table("stage", "ms/MB", "floor", "ms/MB", title=name)
        with RabbitMQ() as broker:
            for stage, took, floor, least in Stages(find(name, quick=False), folder).rows(broker):
                table.add_row(stage, f"{took:.2f}", floor, f"{least:.2f}" if floor else "")
        console.print(table)
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
