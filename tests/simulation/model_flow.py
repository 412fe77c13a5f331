"""The real flow, and what it is given: memory, scratch file and metrics, quick and repeatable."""

from collections import deque
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from consumer import flow
from consumer.arena import Arena
from consumer.assembler import Assembler
from consumer.blocks import Block
from consumer.flow import Flow
from consumer.inbox import Held
from consumer.intake import Intake
from consumer.message import Message
from consumer.metrics import Metrics
from consumer.scratch import Stored

# What stands in memory that nobody has written yet.
_GARBAGE = 0xDEADBEEF
_ARENA_BYTES = 64 << 20


def model_flow(*arguments: Any, real_bodies: bool, **named: Any) -> Flow:
    """Return a flow that is told what a body says, unless it takes real ones."""
    intake = Intake if real_bodies else _ModelIntake
    with patch.multiple(flow, Assembler=_ModelAssembler, Intake=intake):
        return Flow(*arguments, **named)


class _ModelIntake(Intake):
    """Is told what a body says."""

    def _decoded(self, held: Held) -> Message:
        message: Message = held.delivery.properties.meant
        self._inbox.note_decoded(held, message)
        return message


class _ModelAssembler(Assembler):
    """An assembler whose new buffers hold garbage that is always the same."""

    def _with_buffer(self, *arguments: Any) -> Block | None:
        block = super()._with_buffer(*arguments)
        if block is not None and not block.filled.voxels and not block.whole_base:
            assert block.buffer is not None
            block.buffer.fill(_GARBAGE)
        return block


class ModelScratch:
    """A scratch file that never fails; what is read comes back at once, posted."""

    def __init__(self) -> None:
        self._bodies: deque[bytes] = deque()

    def keeps_up(self, _window: int, _timeout: float) -> bool:
        return True

    def put(self, body: bytes, done: Callable[..., None]) -> Stored:
        self._bodies.append(body)
        done(None)
        return Stored(0, len(body))

    @property
    def next_size(self) -> int:
        return len(self._bodies[0])

    def get(self, done: Callable[[Any], None]) -> None:
        body = self._bodies.popleft()
        done(SimpleNamespace(exception=lambda: None, result=lambda: body))

    def skip(self) -> None:
        self._bodies.popleft()

    def clear(self) -> None:
        self._bodies.clear()


class _NoMetrics:
    """Takes the place of every metric, label and value."""

    def __getattr__(self, name: str) -> "_NoMetrics":
        setattr(self, name, self)
        return self

    def __call__(self, *_arguments: object, **_labels: object) -> "_NoMetrics":
        return self


@cache
def arena() -> Arena:
    """Return the memory of all processes' buffers."""
    return Arena(_ARENA_BYTES)


@cache
def metrics(real: bool) -> Any:
    """Return metrics, or what takes the place of them."""
    return Metrics() if real else _NoMetrics()
