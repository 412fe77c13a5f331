"""Who may import what."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "consumer"
PURE = (
    "assembler",
    "blocks",
    "budget",
    "coverage",
    "definitions",
    "holdings",
    "homes",
    "ledger",
    "ledger_format",
    "pace",
    "placed",
    "placement",
    "runs",
    "stored",
    "topology",
    "watchdog",
)


def _imports(module: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def _importers(library: str) -> set[str]:
    return {
        module.stem
        for module in (*PACKAGE.glob("*.py"), *PACKAGE.glob("commands/*.py"))
        if any(name.split(".")[0] == library for name in _imports(module))
    }


_PIKA = {
    "asking",
    "broker",
    "checks",
    "connection",
    "copies",
    "declaring",
    "outgoing",
    "parked",
    "questions",
    "sender",
    "subscription",
}


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        pytest.param("pika", _PIKA, id="pika"),
        pytest.param("zarr", {"arrays", "new_arrays", "encoder", "images"}, id="zarr"),
        pytest.param("packaging", {"doctor"}, id="packaging"),
        pytest.param("rich", {"display", "table"}, id="rich"),
        pytest.param("prometheus_client", {"metrics", "health"}, id="prometheus_client"),
    ],
)
def test_a_library_is_imported_in_its_own_modules_only(library: str, allowed: set[str]) -> None:
    assert _importers(library) == allowed


@pytest.mark.parametrize("name", PURE)
def test_the_core_does_no_io_and_reads_no_clock(name: str) -> None:
    forbidden = {"pika", "zarr", "time", "os", "pathlib", "threading", "logging", "asyncio"}
    tops = {imported.split(".")[0] for imported in _imports(PACKAGE / f"{name}.py")}
    assert tops & forbidden == set()


def test_what_a_producer_imports_loads_nothing_of_the_service() -> None:
    program = (
        "import sys, consumer.publisher\n"
        "service = {'zarr', 'prometheus_client', 'pydantic_settings', 'pythonjsonlogger',\n"
        "           'rich', 'consumer.settings', 'consumer.metrics'}\n"
        "print(sorted(service & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_what_runs_the_service_loads_nothing_that_only_other_commands_need() -> None:
    program = (
        "import sys, consumer.cli, consumer.commands.run, consumer.writer\n"
        "unwanted = {'rich', 'tifffile', 'consumer.publisher', 'consumer.checks'}\n"
        "print(sorted(unwanted & set(sys.modules)), 'consumer.service' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[] True"


@pytest.mark.parametrize(
    ("name", "needed"),
    [(name, []) for name in ("status", "missing", "wait", "reset")] + [("verify", ["zarr"])],
)
def test_a_command_on_ledgers_needs_no_broker_and_zarr_only_to_read_back(
    name: str, needed: list[str]
) -> None:
    program = (
        f"import sys, consumer.cli, consumer.commands.{name}\n"
        "print(sorted({'pika', 'zarr', 'prometheus_client', 'rich'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == str(needed)
