"""`consumer schema`: prints the wire contract for other languages."""

import argparse
import sys
from collections.abc import Sequence

from consumer import asyncapi
from consumer.commands.parser import CommandParser


def main(arguments: Sequence[str]) -> int:
    """Print a document; return the exit code."""
    options = _parser().parse_args(arguments)
    documents = {"asyncapi": asyncapi.document, "json": asyncapi.tiles_schema}
    sys.stdout.write(asyncapi.as_text(documents[options.form]()))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "consumer schema",
        "Print the wire contract, generated from what the consumer checks.",
        examples=("consumer schema json > tiles.schema.json",),
    )
    parser.add_argument(
        "form",
        choices=["asyncapi", "json"],
        help="asyncapi: an AsyncAPI 3.0 document of all messages; "
        "json: the JSON Schema of what a message says of its tiles",
    )
    return parser
