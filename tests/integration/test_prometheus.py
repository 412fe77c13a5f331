"""A real Prometheus scrapes a real consumer, and its alerts fire."""

import json
import os
import re
import shutil
import signal
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeAlias

import pytest
import yaml

from conftest import MakeConsumer
from consumer.metrics import Metrics
from consumer.testing import free_port
from faults import Image, SlowDisk, wait_done
from harness import Channel, ConsumerProcess, wait_until

DEPLOY = Path(__file__).parents[2] / "deploy"
IMAGE = Image(0, "a.zarr", "x", (256, 256), 64, (("chunks", [1, 64, 64]),))
WAIT_S = 120.0


class Prometheus:
    """A Prometheus of its own, which scrapes one consumer every two seconds."""

    def __init__(self, folder: Path, consumer: ConsumerProcess, rules: str) -> None:
        folder.mkdir()
        self._folder = folder
        self._port = free_port()
        target = {"targets": [f"127.0.0.1:{consumer.port}"]}
        config = {
            "global": {"scrape_interval": "2s", "evaluation_interval": "2s"},
            "scrape_configs": [{"job_name": "tiles", "static_configs": [target]}],
            "rule_files": ["rules.yaml"],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        (folder / "rules.yaml").write_text(rules)

    def __enter__(self) -> Self:
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    "--config.file=prometheus.yml",
                    "--storage.tsdb.path=data",
                    f"--web.listen-address=127.0.0.1:{self._port}",
                ],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def get(self, path: str, **query: str) -> Any:
        """Return the data of an answer of its API."""
        url = f"http://127.0.0.1:{self._port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=60) as got:
            return json.load(got)["data"]

    def query(self, expression: str) -> dict[str, float]:
        """Return what an instant query finds: values by metric name, the greatest of each."""
        found: dict[str, float] = {}
        for each in self.get("query", query=expression)["result"]:
            name, value = each["metric"].get("__name__", ""), float(each["value"][1])
            found[name] = max(value, found.get(name, value))
        return found

    def wait_for(self, expression: str) -> None:
        """Return once a query finds something."""

        def found() -> bool:
            try:
                return bool(self.query(expression))
            except OSError:  # it is not up yet
                return False

        log = self._folder / "log"
        wait_until(found, lambda: f"{expression}:\n{log.read_text()[-3000:]}", WAIT_S, poll_s=0.5)

    def firing(self) -> dict[str, Mapping[str, str]]:
        """Return the labels of the alerts that fire, by name."""
        alerts = self.get("alerts")["alerts"]
        return {a["labels"]["alertname"]: a["labels"] for a in alerts if a["state"] == "firing"}

    def wait_firing(self, name: str, **labels: str) -> None:
        """Return once an alert fires with these labels among its own."""
        self._wait(name, lambda: labels.items() <= self.firing().get(name, {}).items())

    def wait_quiet(self, name: str) -> None:
        """Return once an alert no longer fires."""
        self._wait(name, lambda: name not in self.firing())

    def _wait(self, name: str, condition: Callable[[], bool]) -> None:
        wait_until(condition, lambda: f"{name}: {self.get('rules')}", WAIT_S, poll_s=0.5)


def hastened(name: str, **shorter: str) -> str:
    """Return the rules, of which one waits and stays only moments; `shorter`: of its expression."""
    rules = yaml.safe_load((DEPLOY / "prometheus" / "rules.yaml").read_text())
    (alert,) = (each for each in rules["groups"][0]["rules"] if each["alert"] == name)
    alert["for"] = "1s"
    if "keep_firing_for" in alert:
        alert["keep_firing_for"] = "1s"
    for before, after in shorter.items():
        assert before in alert["expr"]
        alert["expr"] = alert["expr"].replace(before, after)
    return yaml.safe_dump(rules)


Scrape: TypeAlias = Callable[[ConsumerProcess, str], Prometheus]


@pytest.fixture
def scrape(tmp_path: Path) -> Iterator[Scrape]:
    """Have a Prometheus with some rules scrape a consumer."""
    if shutil.which("prometheus") is None:
        missing = "there is no prometheus; deploy/scripts/setup-prometheus installs it"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    begun: list[Prometheus] = []

    def begin(consumer: ConsumerProcess, rules: str) -> Prometheus:
        begun.append(Prometheus(tmp_path / "prometheus", consumer, rules).__enter__())
        begun[-1].wait_for("up == 1")
        return begun[-1]

    yield begin
    for each in begun:
        each.__exit__()


def test_an_alert_fires_while_a_partition_is_stalled(
    make_consumer: MakeConsumer, producer: Channel, scrape: Scrape, tmp_path: Path
) -> None:
    disk, places = SlowDisk(tmp_path), IMAGE.places()
    rules = hastened("TilesPartitionStalled", **{"> 300": "> 4", "[2m]": "[6s]"})
    with make_consumer(environment=disk.environment, prefetch_count=2) as consumer:
        prometheus = scrape(consumer, rules)
        prometheus.wait_for("tiles_partition_waiting_messages == 0")
        assert "TilesPartitionStalled" not in prometheus.firing()
        disk.take(float("inf"))
        for place in places:
            producer.publish(IMAGE.message(place))
        prometheus.wait_firing("TilesPartitionStalled", partition="00", severity="critical")
        prometheus.wait_for(f"tiles_partition_waiting_messages == {len(places) - 2}")
        disk.take(0)
        wait_done(consumer, producer)
        prometheus.wait_quiet("TilesPartitionStalled")
        assert consumer.stop() == 0


def test_an_alert_fires_when_a_consumer_is_killed(
    make_consumer: MakeConsumer, scrape: Scrape
) -> None:
    with make_consumer() as consumer:
        prometheus = scrape(consumer, hastened("TilesConsumerDown"))
        assert "TilesConsumerDown" not in prometheus.firing()
        consumer.signal(signal.SIGKILL)
        prometheus.wait_firing("TilesConsumerDown", job="tiles")


def test_prometheus_knows_every_metric_and_answers_all_that_alerts_and_dashboard_ask(
    make_consumer: MakeConsumer, producer: Channel, scrape: Scrape
) -> None:
    rules = (DEPLOY / "prometheus" / "rules.yaml").read_text()
    with make_consumer() as consumer:
        prometheus = scrape(consumer, rules)
        for place in IMAGE.places():
            producer.publish(IMAGE.message(place))
        wait_done(consumer, producer)
        prometheus.wait_for("tiles_placed_total > 0 and tiles_root_size_bytes > 0")
        wanted = {s.name for m in Metrics().registry.collect() for s in m.samples}
        found = prometheus.query('last_over_time({__name__=~"tiles_.+"}[2m])')
        assert {name for name in wanted if not name.endswith("_created")} - set(found) == set()
        assert found["tiles_root_free_bytes"] <= found["tiles_root_size_bytes"]
        assert found["tiles_partition_last_delivery_timestamp_seconds"] > 1e9
        for expression in dashboard():
            prometheus.wait_for(expression)
        (group,) = prometheus.get("rules")["groups"]
        assert {rule["health"] for rule in group["rules"]} == {"ok"}
        assert prometheus.firing() == {}
        assert consumer.stop() == 0


def dashboard() -> list[str]:
    """Return what the dashboard's panels ask about all consumers."""
    panels = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())["panels"]
    asked = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    chosen = {"$__rate_interval": "1m", "$job": ".*", "$instance": ".*"}
    return [re.sub(r"\$\w+", lambda name: chosen[name[0]], each) for each in asked]
