"""The figures as a table, a picture and JSON."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
import psutil
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from benchmarks.cases import Case
from benchmarks.runs import CONSUMER, NOT_DURABLE, WRITERS, Run

mpl.use("Agg")
from matplotlib import pyplot as plt

_PACKAGES = ("zarr", "numcodecs", "numpy", "pika", "tensorstore")
_COLOURS = ("#0b6e4f", "#7fb69e", "#c44536", "#e0a458", "#b8c0cc", "#8d99ae")


def line(case: Case, writer: str, run: Run) -> str:
    """Return a line on one run."""
    return (
        f"{case.name} {writer} {_rate(case, run.seconds):.0f} MB/s, "
        f"{run.cpu_seconds / case.payload_bytes * 1e9:.1f} CPU s/GB, {run.peak_memory_mib:.0f} MiB"
    )


def figures(case: Case, runs: dict[str, list[Run]]) -> dict[str, Any]:
    """Return a case's entry: medians, rates in payload MB/s."""
    ours = runs[CONSUMER]
    rates = {
        writer: round(_rate(case, median(run.seconds for run in runs[writer])), 1)
        for writer in WRITERS
    }
    gigabytes = case.payload_bytes / 1e9
    return {
        "name": case.name,
        **rates,
        "ratios": ratios(rates),
        "peak_memory_mib": round(max(run.peak_memory_mib for run in ours), 1),
        "write_amplification": round(median(run.write_amplification for run in ours), 4),
        "cpu_seconds_per_gb": round(median(run.cpu_seconds for run in ours) / gigabytes, 2),
        "array_opens": max(run.array_opens for run in ours),
    }


def ratios(entry: dict[str, Any]) -> dict[str, float]:
    """Return the consumer's rate over others, and over what two of them would give."""
    drain, write = float(entry["drain_only"]), float(entry["write_only"])
    others = {
        "tensorstore": entry["tensorstore"],
        "per_tile": entry["per_tile"],
        "drain_then_write": 1 / (1 / drain + 1 / write),
        "slower": min(drain, write),
        NOT_DURABLE: entry[NOT_DURABLE],
    }
    return {name: round(entry[CONSUMER] / other, 3) for name, other in others.items()}


def write(folder: Path, entries: list[dict[str, Any]], broker: str) -> None:
    """Write `latest.json` and `throughput.png`."""
    document = {"machine": _machine(broker), "cases": entries}
    (folder / "latest.json").write_text(json.dumps(document, indent=2) + "\n")
    _picture(folder / "throughput.png", entries)


def show(entries: list[dict[str, Any]]) -> None:
    """Print the table, and how batches compare with single messages where both were measured."""
    others = ("peak MiB", "amplification", "CPU s/GB", "opens")
    columns = (*WRITERS, *(f"/ {name}" for name in entries[0]["ratios"]), *others)
    table = _table("payload MB/s, medians; / the consumer's over that", "case", *columns)
    for entry in entries:
        table.add_row(
            entry["name"],
            *(f"{entry[writer]:.0f}" for writer in WRITERS),
            *(f"{ratio:.2f}" for ratio in entry["ratios"].values()),
            f"{entry['peak_memory_mib']:.0f}",
            f"{entry['write_amplification']:.3f}",
            f"{entry['cpu_seconds_per_gb']:.1f}",
            f"{entry['array_opens']:.0f}",
        )
    _print(table)
    rates = {entry["name"]: entry[CONSUMER] for entry in entries}
    if {"small-single", "small-batched"} <= rates.keys():
        print(f"small-batched / small-single {rates['small-batched'] / rates['small-single']:.2f}")


def show_pairs(cases: dict[str, dict[str, list[Run]]]) -> None:
    """Print how the first writer of each case compares with the others, round by round."""
    table = _table("ratios within each round", "case", "rates", "median", "least", "most", "rounds")
    for name, runs in cases.items():
        first, *others = runs
        for other in others:
            found = paired(runs[first], runs[other])
            shown = (f"{ratio:.2f}" for ratio in (median(found), min(found), max(found)))
            table.add_row(name, f"{first} / {other}", *shown, str(len(found)))
    _print(table)


def paired(ours: list[Run], others: list[Run]) -> list[float]:
    """Return the ratio of the rates in each round."""
    return [b.seconds / a.seconds for a, b in zip(ours, others, strict=True)]


def _rate(case: Case, seconds: float) -> float:
    return case.payload_bytes / 1e6 / seconds


def _table(title: str, *columns: str) -> Table:
    """Return a table that can be taken over into a page."""
    table = Table(title=title, box=MARKDOWN)
    for column in columns:
        table.add_column(column, justify="left" if column in {"case", "rates"} else "right")
    return table


def _print(table: Table) -> None:
    Console(width=None if Console().is_terminal else 250).print(table)


def _machine(broker: str) -> dict[str, Any]:
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "broker": broker,
        "packages": {name: version(name) for name in _PACKAGES},
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "")


def _picture(path: Path, entries: list[dict[str, Any]]) -> None:
    figure, axes = plt.subplots(figsize=(max(8.0, 1.6 + 1.5 * len(entries)), 5))
    width = 0.8 / len(WRITERS)
    for index, (writer, colour) in enumerate(zip(WRITERS, _COLOURS, strict=True)):
        places = [x + (index - len(WRITERS) / 2 + 0.5) * width for x in range(len(entries))]
        rates = [entry[writer] for entry in entries]
        bars = axes.bar(places, rates, width, label=writer.replace("_", " "), color=colour)
        axes.bar_label(bars, fmt="%.0f", fontsize=6, padding=1)
    axes.set_xticks(range(len(entries)), [entry["name"].replace("-", "\n") for entry in entries])
    axes.set_yscale("log")
    axes.set_ylabel("payload, MB/s (logarithmic)")
    axes.set_title("From queue to durable Zarr")
    axes.legend(ncols=len(WRITERS), fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.19))
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
