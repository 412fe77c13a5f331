"""`consumer doctor`: whether all is there that `consumer run` needs."""

import argparse
import platform
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from consumer import checks
from consumer.commands.display import show_table
from consumer.filesystem import examine, examine_below, examine_clock, examine_scratch
from consumer.findings import Check, Finding, Verdict, side_by_side
from consumer.service import unknown_variables
from consumer.settings import Settings, load

PURPOSE = """\
Check that the output root, RabbitMQ and the packages are what `consumer run` needs.

A line for each, and what to do where it is not so; nothing is changed. The settings are those of
`consumer run`, from the same places; it takes the same options.

exit code:
  0  nothing must be changed; a warning changes nothing
  1  something must be"""

_COLUMNS = ("verdict", "check", "said", "remedy")
_DISTRIBUTION = "zarr-tile-consumer"
_EXTRA = "service"
_SECONDS = 10.0


def main(arguments: Sequence[str]) -> int:
    """Show what is found; return the exit code."""
    parser = argparse.ArgumentParser(
        "consumer doctor",
        usage="consumer doctor [--json] [OPTIONS OF consumer run]",
        description=PURPOSE,
        epilog="example:\n  consumer doctor --output-root /data/predictions --hosts rabbitmq:5672",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="a JSON object for each line")
    options, settings = parser.parse_known_args(arguments)
    verdicts: set[Verdict] = set()
    rows = _rows(load(settings, "consumer doctor"), verdicts)
    show_table(_COLUMNS, rows, as_json=options.json)
    return int(Verdict.FAILED in verdicts)


def _rows(settings: Settings, verdicts: set[Verdict]) -> Iterator[dict[str, Any]]:
    for finding in side_by_side(_rounds(settings), _SECONDS):
        verdicts.add(finding.verdict)
        yield {name: getattr(finding, name) for name in _COLUMNS}


def _rounds(settings: Settings) -> list[list[Check]]:
    root, accepted = settings.output_root, settings.accept_filesystem
    disk = "see whether the disk, or the server behind it, is well"
    here = [
        Check("settings", partial(_settings, settings), "see `consumer run --help`"),
        Check("consumer timeout", partial(_consumer_timeout, settings), ""),
        Check("packages", _packages, f"install {_DISTRIBUTION}[{_EXTRA}]"),
    ]
    stored = [
        Check("output root", partial(examine, root, accepted), disk),
        Check(
            "one file system", partial(_where_usable, "one file system", examine_below, root), disk
        ),
        Check("clock", partial(_where_usable, "clock", examine_clock, root), disk),
    ]
    look = partial(examine_scratch, settings.scratch_folder, settings.scratch_bytes)
    scratch = [Check("scratch folder", look, disk)]
    return [here, stored, scratch, *checks.rounds(settings)]


def _where_usable(
    check: str, look: Callable[[Path], Iterator[Finding]], root: Path
) -> Iterator[Finding]:
    """Yield what is found on a root that can be used; that it cannot is said already."""
    try:
        yield from look(root)
    except OSError as error:
        yield Finding.unknown(check, f"not looked at: {error}")


def _settings(settings: Settings) -> Iterator[Finding]:
    unknown = unknown_variables(settings)
    if unknown:
        said = f"no settings are {', '.join(unknown)}"
        yield Finding.warning("settings", said, "see `consumer run --help`")
    else:
        yield Finding.ok("settings", "every TILES_ variable is a setting")


def _consumer_timeout(settings: Settings) -> Iterator[Finding]:
    # That max_age_s is below a third of it was checked with the settings.
    yield Finding.unknown(
        "consumer timeout",
        f"max_age_s {settings.max_age_s:g} is below a third of consumer_timeout_s "
        f"{settings.consumer_timeout_s:g}; whether RabbitMQ's is that cannot be told over AMQP",
        "compare with consumer_timeout (in ms) of `rabbitmqctl environment`, and with policies",
    )


def _packages() -> Iterator[Finding]:
    """Yield whether the packages are in the ranges that ours says it needs."""
    installed = [f"Python {platform.python_version()}"]
    for text in metadata.requires(_DISTRIBUTION) or ():
        needed = Requirement(text)
        if needed.marker and not needed.marker.evaluate({"extra": _EXTRA}):
            continue
        try:
            found = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            found = "missing"
        if found == "missing" or not needed.specifier.contains(found, prereleases=True):
            said = f"{needed.name} {found}, needed is {needed.specifier}"
            remedy = f"pip install '{_DISTRIBUTION}[{_EXTRA}]'"
            yield Finding.failed("packages", said, remedy)
        else:
            installed.append(f"{needed.name} {found}")
    yield Finding.ok("packages", ", ".join(installed))
