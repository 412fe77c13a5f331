"""Faults to inject from outside: slow disks, cut connections, full file systems; and an oracle.

The product has no hooks for any of it.
"""

import contextlib
import selectors
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import zarr

from consumer.message import Encoded, encode
from consumer.testing import RabbitMQ, server_command
from harness import Channel, ConsumerProcess, wait_until

_SITECUSTOMIZE = """
import os, time

_fsync, _speed, _journal = os.fsync, os.environ["FSYNC_SPEED"], os.environ["FSYNC_JOURNAL"]


def _seconds():
    try:
        with open(_speed) as file:
            return float(file.read() or 0)
    except FileNotFoundError:
        return 0.0


def _note(word, descriptor):
    line = f"{word} {os.readlink(f'/proc/self/fd/{descriptor}')}\\n"
    journal = os.open(_journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(journal, line.encode())
    os.close(journal)


def fsync(descriptor):
    begun = time.monotonic()
    _note("begun", descriptor)
    while time.monotonic() - begun < _seconds():
        time.sleep(0.01)
    _fsync(descriptor)
    _note("ended", descriptor)


os.fsync = fsync
"""


class SlowDisk:
    """Makes every fsync of a consumer process take as long as the test says.

    Through a `sitecustomize` on the process's `PYTHONPATH`, which replaces `os.fsync`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "slow-disk"
        self._folder.mkdir()
        (self._folder / "sitecustomize.py").write_text(_SITECUSTOMIZE)
        self._speed, self._journal = self._folder / "speed", self._folder / "journal"
        self._journal.touch()

    @property
    def environment(self) -> dict[str, str]:
        """What the process needs in its environment."""
        return {
            "PYTHONPATH": str(self._folder),
            "FSYNC_SPEED": str(self._speed),
            "FSYNC_JOURNAL": str(self._journal),
        }

    def take(self, seconds: float) -> None:
        """Have every fsync take so long, those under way included; `inf`: until the next call."""
        part = self._speed.with_suffix(".part")
        part.write_text(str(seconds))
        part.rename(self._speed)

    def count(self, word: str, *, within: str = "") -> int:
        """How many fsyncs have `begun` or `ended` on paths that contain `within`."""
        lines = self._journal.read_text().splitlines()
        return sum(line.startswith(word) and within in line for line in lines)


class Proxy:
    """A TCP proxy before a broker, whose connections can be cut."""

    def __init__(self, target: str, address: str = "127.0.0.1") -> None:
        host, port = target.split(":")
        self._target = (host, int(port))
        self._address = address
        self._server = socket.create_server((address, 0))
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._lock = threading.Lock()
        self._ended = False
        self.refusing = False
        self.accepted: list[float] = []
        self._thread = threading.Thread(target=self._run, name="proxy")

    @property
    def host(self) -> str:
        """`host:port`, as the consumer's setting takes it."""
        return f"{self._address}:{self._server.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended = True
        self._thread.join()
        self.cut()
        self._selector.close()
        self._server.close()

    def cut(self) -> int:
        """Cut every connection, to both sides; return how many there were."""
        with self._lock:
            ends = list(self._pairs)
            for end in ends:
                self._close(end)
        return len(ends) // 2

    def _run(self) -> None:
        while not self._ended:
            for key, _ in self._selector.select(0.05):
                with self._lock:
                    if key.fileobj is self._server:
                        self._accept()
                    elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._pairs:
                        self._pump(key.fileobj)

    def _accept(self) -> None:
        client, _ = self._server.accept()
        self.accepted.append(time.monotonic())
        if self.refusing:
            client.close()
            return
        try:
            server = socket.create_connection(self._target, timeout=5)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        for one, other in ((client, server), (server, client)):
            self._pairs[one] = other
            self._selector.register(one, selectors.EVENT_READ)

    def _pump(self, source: socket.socket) -> None:
        try:
            data = source.recv(1 << 18)
            if data:
                self._pairs[source].sendall(data)
                return
        except OSError:
            pass
        other = self._pairs[source]
        self._close(source)
        self._close(other)

    def _close(self, end: socket.socket) -> None:
        if self._pairs.pop(end, None) is not None:
            self._selector.unregister(end)
            end.close()


@dataclass(frozen=True, eq=False)
class Image:
    """An array to be sent: every voxel tells its array and position, and none is zero."""

    number: int
    store: str
    path: str
    size: tuple[int, int]
    tile: int
    extra: tuple[tuple[str, Any], ...] = ()

    @cached_property
    def truth(self) -> npt.NDArray[np.uint32]:
        """CYX."""
        count = self.size[0] * self.size[1]
        first = 1 + self.number * (1 << 24)
        return np.arange(first, first + count, dtype=np.uint32).reshape(1, *self.size)

    def places(self) -> list[tuple[int, int]]:
        """Where the tiles go, in raster order."""
        rows, columns = (range(0, n, self.tile) for n in self.size)
        return [(y, x) for y in rows for x in columns]

    def message(self, *places: tuple[int, int], **options: bool) -> Encoded:
        """Return one message with the tiles of some places."""
        truth = self.truth
        fields = {
            "store": self.store,
            "array": self.path,
            "axes": "CYX",
            "shape": [1, *self.size],
            "dtype": "uint32",
            "tiles": [{"stitch_coords": place} for place in places],
            **dict(self.extra),
        }
        return encode(
            fields, [truth[(slice(None), *self.box(place))] for place in places], **options
        )

    def box(self, place: tuple[int, int]) -> tuple[slice, slice]:
        """The tile's region in the image."""
        (y, x), tile = place, self.tile
        return slice(y, min(y + tile, self.size[0])), slice(x, min(x + tile, self.size[1]))


@dataclass
class Oracle:
    """Knows only what was published with a confirm, and compares every voxel with it."""

    confirmed: dict[Image, set[tuple[int, int]]] = field(default_factory=dict)

    def note(self, image: Image, *places: tuple[int, int]) -> None:
        """Take note of tiles that the broker has confirmed."""
        self.confirmed.setdefault(image, set()).update(places)

    @property
    def count(self) -> int:
        """Tiles confirmed."""
        return sum(map(len, self.confirmed.values()))

    def wrong(self, root: Path) -> int:
        """How many voxels of the stores below a root are not what the confirmed tiles say."""
        return sum(self._wrong(root, image) for image in self.confirmed)

    def _wrong(self, root: Path, image: Image) -> int:
        try:
            array = zarr.open_array(root / image.store, path=image.path, mode="r")
        except FileNotFoundError:
            return image.truth.size
        stored = np.asarray(array[:], dtype=np.uint32)
        wanted = np.zeros_like(stored)
        for place in self.confirmed[image]:
            region = (slice(None), *image.box(place))
            wanted[region] = image.truth[region]
        return int(np.count_nonzero(stored != wanted))


def wait_done(consumer: ConsumerProcess, channel: Channel, timeout_s: float = 120.0) -> None:
    """Return once the queue has stayed empty, and nothing unacknowledged, for a second."""
    since: list[float] = []

    def quiet() -> bool:
        found = consumer.metrics()
        busy = found["tiles_unacknowledged"] or found["tiles_open_blocks"]
        if busy or not found["tiles_subscribed"] or channel.depth(f"{channel.prefix}.00"):
            since.clear()
            return False
        since.append(time.monotonic())
        return since[-1] - since[0] > 1.0

    wait_until(quiet, f"an empty queue:\n{consumer.tail()}", timeout_s)


def queued_messages(channel: Channel) -> list[tuple[Any, bytes]]:
    """Return properties and body of each message in the partition queue; they stay there.

    By consuming: a queue with a single active consumer refuses to be polled.
    """
    queue = f"{channel.prefix}.00"
    count, found = channel.depth(queue), []
    for _, properties, body in channel.channel.consume(queue) if count else ():
        found.append((properties, body))
        if len(found) == count:
            break
    channel.channel.cancel()
    return found


def log_lines(consumer: ConsumerProcess) -> list[str]:
    """Every line of the consumer's log."""
    return consumer.log.read_text().splitlines()


def tmpfs(folder: Path, size: str) -> contextlib.AbstractContextManager[Path]:
    """Mount a memory file system of its own; raises as `mounted` does."""
    return mounted("tmpfs", folder, f"size={size}")


@contextlib.contextmanager
def mounted(kind: str, folder: Path, options: str = "rw") -> Iterator[Path]:
    """Mount a file system without a device; raises PermissionError where that is not permitted."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", kind, "-o", options, kind, str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        raise PermissionError(f"{kind} cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, option: str) -> bool:
    """Change a mounted file system; return whether that worked."""
    command = ["mount", "-o", f"remount,{option}", str(folder)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def control(broker: RabbitMQ, *arguments: str, given: str | None = None) -> None:
    """Run rabbitmqctl on a private broker; `given` is what it reads."""
    command = Path(server_command()).with_name("rabbitmqctl")
    # The node stands in the environment: by the number of its arguments the command of RabbitMQ 4
    # judges whether it reads anything.
    done = subprocess.run(
        [command, *arguments],
        check=False,
        env=broker._environment(),
        input=given,
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, f"{arguments} ended with {done.returncode}: {done.stderr}"


def wait_registered(broker: RabbitMQ, queue: str) -> None:
    """Return once a new quorum queue outlives a kill of its broker.

    RabbitMQ has it on disk some seconds after it was declared (ra_directory, delayed writes of
    dets). Killed before that, it comes back with an empty queue that never gets a leader.
    """
    data = Path(broker._environment()["RABBITMQ_MNESIA_BASE"])
    wait_until(
        lambda: any(queue.encode() in names.read_bytes() for names in data.rglob("names.dets")),
        f"{queue} to be on disk",
    )


@contextlib.contextmanager
def silent_leader(broker: RabbitMQ, queue: str) -> Iterator[None]:
    """Have the leader of a quorum queue, of the virtual host `/`, answer nobody meanwhile."""
    # Its registered name (rabbit_quorum_queue, qname_to_internal_name).
    leader = f"'%2F_{queue}'"
    control(broker, "eval", f"sys:suspend({leader}).")
    try:
        yield
    finally:
        control(broker, "eval", f"sys:resume({leader}).")
