"""The documents of the contract: committed as generated, complete, and with true examples."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from wire_documents import unchecked

from consumer import asyncapi
from consumer.cli import main
from consumer.contract import CONTENT_TYPE, MESSAGE_TYPE
from consumer.errors import ParkError, Undecodable
from consumer.message import Envelope, decode
from consumer.parking import HEADER_PREFIX, parked_properties

CONTRACT = Path(__file__).parents[2] / "deploy" / "contract"
DTYPES = {"F32": "float32", "U8": "uint8"}


@pytest.mark.parametrize(
    ("form", "name"), [("asyncapi", "asyncapi.json"), ("json", "tiles.schema.json")]
)
def test_what_is_committed_is_what_is_printed(
    form: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["schema", form]) == 0
    assert capsys.readouterr().out == (CONTRACT / name).read_text(), "run make contract"


def _examples(kind: str) -> list[Any]:
    files = sorted((CONTRACT / "examples" / kind).glob("*.json"))
    return [pytest.param(json.loads(file.read_text()), id=file.stem) for file in files]


def _decode(example: dict[str, Any]) -> None:
    tensors = [np.zeros(t["shape"], DTYPES[t["dtype"]]) for t in example["tensors"]]
    named = {"type": MESSAGE_TYPE, "content_type": CONTENT_TYPE} | example.get("properties", {})
    body = unchecked(example["tiles"], tensors)
    decode(Envelope(example["tiles"]["store"], **named), body)


@pytest.mark.parametrize("example", _examples("valid"))
def test_a_valid_example_is_taken(example: dict[str, Any]) -> None:
    _decode(example)


@pytest.mark.parametrize("example", _examples("invalid"))
def test_an_invalid_example_is_parked_with_its_reason(example: dict[str, Any]) -> None:
    with pytest.raises(ParkError) as parked:
        _decode(example)

    assert (parked.value.reason, str(parked.value)) == (example["reason"], example["detail"])


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for value in part.values():
            yield from _references(value)
    if isinstance(part, list):
        for value in part:
            yield from _references(value)


@pytest.mark.parametrize("make", [asyncapi.document, asyncapi.tiles_schema])
def test_every_reference_leads_somewhere(make: Any) -> None:
    document = make()
    for reference in _references(document):
        found = document
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]


def test_every_field_is_described() -> None:
    schema = asyncapi.tiles_schema()
    fields = schema["properties"] | schema["$defs"]["TileEntry"]["properties"]

    assert {name for name, part in fields.items() if part.get("description")} == set(fields)
    assert set(asyncapi.FIELDS) == set(fields)


def test_every_parking_header_is_described() -> None:
    names = "content_type content_encoding priority correlation_id reply_to message_id timestamp"
    kept = dict.fromkeys([*names.split(), "type", "app_id", "headers"])
    found = parked_properties(
        SimpleNamespace(**kept), Undecodable("x"), parking_id="1", routing_key="k", by="me"
    )

    described = {f"{HEADER_PREFIX}{name}" for name in asyncapi.PARKING_HEADERS}
    assert set(found["headers"]) == described
