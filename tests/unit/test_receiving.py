"""What goes over the socket, in pieces of any size, is what pika itself would make of it."""

import random
from typing import Any

import pika
import pytest
from pika import frame, spec
from pika.adapters.select_connection import SelectConnection
from pika.exceptions import InvalidFrameError

from consumer.connection import _InPlace

BODIES = [b"", b"x", bytes(range(256)) * 40, b"\xce" * 3000]


def stream() -> bytes:
    """Return deliveries as a broker sends them, with heartbeats between, in frames of 1 KiB."""
    properties = pika.BasicProperties(type="tiles.v1", headers={"x-delivery-count": 2})
    frames: list[Any] = []
    for tag, body in enumerate(BODIES, start=1):
        frames.append(frame.Method(1, spec.Basic.Deliver("tag", tag, False, "tiles", "a.zarr")))
        frames.append(frame.Header(1, len(body), properties))
        frames += [frame.Body(1, body[i : i + 1024]) for i in range(0, len(body), 1024)]
        frames.append(frame.Heartbeat())
    return b"".join(each.marshal() for each in frames)


class Receiving(_InPlace):
    """A connection without a socket: notes the frames that it was given."""

    def __init__(self) -> None:
        self._frame_buffer = b""
        self._channel = self._left = self.bytes_received = 0
        self._ends = False
        self._missing, self._pieces = {}, {}
        self.frames: list[Any] = []

    def _process_frame(self, value: Any) -> None:
        self.frames.append(value)

    def receive(self, data: bytes, sizes: list[int]) -> None:
        """Receive data in pieces of the sizes given, again and again."""
        start, turn = 0, 0
        while start < len(data):
            size = sizes[turn % len(sizes)]
            self._on_data_available(data[start : start + size])
            start, turn = start + size, turn + 1


def deliveries(frames: list[Any]) -> list[bytes]:
    """Return the bodies that the frames make up."""
    bodies: list[bytes] = []
    for each in frames:
        if isinstance(each, frame.Method):
            bodies.append(b"")
        elif isinstance(each, frame.Body):
            bodies[-1] += bytes(each.fragment)
    return bodies


SIZES = [[1], [7], [8], [1023], [1032], [1 << 20], *([n, 5, 700] for n in range(1, 20))]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_frames_arrive_whatever_the_pieces(sizes: list[int]) -> None:
    receiving, data = Receiving(), stream()
    receiving.receive(data, sizes)
    assert deliveries(receiving.frames) == BODIES
    headers = [each for each in receiving.frames if isinstance(each, frame.Header)]
    assert [each.body_size for each in headers] == [len(body) for body in BODIES]
    assert headers[0].properties.headers == {"x-delivery-count": 2}
    heartbeats = [each for each in receiving.frames if isinstance(each, frame.Heartbeat)]
    assert len(heartbeats) == len(BODIES)
    assert receiving.bytes_received == len(data)


@pytest.mark.parametrize("seed", range(50))
def test_frames_arrive_in_pieces_of_random_size(seed: int) -> None:
    rng, receiving = random.Random(seed), Receiving()
    receiving.receive(stream(), [rng.randint(1, 3000) for _ in range(20)])
    assert deliveries(receiving.frames) == BODIES


@pytest.mark.parametrize("kind", [frame.Body(1, b"abc"), frame.Heartbeat()], ids=["body", "other"])
def test_a_frame_without_its_end_is_refused(kind: Any) -> None:
    data = kind.marshal()[:-1] + b"\x00"
    with pytest.raises(InvalidFrameError):
        Receiving().receive(data, [len(data)])


def test_a_body_comes_as_one_frame() -> None:
    receiving = Receiving()
    receiving.receive(stream(), [700])
    bodies = [each.fragment for each in receiving.frames if isinstance(each, frame.Body)]
    assert bodies == [body for body in BODIES if body]


def test_bodies_of_several_channels_may_come_in_turn() -> None:
    properties = pika.BasicProperties()
    bodies = {1: b"a" * 50, 2: b"b" * 70, 3: b"c" * 10}
    frames = [frame.Header(number, len(body), properties) for number, body in bodies.items()]
    for start in range(0, 70, 10):
        frames += [
            frame.Body(number, body[start : start + 10])
            for number, body in bodies.items()
            if body[start:]
        ]
    receiving = Receiving()
    receiving.receive(b"".join(each.marshal() for each in frames), [13])
    found = {e.channel_number: e.fragment for e in receiving.frames if isinstance(e, frame.Body)}
    assert found == bodies


def test_a_body_that_was_broken_off_leaves_nothing_behind() -> None:
    properties = pika.BasicProperties()
    frames = [
        frame.Header(1, 100, properties),
        frame.Body(1, b"broken off"),
        frame.Header(1, 5, properties),
        frame.Body(1, b"whole"),
    ]
    receiving = Receiving()
    receiving.receive(b"".join(each.marshal() for each in frames), [9])
    assert [e.fragment for e in receiving.frames if isinstance(e, frame.Body)] == [b"whole"]


@pytest.mark.parametrize("size", [1, 16 << 10, (128 << 10) - 8, (128 << 10) - 7, 300_000])
def test_a_body_is_sent_as_pika_would_send_it(size: int) -> None:
    def sent(kind: type[SelectConnection]) -> bytes:
        connection: Any = object.__new__(kind)
        connection._body_max_length = (128 << 10) - 8
        connection.bytes_sent = connection.frames_sent = 0
        pieces: list[bytes] = []
        connection._adapter_emit_data = lambda data: pieces.append(bytes(data))
        method = spec.Basic.Publish(exchange="tiles", routing_key="a.zarr", mandatory=True)
        body = bytes(range(256)) * (size // 256) + bytes(size % 256)
        connection._send_message(1, method, (spec.BasicProperties(type="tiles.v1"), body))
        return b"".join(pieces)

    assert sent(_InPlace) == sent(SelectConnection)
