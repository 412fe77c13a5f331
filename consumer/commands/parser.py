"""What the commands' arguments have in common: the form of their help, and errors of one line."""

import argparse
from typing import Any, NoReturn

from consumer.errors import UnusableSettings, without_values

# What every clock can wait.
_LONGEST_S = 1e9


class CommandParser(argparse.ArgumentParser):
    """Parses the arguments of a command; what is wrong is one line.

    Parameters
    ----------
    prog : str
        The words that come before the arguments.
    description : str
        Its first line is the command's purpose.
    examples : tuple of str
        Whole commands.
    """

    def __init__(
        self, prog: str, description: str, *, examples: tuple[str, ...], **options: Any
    ) -> None:
        shown = "".join(f"\n  {example}" for example in examples)
        super().__init__(
            prog,
            description=description,
            epilog=f"{'examples' if len(examples) > 1 else 'example'}:{shown}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **options,
        )

    def error(self, message: str) -> NoReturn:
        """Raise instead of ending the process."""
        raise UnusableSettings(f"{without_values(message)}; see {self.prog} --help")


def seconds(text: str) -> float:
    """Return a time that can be waited."""
    value: float = _number(text, float, "a time in seconds")
    if not 0 <= value <= _LONGEST_S:
        raise argparse.ArgumentTypeError(f"{text!r} is no time in seconds")
    return value


def count(text: str) -> int:
    """Return a whole number from 0."""
    value: int = _number(text, int, "a whole number")
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is below 0")
    return value


def positive(text: str) -> int:
    """Return a whole number from 1."""
    value = count(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is below 1")
    return value


def sizes(text: str) -> list[int]:
    """Return whole numbers that commas separate."""
    what = "whole numbers separated by commas, e.g. 1,256,256"
    return [_number(part, int, what, shown=text) for part in text.split(",")]


def _number(text: str, kind: Any, what: str, shown: str | None = None) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{shown or text!r} is not {what}") from None
