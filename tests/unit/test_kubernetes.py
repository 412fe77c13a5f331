"""The Kubernetes manifests: valid, consistent with each other and with the settings."""

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ByteSize, TypeAdapter

from consumer import settings
from consumer.filesystem import Mount
from consumer.health import LOOP_LIMIT_S
from consumer.settings import ENV_PREFIX, Settings
from consumer.topology import topology
from manifests import (
    NAME,
    OVERLAYS,
    REPOSITORY,
    VERSIONS,
    Manifest,
    Rendered,
    copied,
    faults,
    rendered_from,
    tool,
)
from manifests import render as rendered_by_kubectl

# Between SIGTERM and the flush, and from its end to that of the process.
RESERVE_S = 15
# The processes themselves take 150 MiB; what they write lies in the page cache for a while.
BESIDE_THE_BUDGET = 256 << 20
# Logs and temporary files, which a node counts as well.
BESIDE_THE_SCRATCH = 1 << 30
# RabbitMQ's raft.wal_max_size_bytes; it wants memory for three of them at least.
WAL_BYTES, WALS = 512 << 20, 3
WRITTEN_BY_HAND = {  # production's Secrets
    "tile-consumer-rabbitmq",
    "tile-operator-rabbitmq",
    "tile-consumer-keda",
}
GUIDE = (REPOSITORY / "deploy" / "README.md").read_text()
RUNBOOK = (REPOSITORY / "deploy" / "RUNBOOK.md").read_text()
DEFINITIONS = json.loads((REPOSITORY / "deploy" / "rabbitmq" / "definitions.json").read_text())


@pytest.fixture(scope="module")
def both() -> dict[str, Rendered]:
    """Both overlays."""
    return {overlay: rendered_by_kubectl(overlay) for overlay in OVERLAYS}


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest, both: dict[str, Rendered]) -> Rendered:
    """Each overlay in turn."""
    return both[request.param]


@pytest.fixture
def production(both: dict[str, Rendered]) -> Rendered:
    """The overlay for production."""
    return both["production"]


@pytest.fixture
def settings_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """Return what `consumer run` makes of an overlay's variables, or of one of its pods'."""
    for name in [name for name in os.environ if name.upper().startswith(ENV_PREFIX)]:
        monkeypatch.delenv(name)

    def load(overlay: Rendered, pod: Manifest | None = None) -> Settings:
        for name, value in overlay.environment(pod or overlay.pod).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("TILES_OUTPUT_ROOT", "/output")
        return settings.load([])

    return load


# --- Valid


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_what_is_rendered(overlay: Rendered, version: str, tmp_path: Path) -> None:
    assert faults(overlay.manifests, version, tmp_path) == []


def _set(*path: Any) -> Callable[[Manifest], None]:
    *where, last, value = path

    def change(manifest: Manifest) -> None:
        place: Any = manifest
        for key in where:
            place = place[key]
        place[last] = value

    return change


def _without(*path: Any) -> Callable[[Manifest], None]:
    *where, last = path

    def change(manifest: Manifest) -> None:
        place: Any = manifest
        for key in where:
            place = place[key]
        del place[last]

    return change


_POD = ("spec", "template", "spec")
_CONTAINER = (*_POD, "containers", 0)
_BEHAVIOR = ("spec", "advanced", "horizontalPodAutoscalerConfig", "behavior")
BROKEN: dict[str, tuple[str, Callable[[Manifest], None]]] = {
    "misspelt field": ("StatefulSet", _set(*_POD, "enableServiceLink", False)),
    "field in the wrong place": ("StatefulSet", _set("spec", "securityContext", {})),
    "text for a number": ("StatefulSet", _set("spec", "replicas", "three")),
    "word that is none of the known": ("StatefulSet", _set("spec", "podManagementPolicy", 1)),
    "probe without a port": (
        "StatefulSet",
        _without(*_CONTAINER, "livenessProbe", "httpGet", "port"),
    ),
    "container without a name": ("StatefulSet", _without(*_CONTAINER, "name")),
    "no selector": ("StatefulSet", _without("spec", "selector")),
    "number for a variable": ("ConfigMap", _set("data", "TILES_WORKERS", 2)),
    "version that there is not": ("PodDisruptionBudget", _set("apiVersion", "policy/v7")),
    "kind that there is not": ("Service", _set("kind", "Servise")),
    "trigger's number not as text": (
        "ScaledObject",
        _set("spec", "triggers", 0, "metadata", "value", 500),
    ),
    "trigger's misspelt parameter": (
        "ScaledObject",
        _set("spec", "triggers", 0, "metadata", "excludeUnacked", "false"),
    ),
    "expression for queues over AMQP": (
        "ScaledObject",
        _set("spec", "triggers", 0, "metadata", "protocol", "amqp"),
    ),
    "period over half an hour": (
        "ScaledObject",
        _set(*_BEHAVIOR, "scaleDown", "policies", 0, "periodSeconds", 3600),
    ),
    "nothing to scale": ("ScaledObject", _without("spec", "scaleTargetRef")),
    "no duration": ("PodMonitor", _set("spec", "podMetricsEndpoints", 0, "interval", "often")),
    "empty duration": ("PodMonitor", _set("spec", "podMetricsEndpoints", 0, "interval", "")),
    "no pods to scrape": ("PodMonitor", _without("spec", "selector")),
    "secret without a key": (
        "TriggerAuthentication",
        _without("spec", "secretTargetRef", 0, "key"),
    ),
    "secret for what the trigger does not know": (
        "TriggerAuthentication",
        _set("spec", "secretTargetRef", 0, "parameter", "hosts"),
    ),
}


@pytest.mark.parametrize(("kind", "spoil"), BROKEN.values(), ids=BROKEN.keys())
def test_the_validator_refuses(
    production: Rendered, kind: str, spoil: Callable[[Manifest], None], tmp_path: Path
) -> None:
    manifest = copied(production.all(kind)[0])  # which it takes as it is: see above
    spoil(manifest)
    assert faults([manifest], VERSIONS[-1], tmp_path) != []


def test_rules_that_are_added_to_an_overlay_are_validated(tmp_path: Path) -> None:
    rule = {"alert": "TilesAbsent", "expr": "absent(tiles_subscribed)", "for": "5m"}
    manifest = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "tiles"},
        "spec": {"groups": [{"name": "tiles", "rules": [rule]}]},
    }
    assert faults([manifest], VERSIONS[-1], tmp_path) == []
    del rule["expr"]
    assert faults([manifest], VERSIONS[-1], tmp_path) != []


# --- Whole: what is named is there


def _claims_and_secrets(pod: Manifest) -> Iterator[tuple[str, str]]:
    for volume in pod["volumes"]:
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"]
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]


def test_what_pods_refer_to_is_there(overlay: Rendered) -> None:
    there = {(m["kind"], m["metadata"]["name"]) for m in overlay.manifests}
    if not overlay.all("Secret"):
        there |= {("Secret", name) for name in WRITTEN_BY_HAND}
    for pod in overlay.pods:
        needed = {*_claims_and_secrets(pod), ("ServiceAccount", pod["serviceAccountName"])}
        assert needed - there == set()


def test_the_guide_makes_the_secrets_that_production_does_not_hold(production: Rendered) -> None:
    assert production.all("Secret") == []
    for name in WRITTEN_BY_HAND:
        assert f"create secret generic {name}" in GUIDE
    for key in _files_of_secret(production):
        assert re.search(rf"--from-\w+={re.escape(key)}=", GUIDE), key


def test_what_the_guide_names_is_there(both: dict[str, Rendered]) -> None:
    there = {(m["kind"].lower(), m["metadata"]["name"]) for o in both.values() for m in o.manifests}
    short = {"pvc": "persistentvolumeclaim", "pv": "persistentvolume"}
    kinds = "statefulset|cronjob|deployment|pvc|pv|scaledobject"
    named = re.findall(rf"\b({kinds})(?:/| (?=tile-))([a-z][a-z-]+)", GUIDE + RUNBOOK)
    assert len(named) > 5
    assert {(short.get(kind, kind), name) for kind, name in named} - there == set()


def test_everything_lies_in_the_overlays_namespace(overlay: Rendered) -> None:
    (namespace,) = overlay.all("Namespace")
    outside = ("Namespace", "PersistentVolume")
    inside = [m for m in overlay.manifests if m["kind"] not in outside]
    assert {m["metadata"]["namespace"] for m in inside} == {namespace["metadata"]["name"]}


def test_selectors_find_the_consumers_pods(overlay: Rendered) -> None:
    template = overlay.one("StatefulSet", NAME)["spec"]["template"]
    labels = template["metadata"]["labels"].items()
    selectors = [
        overlay.one("StatefulSet", NAME)["spec"]["selector"]["matchLabels"],
        overlay.one("Service", NAME)["spec"]["selector"],
        overlay.one("PodDisruptionBudget", NAME)["spec"]["selector"]["matchLabels"],
        *(p["spec"]["podSelector"]["matchLabels"] for p in overlay.all("NetworkPolicy")),
        *(m["spec"]["selector"]["matchLabels"] for m in overlay.all("PodMonitor")),
        *(
            spread["labelSelector"]["matchLabels"]
            for spread in template["spec"]["topologySpreadConstraints"]
        ),
    ]
    assert all(selector.items() <= labels for selector in selectors)


def test_the_budget_and_the_service_do_not_count_the_doctor(overlay: Rendered) -> None:
    job = overlay.one("CronJob", f"{NAME}-doctor")["spec"]["jobTemplate"]
    labels = job["spec"]["template"]["metadata"]["labels"].items()
    assert not overlay.one("Service", NAME)["spec"]["selector"].items() <= labels
    budget = overlay.one("PodDisruptionBudget", NAME)
    assert not budget["spec"]["selector"]["matchLabels"].items() <= labels


def test_the_doctor_sees_what_the_consumer_sees(overlay: Rendered) -> None:
    consumer, doctor = overlay.pod, overlay.doctor
    for key in ("securityContext", "volumes", "serviceAccountName", "enableServiceLinks"):
        assert doctor[key] == consumer[key], key
    for key in ("image", "envFrom", "securityContext", "volumeMounts"):
        assert doctor["containers"][0][key] == consumer["containers"][0][key], key


# --- Right: as the consumer needs it


def test_the_settings_can_be_used(overlay: Rendered, settings_of: Callable[..., Settings]) -> None:
    assert settings_of(overlay).username_file is not None


def test_the_pod_may_flush_for_as_long_as_the_consumer_wants_to(
    overlay: Rendered, settings_of: Callable[..., Settings]
) -> None:
    grace = settings_of(overlay).grace_s
    assert overlay.pod["terminationGracePeriodSeconds"] == grace + RESERVE_S


def _bytes(quantity: str) -> int:
    return int(TypeAdapter(ByteSize).validate_python(re.sub("([KMGT]i)$", r"\1B", quantity)))


def test_memory_and_scratch_hold_what_the_settings_allow(
    overlay: Rendered, settings_of: Callable[..., Settings]
) -> None:
    found = settings_of(overlay)
    resources = overlay.pod["containers"][0]["resources"]
    memory = resources["limits"]["memory"]
    assert resources["requests"]["memory"] == memory
    assert _bytes(memory) >= found.memory_budget_bytes + BESIDE_THE_BUDGET
    (scratch,) = (v["emptyDir"] for v in overlay.pod["volumes"] if v["name"] == "scratch")
    assert _bytes(scratch["sizeLimit"]) > found.scratch_bytes
    assert scratch.get("medium") != "Memory"


def test_a_node_has_room_for_the_scratch_that_the_settings_allow(
    overlay: Rendered, settings_of: Callable[..., Settings]
) -> None:
    requests = overlay.pod["containers"][0]["resources"]["requests"]
    scratch = settings_of(overlay).scratch_bytes
    assert _bytes(requests["ephemeral-storage"]) >= scratch + BESIDE_THE_SCRATCH


def test_the_trial_broker_has_memory_for_its_write_ahead_log(both: dict[str, Rendered]) -> None:
    (container,) = both["dev"].one("Deployment", "rabbitmq")["spec"]["template"]["spec"][
        "containers"
    ]
    resources = container["resources"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"]
    assert _bytes(resources["limits"]["memory"]) >= WALS * WAL_BYTES


def test_the_number_of_threads_is_not_that_of_the_nodes_cores(overlay: Rendered) -> None:
    assert int(overlay.environment(overlay.pod)["TILES_WORKERS"]) <= 4


def test_probes_ask_for_liveness_and_readiness(overlay: Rendered) -> None:
    (container,) = overlay.pod["containers"]
    for probe, path in (
        ("startupProbe", "/livez"),
        ("livenessProbe", "/livez"),
        ("readinessProbe", "/readyz"),
    ):
        assert container[probe]["httpGet"] == {"path": path, "port": "http"}, probe
    starts = container["startupProbe"]
    assert starts["periodSeconds"] * starts["failureThreshold"] > 2 * LOOP_LIMIT_S


def test_the_named_port_is_the_consumers(
    overlay: Rendered, settings_of: Callable[..., Settings]
) -> None:
    (container,) = overlay.pod["containers"]
    (port,) = container["ports"]
    assert port == {"name": "http", "containerPort": settings_of(overlay).http_port}
    scraped = [
        e["port"] for m in overlay.all("PodMonitor") for e in m["spec"]["podMetricsEndpoints"]
    ]
    assert set(scraped) <= {"http"}


def test_pods_have_no_rights(overlay: Rendered) -> None:
    for pod in overlay.pods:
        user = {"runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532}
        assert pod["securityContext"].items() >= user.items()
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["containers"][0]["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert pod["automountServiceAccountToken"] is False


def test_the_user_is_that_of_the_image(overlay: Rendered) -> None:
    user = re.search(r"^USER (\d+):(\d+)$", (REPOSITORY / "Dockerfile").read_text(), re.M)
    assert user is not None
    context = overlay.pod["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == (int(user[1]), int(user[2]))


def test_services_add_no_variables(overlay: Rendered) -> None:
    assert overlay.pod["enableServiceLinks"] is False


def test_replicas_start_together_and_spread_over_nodes_and_zones(overlay: Rendered) -> None:
    assert overlay.one("StatefulSet", NAME)["spec"]["podManagementPolicy"] == "Parallel"
    spread = overlay.pod["topologySpreadConstraints"]
    assert {s["topologyKey"] for s in spread} == {
        "kubernetes.io/hostname",
        "topology.kubernetes.io/zone",
    }


# --- Secrets


def _files_of_secret(overlay: Rendered) -> set[str]:
    """Return the keys of the Secret that the settings name as files."""
    mounts = {m["name"]: m["mountPath"] for m in overlay.pod["containers"][0]["volumeMounts"]}
    folder = Path(mounts["rabbitmq"])
    named = overlay.environment(overlay.pod).items()
    files = [Path(value) for name, value in named if name.endswith("_FILE")]
    assert {file.parent for file in files} == {folder}
    return {file.name for file in files}


def test_secrets_are_files_that_follow_the_secret(overlay: Rendered) -> None:
    assert _files_of_secret(overlay) >= {"username", "password"}
    (container,) = overlay.pod["containers"]
    assert "env" not in container
    assert all("secretRef" not in source for source in container["envFrom"])
    (mount,) = (m for m in container["volumeMounts"] if m["name"] == "rabbitmq")
    # Kubernetes never updates what is mounted by subPath.
    assert "subPath" not in mount
    assert mount["readOnly"] is True
    (secret,) = (v["secret"] for v in overlay.pod["volumes"] if v["name"] == "rabbitmq")
    assert secret["defaultMode"] == 0o440


def test_the_trial_secret_has_all_files(both: dict[str, Rendered]) -> None:
    (secret,) = both["dev"].all("Secret")
    assert _files_of_secret(both["dev"]) <= set(secret["data"])


# --- Each overlay as it is meant


def test_trials_have_one_replica_that_declares(
    both: dict[str, Rendered], settings_of: Callable[..., Settings]
) -> None:
    dev = both["dev"]
    assert dev.one("StatefulSet", NAME)["spec"]["replicas"] == 1
    assert settings_of(dev).declare_topology
    assert {m["apiVersion"].split("/")[0] for m in dev.manifests} <= {
        "v1",
        "apps",
        "batch",
        "networking.k8s.io",
        "policy",
    }


def test_production_declares_nothing_and_speaks_tls(
    production: Rendered, settings_of: Callable[..., Settings]
) -> None:
    found = settings_of(production)
    assert not found.declare_topology
    assert found.tls
    assert found.tls_ca_file is not None


def test_the_autoscaler_alone_says_how_many_replicas(production: Rendered) -> None:
    scaled = production.one("ScaledObject", NAME)["spec"]
    assert scaled["scaleTargetRef"] == {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "name": NAME,
    }
    assert "replicas" not in production.one("StatefulSet", NAME)["spec"]
    partitions = int(production.environment(production.pod)["TILES_PARTITIONS"])
    assert 3 <= scaled["minReplicaCount"] <= scaled["maxReplicaCount"] <= partitions
    assert scaled["fallback"]["replicas"] >= scaled["minReplicaCount"]
    assert scaled["fallback"]["behavior"] == "currentReplicasIfHigher"


def _trigger(production: Rendered) -> dict[str, str]:
    (trigger,) = production.one("ScaledObject", NAME)["spec"]["triggers"]
    return dict(trigger["metadata"])


def test_what_is_being_written_counts_for_the_autoscaler(production: Rendered) -> None:
    trigger = _trigger(production)
    assert trigger["protocol"] == "http"
    assert trigger["excludeUnacknowledged"] == "false"
    assert (trigger["useRegex"], trigger["operation"]) == ("true", "sum")


@pytest.mark.parametrize(
    ("queue", "counts"),
    [
        ("tiles.00", True),
        ("tiles.12.00", True),
        ("tiles.12.11", True),
        ("tiles.256.255", True),
        ("tiles.parked", False),
        ("tiles.completed.0123456789abcdef", False),
        ("tilesX00", False),
        ("others.00", False),
        ("more.tiles.00", False),
    ],
)
def test_partition_queues_count_for_the_autoscaler(
    production: Rendered, queue: str, counts: bool
) -> None:
    assert bool(re.search(_trigger(production)["queueName"], queue)) is counts


def test_the_autoscalers_credentials_are_those_of_its_secret(production: Rendered) -> None:
    (trigger,) = production.one("ScaledObject", NAME)["spec"]["triggers"]
    named = production.one("TriggerAuthentication", trigger["authenticationRef"]["name"])
    for target in named["spec"]["secretTargetRef"]:
        assert target["name"] in WRITTEN_BY_HAND
        assert re.search(rf"--from-\w+={target['key']}=", GUIDE), target


def test_the_volume_is_mounted_as_the_fence_needs_it(production: Rendered) -> None:
    (volume,) = production.all("PersistentVolume")
    (claim,) = production.all("PersistentVolumeClaim")
    assert claim["spec"]["volumeName"] == volume["metadata"]["name"]
    assert claim["spec"]["accessModes"] == volume["spec"]["accessModes"] == ["ReadWriteMany"]
    options = set(volume["spec"]["mountOptions"])
    assert {"hard", "lookupcache=none", "actimeo=0"} <= options
    shown = {f"ac{what}{end}=0" for what in ("reg", "dir") for end in ("min", "max")}
    mount = Mount(Path("/output"), "nfs4", frozenset(options - {"actimeo=0"} | shown))
    assert mount.missing_options == []


# OpenShift's DNS listens on 5353 behind a Service; policies see the port behind.
DNS_PORTS = {53, 5353}


def _allowed(overlay: Rendered) -> list[Manifest]:
    return [rule for p in overlay.all("NetworkPolicy") for rule in p["spec"].get("egress", [])]


def test_the_network_lets_the_consumer_reach_names_and_broker_only(
    overlay: Rendered, settings_of: Callable[..., Settings]
) -> None:
    ports = {int(host.rpartition(":")[2]) for host in settings_of(overlay).hosts}
    assert {port["port"] for rule in _allowed(overlay) for port in rule["ports"]} == (
        ports | DNS_PORTS
    )
    policies = [p["spec"]["policyTypes"] for p in overlay.all("NetworkPolicy")]
    assert ["Ingress", "Egress"] in policies


def test_names_may_be_asked_of_whoever_the_cluster_has_answer_them(overlay: Rendered) -> None:
    (names,) = (r for r in _allowed(overlay) if {port["port"] for port in r["ports"]} & DNS_PORTS)
    # Caches on nodes and those of clouds are addresses, not pods that a selector would find.
    assert "to" not in names
    asked = {(port["port"], port["protocol"]) for port in names["ports"]}
    assert asked == {(port, way) for port in DNS_PORTS for way in ("UDP", "TCP")}


def test_the_network_lets_only_metrics_in(overlay: Rendered) -> None:
    rules = [rule for p in overlay.all("NetworkPolicy") for rule in p["spec"].get("ingress", [])]
    assert [rule["ports"] for rule in rules] == [[{"port": 8080, "protocol": "TCP"}]]


def test_images_have_a_version(overlay: Rendered) -> None:
    pods = [*overlay.pods, *(d["spec"]["template"]["spec"] for d in overlay.all("Deployment"))]
    for container in (c for pod in pods for c in pod["containers"]):
        assert re.search(r":(?!latest$)[\w.-]+$", container["image"]), container["image"]


# --- One number of partitions, one name for each user


def test_the_guide_and_the_definitions_have_productions_number_of_partitions(
    production: Rendered, settings_of: Callable[..., Settings]
) -> None:
    count = settings_of(production).partitions
    queues = {queue["name"] for queue in DEFINITIONS["queues"]} - {"tiles.parked"}
    assert queues == {queue.name for queue in topology(settings_of(production)).partitions}
    changed = GUIDE[GUIDE.index("## Changing the number of partitions") :]
    (more,) = set(re.findall(r"From \d+ to (\d+)", changed))
    assert {int(n) for n in re.findall(r"--from (\d+)", GUIDE)} == {count, int(more)}
    named = re.findall(r"--partitions (\d+)\b(?! --from)", GUIDE)
    assert {int(n) for n in named} == {count, int(more)}


def test_the_guide_and_the_runbook_name_users_that_the_definitions_make() -> None:
    made = {user["name"] for user in DEFINITIONS["users"]}
    written = set(re.findall(r"(?<![\w-])tiles-(?!dev|server)[a-z]+", GUIDE + RUNBOOK))
    assert written == made
    assert re.findall(r"username=([\w-]+)", GUIDE) == ["tiles-consumer", "tiles-operator"]


def test_the_guide_imports_the_definitions_and_gives_each_user_a_password() -> None:
    install = GUIDE.partition("Production, ")[2].partition("\n## ")[0]
    (copied_to,) = re.findall(r"kubectl cp ../../../rabbitmq/definitions.json \S+:(\S+)", install)
    # Not from standard input, which RabbitMQ 4's command does not read.
    assert f"import_definitions {copied_to}\n" in install
    for user in DEFINITIONS["users"]:
        short = user["name"].removeprefix("tiles-")
        assert re.search(rf"for user in .*\b{short}\b.*; do", install), user
    assert "topology declare" not in install


def test_the_autoscalers_address_ends_in_no_newline(tmp_path: Path) -> None:
    (made,) = re.findall(r"^printf .* > host\.txt$", GUIDE, re.MULTILINE)
    (tmp_path / "monitor.txt").write_text("a1b2\n")
    subprocess.run(["sh", "-c", made], cwd=tmp_path, check=True)
    written = (tmp_path / "host.txt").read_text()
    assert re.fullmatch(r"https://tiles-monitor:a1b2@[\w.]+:15671/", written)


def test_what_the_guide_waits_for_has_time_to_pull_an_image() -> None:
    waits = re.findall(r"kubectl (?:wait|rollout status) .*", GUIDE)
    assert waits
    assert [line for line in waits if not re.search(r"--timeout=\d+m", line)] == []


def test_names_of_the_cluster_are_for_commands_that_run_there() -> None:
    lines = re.findall(r"^(?!printf).*rabbitmq\.svc:.*", GUIDE, re.MULTILINE)
    assert lines == []


# --- Operators' commands


def test_operators_commands_run_with_the_operators_secret(production: Rendered) -> None:
    (secret,) = (v["secret"] for v in production.operator["volumes"] if v["name"] == "rabbitmq")
    assert secret["secretName"] == "tile-operator-rabbitmq"
    consumer, operator = production.pod["containers"][0], production.operator["containers"][0]
    for key in ("image", "envFrom", "securityContext", "volumeMounts"):
        assert operator[key] == consumer[key], key


def test_operators_commands_have_memory_of_their_own(
    production: Rendered, settings_of: Callable[..., Settings]
) -> None:
    budget = settings_of(production, production.operator).memory_budget_bytes
    limits = production.operator["containers"][0]["resources"]["limits"]
    assert _bytes(limits["memory"]) >= budget + BESIDE_THE_BUDGET


def test_operators_commands_take_any_settings_that_consumers_may_have(
    production: Rendered,
    settings_of: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = production.one("ConfigMap", "tile-consumer-settings")["data"]
    monkeypatch.setitem(given, "TILES_PREFETCH_COUNT", "87")
    assert settings_of(production).prefetch_count == 87
    settings_of(production, production.operator)


def test_the_consumers_are_told_from_the_operators_pod(production: Rendered) -> None:
    labels = production.one("Deployment", "tile-operator")["spec"]["template"]["metadata"]["labels"]
    for kind in ("Service", "PodDisruptionBudget"):
        selector = production.one(kind, NAME)["spec"]["selector"]
        assert not selector.get("matchLabels", selector).items() <= labels.items()
    reached = [p["spec"]["podSelector"]["matchLabels"] for p in production.all("NetworkPolicy")]
    assert all(selector.items() <= labels.items() for selector in reached)


@pytest.mark.parametrize(
    "line",
    [
        each
        for each in (GUIDE + RUNBOOK).splitlines()
        if re.match(r"kubectl exec .*-- consumer", each)
    ],
)
def test_commands_run_where_their_rights_are(line: str) -> None:
    pod, command = re.match(r"kubectl exec (\S+) -- consumer (\w+)", line).groups()  # type: ignore[union-attr]
    assert pod == ("POD" if command == "doctor" else "deployment/tile-operator")


def test_the_label_that_the_guide_gives_for_prometheus_reaches_both_of_its_kinds(
    tmp_path: Path,
) -> None:
    (shown,) = re.findall(r"```yaml\n(labels:.*?)```", GUIDE, re.DOTALL)
    overlay = REPOSITORY / "deploy" / "kubernetes" / "overlays" / "production"
    resources = {"resources": [os.path.relpath(overlay, tmp_path)]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(resources) + shown)
    rendered = rendered_from(tmp_path)
    for manifest in rendered.all("PodMonitor") + rendered.all("PrometheusRule"):
        assert manifest["metadata"]["labels"]["release"] == "kube-prometheus-stack"
    (selector,) = (m["spec"]["selector"] for m in rendered.all("PodMonitor"))
    assert "release" not in selector["matchLabels"]


def test_an_update_may_be_held_back_by_hand(overlay: Rendered) -> None:
    # What a manifest says would win over `kubectl patch` at the next `kubectl apply`.
    assert "updateStrategy" not in overlay.one("StatefulSet", NAME)["spec"]


# --- The image


def _hadolint(dockerfile: Path) -> "subprocess.CompletedProcess[str]":
    command = [tool("hadolint"), "--no-color", str(dockerfile)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_the_dockerfile_has_no_lint() -> None:
    done = _hadolint(REPOSITORY / "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")


def test_the_linter_finds_what_is_wrong_with_a_dockerfile(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python\nRUN cd / && pip install numpy\nCMD consumer run\n")
    done = _hadolint(bad)
    assert done.returncode == 1
    assert {"DL3006", "DL3013", "DL3025"} <= set(re.findall(r"DL\d+", done.stdout))
