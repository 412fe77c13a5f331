"""What the commands on ledgers have in common: their flags, the output root, names of arrays."""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from consumer import settings
from consumer.blocks import ArrayKey
from consumer.commands.parser import CommandParser
from consumer.errors import UnusableSettings
from consumer.keys import STORE_SUFFIX, check_array_path, check_store_key
from consumer.settings import Settings


class Parser(CommandParser):
    """Takes the flags of a command on ledgers."""

    def __init__(self, name: str, purpose: str, example: str) -> None:
        super().__init__(f"consumer {name}", purpose, examples=(example,))
        self.add_argument(
            "--output-root",
            metavar="FOLDER",
            help="folder below which all stores are written; default: TILES_OUTPUT_ROOT",
        )
        self.add_argument(
            "--config-file",
            metavar="FILE",
            help="TOML file with settings; default: TILES_CONFIG_FILE",
        )

    def add_array(self) -> None:
        """Take the name of an array."""
        self.add_argument(
            "array",
            metavar="STORE/ARRAY",
            type=array_key,
            help="array below the output root, e.g. plate7/d_output.zarr/g1/img",
        )

    def settings(self, options: argparse.Namespace) -> Settings:
        """Return the settings, as `consumer run` would have them."""
        given = {"--output-root": options.output_root, "--config-file": options.config_file}
        flags = [word for flag, value in given.items() if value for word in (flag, value)]
        found = settings.load(flags, self.prog)
        if not found.output_root.is_dir():
            raise UnusableSettings(f"output_root: there is no folder {found.output_root}")
        return found

    def root(self, options: argparse.Namespace) -> Path:
        """Return the output root."""
        return self.settings(options).output_root


def array_key(name: str) -> ArrayKey:
    """Return the array that `STORE/ARRAY` names.

    Raises
    ------
    UnsafePath
        As of a message that names it.
    """
    segments = name.split("/")
    ends = (i for i, segment in enumerate(segments, 1) if segment.endswith(STORE_SUFFIX))
    depth = next(ends, len(segments))
    store, path = "/".join(segments[:depth]), "/".join(segments[depth:])
    return ArrayKey(check_store_key(store), check_array_path(path))


def write_lines(lines: Iterable[str]) -> None:
    """Write lines to standard output, each at once."""
    for line in lines:
        sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
