"""Schemas of the custom resources that the manifests use, as their documentation describes them.

Closed: a field that is not listed here is refused, so what the manifests begin to use is added.
KEDA: "ScaledObject specification", "RabbitMQ Queue" and "Authentication" of keda.sh/docs;
Prometheus operator: "PodMonitor" and "PrometheusRule" of its API reference. Compared field by
field with their custom resource definitions, and with what KEDA's scaler for RabbitMQ refuses
beyond its own.
"""

from collections.abc import Mapping
from typing import Any

Schema = dict[str, Any]

_STRING: Schema = {"type": "string", "minLength": 1}
_LABELS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
_SECONDS: Schema = {"type": "integer", "minimum": 1}
_UNITS = ("y", "w", "d", "h", "m", "s", "ms")
_TIMES = "".join(f"([0-9]+{unit})?" for unit in _UNITS)
# The operator takes an empty one for none.
_DURATION: Schema = {"type": "string", "pattern": f"^(0|{_TIMES})$", "minLength": 1}


def _closed(required: Mapping[str, Schema], **optional: Schema) -> Schema:
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
        "additionalProperties": False,
    }


def _list(of: Schema, **limits: int) -> Schema:
    return {"type": "array", "items": of, **limits}


def _resource(api_version: str, kind: str, spec: Schema) -> Schema:
    metadata = _closed({"name": _STRING}, namespace=_STRING, labels=_LABELS, annotations=_LABELS)
    named = {"apiVersion": {"const": api_version}, "kind": {"const": kind}}
    return _closed({**named, "metadata": metadata, "spec": spec})


_PERIOD: Schema = {**_SECONDS, "maximum": 1800}
_POLICY = _closed(
    {"type": {"enum": ["Pods", "Percent"]}, "value": _SECONDS, "periodSeconds": _PERIOD}
)
_SCALING = _closed(
    {},
    stabilizationWindowSeconds={"type": "integer", "minimum": 0, "maximum": 3600},
    selectPolicy={"enum": ["Max", "Min", "Disabled"]},
    policies=_list(_POLICY, minItems=1),
)
_BEHAVIOR = _closed({}, scaleUp=_SCALING, scaleDown=_SCALING)
# KEDA's metadata are strings, numbers and truth values among them.
_FLAG: Schema = {"enum": ["true", "false"]}
_RABBITMQ = _closed(
    {"queueName": _STRING, "mode": {"enum": ["QueueLength", "MessageRate"]}, "value": _STRING},
    protocol={"enum": ["auto", "http", "amqp"]},
    activationValue=_STRING,
    vhostName=_STRING,
    useRegex=_FLAG,
    operation={"enum": ["sum", "max", "avg"]},
    pageSize=_STRING,
    timeout=_STRING,
    excludeUnacknowledged=_FLAG,
    unsafeSsl=_FLAG,
)
# Over AMQP the scaler can do none of this, and refuses it.
_OVER_HTTP = (("useRegex", "true"), ("excludeUnacknowledged", "true"), ("mode", "MessageRate"))
_RABBITMQ["allOf"] = [
    {
        "if": {"properties": {name: {"const": value}}, "required": [name]},
        "then": {"properties": {"protocol": {"enum": ["http", "auto"]}}},
    }
    for name, value in _OVER_HTTP
]
_TRIGGER = _closed(
    {"type": {"const": "rabbitmq"}, "metadata": _RABBITMQ},
    name=_STRING,
    metricType={"enum": ["AverageValue", "Value"]},
    useCachedMetrics={"type": "boolean"},
    authenticationRef=_closed({"name": _STRING}, kind=_STRING),
)
_COUNT: Schema = {"type": "integer", "minimum": 0}
_FALLBACKS = ["static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"]
_SCALED_OBJECT = _closed(
    {
        "scaleTargetRef": _closed({"name": _STRING}, apiVersion=_STRING, kind=_STRING),
        "triggers": _list(_TRIGGER, minItems=1),
    },
    pollingInterval=_SECONDS,
    cooldownPeriod=_SECONDS,
    minReplicaCount=_COUNT,
    maxReplicaCount=_COUNT,
    fallback=_closed(
        {"failureThreshold": _COUNT, "replicas": _COUNT},
        behavior={"enum": _FALLBACKS},
    ),
    advanced=_closed(
        {},
        restoreToOriginalReplicaCount={"type": "boolean"},
        horizontalPodAutoscalerConfig=_closed({}, name=_STRING, behavior=_BEHAVIOR),
    ),
)
# What the scaler for RabbitMQ takes from there.
_WHERE = ["host", "protocol", "vhostName"]
_WHO = ["username", "password", "tls", "ca", "cert", "key", "keyPassword"]
_PARAMETER: Schema = {"enum": _WHERE + _WHO}
_SECRET_KEY = _closed({"parameter": _PARAMETER, "name": _STRING, "key": _STRING})
_AUTHENTICATION = _closed({"secretTargetRef": _list(_SECRET_KEY, minItems=1)})
_ENDPOINT = _closed(
    {"port": _STRING},
    path=_STRING,
    scheme={"enum": ["http", "https"]},
    interval=_DURATION,
    scrapeTimeout=_DURATION,
    honorLabels={"type": "boolean"},
)
_POD_MONITOR = _closed(
    {
        "selector": _closed({}, matchLabels=_LABELS),
        "podMetricsEndpoints": _list(_ENDPOINT, minItems=1),
    },
    jobLabel=_STRING,
    podTargetLabels=_list(_STRING),
    namespaceSelector=_closed({}, any={"type": "boolean"}, matchNames=_list(_STRING)),
)
_RULE = _closed(
    {"expr": _STRING},
    alert=_STRING,
    record=_STRING,
    keep_firing_for=_DURATION,
    labels=_LABELS,
    annotations=_LABELS,
    **{"for": _DURATION},
)
_GROUP = _closed({"name": _STRING, "rules": _list(_RULE, minItems=1)}, interval=_DURATION)
_PROMETHEUS_RULE = _closed({"groups": _list(_GROUP, minItems=1)})

_KEDA = "keda.sh/v1alpha1"
_PROMETHEUS = "monitoring.coreos.com/v1"
SCHEMAS: dict[tuple[str, str], Schema] = {
    (_KEDA, "ScaledObject"): _resource(_KEDA, "ScaledObject", _SCALED_OBJECT),
    (_KEDA, "TriggerAuthentication"): _resource(_KEDA, "TriggerAuthentication", _AUTHENTICATION),
    (_PROMETHEUS, "PodMonitor"): _resource(_PROMETHEUS, "PodMonitor", _POD_MONITOR),
    (_PROMETHEUS, "PrometheusRule"): _resource(_PROMETHEUS, "PrometheusRule", _PROMETHEUS_RULE),
}
