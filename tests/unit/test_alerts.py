"""Alerts, dashboard and runbook name what exists, and the alerts fire when they should."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from consumer.cli import COMMANDS
from consumer.metrics import Metrics
from manifests import tool

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
RULES, CASES = (DEPLOY / "prometheus" / name for name in ("rules.yaml", "rules.test.yaml"))
RUNBOOK = (DEPLOY / "RUNBOOK.md").read_text()
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
ALERTS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
NAMES = [alert["alert"] for alert in ALERTS]


def samples() -> set[str]:
    """Return the name of every series that a consumer exposes."""
    return {sample.name for metric in Metrics().registry.collect() for sample in metric.samples}


def unknown(expressions: Iterable[str]) -> set[str]:
    """Return the names in PromQL that look like ours and that no consumer exposes."""
    named = {name for each in expressions for name in re.findall(r"\btiles_\w+", each)}
    return named - samples()


def expressions() -> list[str]:
    """Return all that the dashboard asks Prometheus."""
    targets = [each for panel in DASHBOARD["panels"] for each in panel.get("targets", ())]
    asked = [each["expr"] for each in targets + DASHBOARD["annotations"]["list"]]
    return asked + [each["query"] for each in DASHBOARD["templating"]["list"]]


# -- metrics ------------------------------------------------------------------------------------


@pytest.mark.parametrize("alert", ALERTS, ids=NAMES)
def test_an_alert_names_metrics_that_exist(alert: dict[str, Any]) -> None:
    assert "tiles_" in alert["expr"]
    assert not unknown([alert["expr"]])


def test_the_dashboard_names_metrics_that_exist() -> None:
    assert not unknown(expressions())


@pytest.mark.parametrize("name", ["tiles_no_such_total", "tiles_deliveries", "tiles_placed_sum"])
def test_a_panel_that_names_no_metric_is_found(name: str) -> None:
    assert unknown([*expressions(), f'sum(rate({name}{{job="tiles"}}[5m]))']) == {name}


def test_the_dashboard_shows_every_metric() -> None:
    shown = " ".join(expressions())
    missing = [
        metric.name
        for metric in Metrics().registry.collect()
        if not re.search(rf"\b{metric.name}(_total|_bucket)?\b", shown)
    ]
    assert missing == []


@pytest.mark.parametrize("script", ["dashboard", "prometheus-rule"])
def test_what_is_made_of_the_definitions_is_up_to_date(script: str) -> None:
    path = DEPLOY / "scripts" / script
    command = [sys.executable, str(path)] if script == "dashboard" else [str(path)]
    assert subprocess.run([*command, "--check"], check=False).returncode == 0


def test_the_custom_resource_holds_the_rules() -> None:
    resource = yaml.safe_load((DEPLOY / "prometheus" / "prometheus-rule.yaml").read_text())
    assert (resource["apiVersion"], resource["kind"]) == (
        "monitoring.coreos.com/v1",
        "PrometheusRule",
    )
    assert resource["spec"] == yaml.safe_load(RULES.read_text())


def test_an_overlay_takes_rules_and_dashboard_as_components(tmp_path: Path) -> None:
    folders = [os.path.relpath(DEPLOY / name, tmp_path) for name in ("prometheus", "grafana")]
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"components": folders}))
    rendered = subprocess.run(
        [tool("kubectl"), "kustomize", tmp_path], capture_output=True, text=True, check=True
    )
    kinds = {each["kind"]: each for each in yaml.safe_load_all(rendered.stdout)}
    assert kinds["PrometheusRule"]["spec"] == yaml.safe_load(RULES.read_text())
    assert json.loads(kinds["ConfigMap"]["data"]["dashboard.json"]) == DASHBOARD


# -- the runbook --------------------------------------------------------------------------------


def test_each_alert_has_its_entry_in_the_runbook_and_names_it() -> None:
    assert re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE) == NAMES
    for alert in ALERTS:
        assert alert["annotations"]["runbook"] == f"deploy/RUNBOOK.md#{alert['alert'].lower()}"


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_says_what_it_means_where_to_look_and_what_to_do(name: str) -> None:
    entry = RUNBOOK.partition(f"## {name}\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\*\*(\w+)\*\*", entry, re.MULTILINE) == ["Means", "Look", "Do"]


def test_the_runbook_names_commands_and_entries_that_exist() -> None:
    assert set(re.findall(r"-- consumer (\w+)", RUNBOOK)) <= set(COMMANDS)
    assert not re.findall(r"^consumer ", RUNBOOK, re.MULTILINE), "in which pod, as which user?"
    links = set(re.findall(r"\]\(#(\w+)\)", RUNBOOK))
    assert links <= {name.lower() for name in NAMES}


# -- promtool -----------------------------------------------------------------------------------


@pytest.fixture
def promtool() -> str:
    """The program that checks and tries rules."""
    found = shutil.which("promtool")
    if found is None:
        missing = "there is no promtool; deploy/scripts/setup-prometheus installs it"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    assert found is not None
    return found


def tried(promtool: str, folder: Path, rules: list[dict[str, Any]], cases: str) -> int:
    """Try rules on the cases whose name begins so; return promtool's exit code."""
    # All as text: to YAML, series such as 0x20 are numbers.
    known = yaml.load(CASES.read_text(), Loader=yaml.BaseLoader)
    known["tests"] = [each for each in known["tests"] if each["name"].startswith(cases)]
    groups = {"groups": [{"name": "tiles", "rules": rules}]}
    (folder / RULES.name).write_text(yaml.safe_dump(groups))
    (folder / CASES.name).write_text(yaml.safe_dump(known))
    command = [promtool, "test", "rules", str(folder / CASES.name)]
    return subprocess.run(command, capture_output=True, check=False).returncode


def changed(name: str, **changes: str) -> list[dict[str, Any]]:
    """Return the rules with something of one alert changed."""
    return [alert | changes if alert["alert"] == name else alert for alert in ALERTS]


def test_prometheus_takes_the_rules(promtool: str) -> None:
    assert subprocess.run([promtool, "check", "rules", RULES], check=False).returncode == 0


def test_all_cases_hold(promtool: str) -> None:
    assert subprocess.run([promtool, "test", "rules", CASES], check=False).returncode == 0


@pytest.mark.parametrize("name", NAMES)
def test_an_alert_fires_and_is_quiet_as_its_cases_say(
    promtool: str, tmp_path: Path, name: str
) -> None:
    assert tried(promtool, tmp_path, ALERTS, cases=name) == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"expr": "vector(0) > 1"}, id="never"),
        pytest.param({"expr": "vector(1)"}, id="always"),
    ],
)
def test_cases_see_an_alert_that_is_wrong(
    promtool: str, tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    assert tried(promtool, tmp_path, changed(name, **changes), cases=name) == 1


@pytest.mark.parametrize("name", [alert["alert"] for alert in ALERTS if "for" in alert])
def test_cases_see_an_alert_that_does_not_wait(promtool: str, tmp_path: Path, name: str) -> None:
    assert tried(promtool, tmp_path, changed(name, **{"for": "0s"}), cases=name) == 1
