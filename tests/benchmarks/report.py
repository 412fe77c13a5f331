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
from rich.console import Console
from rich.table import Table

from benchmarks.cases import Case
from benchmarks.runs import CONSUMER, NOT_DURABLE, WRITERS, Run

mpl.use("Agg")
from matplotlib import pyplot as plt

_PACKAGES = ("zarr", "numcodecs", "numpy", "pika", "tensorstore")
_COLOURS = ("#0b6e4f", "#7fb69e", "#c44536", "#e0a458", "#b8c0cc", "#8d99ae")


def figures(case: Case, runs: dict[str, list[Run]]) -> dict[str, Any]:
    """Return a case's entry: medians, rates in payload MB/s."""
    ours = runs[CONSUMER]
    rates = {
        writer: round(case.payload_bytes / 1e6 / median(run.seconds for run in runs[writer]), 1)
        for writer in WRITERS
    }
    gigabytes = case.payload_bytes / 1e9
    return {
        "name": case.name,
        **rates,
        "peak_memory_mib": round(max(run.peak_memory_mib for run in ours), 1),
        "write_amplification": round(median(run.write_amplification for run in ours), 4),
        "cpu_seconds_per_gb": round(median(run.cpu_seconds for run in ours) / gigabytes, 2),
        "array_opens": max(run.array_opens for run in ours),
    }


def sequential(entry: dict[str, Any]) -> float:
    """Return the rate of draining first and writing then, in payload MB/s."""
    return 1 / (1 / float(entry["drain_only"]) + 1 / float(entry["write_only"]))


def write(folder: Path, entries: list[dict[str, Any]], broker: str) -> None:
    """Write `latest.json` and `throughput.png`."""
    document = {"machine": _machine(broker), "cases": entries}
    (folder / "latest.json").write_text(json.dumps(document, indent=2) + "\n")
    _picture(folder / "throughput.png", entries)


def show(entries: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(title="payload MB/s, medians")
    ratios = ("tensorstore", "per tile", "drain then write", "slower", "not durable")
    others = ("peak MiB", "amplification", "cpu s/GB", "opens")
    for column in ("case", *WRITERS, *(f"/ {each}" for each in ratios), *others):
        table.add_column(column, justify="left" if column == "case" else "right")
    for entry in entries:
        ours = entry[CONSUMER]
        slower = min(entry["drain_only"], entry["write_only"])
        of_others = (entry["tensorstore"], entry["per_tile"], sequential(entry))
        against = (*of_others, slower, entry[NOT_DURABLE])
        table.add_row(
            entry["name"],
            *(f"{entry[writer]:.0f}" for writer in WRITERS),
            *(f"{ours / other:.2f}" for other in against),
            f"{entry['peak_memory_mib']:.0f}",
            f"{entry['write_amplification']:.3f}",
            f"{entry['cpu_seconds_per_gb']:.1f}",
            f"{entry['array_opens']:.0f}",
        )
    Console(width=None if Console().is_terminal else 230).print(table)


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
    figure, axes = plt.subplots(figsize=(1.6 + 1.5 * len(entries), 5))
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
