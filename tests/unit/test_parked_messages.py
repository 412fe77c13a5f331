"""What is shown of a parked message that strangers made, and which can be published again."""

import json
from typing import Any

import pika
import pytest

from consumer.commands import parked
from consumer.commands.display import show_record
from consumer.parked import ParkedMessage


def message(key: str, headers: dict[Any, Any] | None = None) -> ParkedMessage:
    """Return a message that waits in the parking queue."""
    return ParkedMessage(1, key, pika.BasicProperties(headers=headers), b"body")


def test_names_that_are_no_text_are_shown_at_any_depth(
    capsys: pytest.CaptureFixture[str],
) -> None:
    strange = {b"\xff": 1, "list": [{b"\xfe": [{b"\xfd": "x"}]}]}
    for as_json in (True, False):
        show_record(parked._everything(message("a.zarr", strange)), as_json=as_json)
    shown = json.loads(capsys.readouterr().out.splitlines()[0])["headers"]
    assert shown == {"b'\\xff'": 1, "list": [{"b'\\xfe'": [{"b'\\xfd'": "x"}]}]}


@pytest.mark.parametrize(("key", "can_be"), [("a" * 255, True), ("a" * 256, False)])
def test_what_has_no_place_in_a_frame_is_not_published(key: str, can_be: bool) -> None:
    assert message(key).readable == can_be
