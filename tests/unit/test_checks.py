"""What `consumer doctor` knows of versions, of RabbitMQ and of packages."""

from importlib import metadata

import pytest

from consumer.checks import version
from consumer.commands import doctor
from consumer.findings import Verdict

VERSIONS = {
    "3.9.29": Verdict.FAILED,
    "3.10.0": Verdict.WARNING,
    "3.13.7": Verdict.WARNING,
    "4.0.5": Verdict.WARNING,
    "4.1.1": Verdict.WARNING,
    "4.1.2": Verdict.OK,
    "4.2.0": Verdict.OK,
    "4.2.6": Verdict.WARNING,
    "4.2.7": Verdict.OK,
    "4.3.0-rc.1": Verdict.FAILED,
    "4.3.0": Verdict.FAILED,
    "4.3.5": Verdict.FAILED,
    "4.3.6": Verdict.OK,
    "4.10.0": Verdict.OK,
    "5.0.0": Verdict.OK,
    "unknown": Verdict.WARNING,
}


@pytest.mark.parametrize(("text", "verdict"), VERSIONS.items())
def test_a_version_of_rabbitmq_is_judged(text: str, verdict: Verdict) -> None:
    finding = version("node", "RabbitMQ", text)
    assert finding.verdict is verdict
    assert f"RabbitMQ {text}" in finding.said
    assert bool(finding.remedy) == (verdict is not Verdict.OK)


def test_another_broker_is_told() -> None:
    assert version("node", "LavinMQ", "4.1.2").verdict is Verdict.WARNING


def test_the_packages_here_are_in_their_ranges() -> None:
    (finding,) = doctor._packages()
    assert finding.verdict is Verdict.OK
    for name in ("zarr", "numpy", "pika", "pydantic"):
        assert f"{name} {metadata.version(name)}" in finding.said


def test_a_package_that_is_too_old_or_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = metadata.version

    def version_of(name: str) -> str:
        if name == "pika":
            raise metadata.PackageNotFoundError(name)
        return "3.0.1" if name == "zarr" else installed(name)

    monkeypatch.setattr(metadata, "version", version_of)
    found = list(doctor._packages())
    said = [finding.said for finding in found if finding.verdict is Verdict.FAILED]
    assert [text.split(",")[0] for text in said] == ["pika missing", "zarr 3.0.1"]
    assert all("pip install" in f.remedy for f in found if f.verdict is Verdict.FAILED)
