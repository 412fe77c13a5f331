"""Checks side by side: what hangs or breaks holds up nobody else."""

import threading
from collections.abc import Iterator

from consumer.findings import Check, Finding, Verdict, side_by_side


def fine(name: str) -> Check:
    """Return a check that finds all well."""
    return Check(name, lambda: [Finding.ok(name, "well")], "")


def test_what_is_found_comes_in_order() -> None:
    rounds = [[fine("a"), fine("b")], [], [fine("c")]]
    assert [finding.check for finding in side_by_side(rounds, 5)] == ["a", "b", "c"]


def test_a_check_that_hangs_is_told_and_those_behind_it_are_not_looked_at() -> None:
    never = threading.Event()

    def hang() -> Iterator[Finding]:
        yield Finding.ok("hangs", "at first all is well")
        never.wait()

    rounds = [[fine("a"), Check("hangs", hang, "free it"), fine("b")], [fine("c")]]
    ended = [(f.check, f.verdict) for f in side_by_side(rounds, 0.2)]
    never.set()
    assert ended == [
        ("a", Verdict.OK),
        ("hangs", Verdict.OK),
        ("hangs", Verdict.FAILED),
        ("b", Verdict.UNKNOWN),
        ("c", Verdict.OK),
    ]


def test_a_check_that_breaks_is_told_and_those_behind_it_go_on() -> None:
    def fail() -> Iterator[Finding]:
        raise ZeroDivisionError("by zero")

    broken, after = side_by_side([[Check("broken", fail, "mend it"), fine("b")]], 5)
    assert broken == Finding.failed("broken", "ZeroDivisionError: by zero", "mend it")
    assert after.check == "b"
