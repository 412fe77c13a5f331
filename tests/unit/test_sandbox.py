"""Where no file tree of its own can be made: what CI must have fails there, and is not skipped."""

import os
import shutil
from pathlib import Path

import pytest

import sandbox
from sandbox import Sandbox, require_sandbox


@pytest.fixture(params=["1", ""], ids=["in CI", "elsewhere"])
def in_ci(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether this is CI: both in turn."""
    monkeypatch.setenv("CI", request.param)
    return bool(request.param)


def outcome(folder: Path) -> str:
    """Return what becomes of a test that needs a sandbox."""
    try:
        require_sandbox(folder)
    except pytest.skip.Exception:
        return "skipped"
    except pytest.fail.Exception:
        return "failed"
    return "run"


def test_a_program_that_is_missing_fails_in_ci(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, in_ci: bool
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "setpriv" else "/bin/x")
    assert outcome(tmp_path) == ("failed" if in_ci else "skipped")


def test_a_sandbox_that_does_not_work_fails_in_ci(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, in_ci: bool
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: "/bin/x")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(Sandbox, "command", lambda _self, _argv: ["broken"])
    monkeypatch.setattr(sandbox, "_said", lambda command: "no" if command == ["broken"] else "")
    assert outcome(tmp_path) == ("failed" if in_ci else "skipped")


def test_a_user_who_is_not_root_skips_it_in_ci_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, in_ci: bool
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: "/bin/x")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert outcome(tmp_path) == "skipped", in_ci


def test_a_machine_that_permits_no_mounts_skips_it_in_ci_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, in_ci: bool
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: "/bin/x")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(sandbox, "_said", lambda _command: "exit code 1: not permitted")
    assert outcome(tmp_path) == "skipped", in_ci
