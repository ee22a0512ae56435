"""Writes measures as metrics in the text format of Prometheus.

Each whole number of the document is a metric. In a list, `_LABELS` of a row say what it is of. The
help of a metric is what the API's schema says of the field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import TypeAdapter

from xsc.api.monitor import Measures
from xsc.base.limits import PPM

_ROWS: Final = {
    "margins": "",
    "kinds": "market_",
    "leases": "",
    "peers": "peer_",
    "events": "event_",
}
"""What the metrics of a list begin with."""
_LABELS: Final = ("peer", "name", "role", "kind", "event", "margin")
_UNITS: Final = (
    ("_per_s", "_per_second", 1),
    ("_ppm", "_ratio", PPM),
    ("_ms", "_seconds", 1_000),
    ("_s", "_seconds", 1),
)
"""The end of a field's name, that of its metric, and by how much it is divided."""


def to_text(document: Mapping[str, Any]) -> str:
    """Return measures as Prometheus reads them.

    Args:
        document: as the API answers it.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Metrics(document))
    return generate_latest(registry).decode()


class _Metrics(Collector):
    """The metrics of one document."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self._found: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}

    def collect(self) -> Iterator[Metric]:
        """Yield every metric, with all of its samples."""
        status = self._document["status"]
        levels = {**status, **self._document}
        self._take("", levels, {})
        for name, value in status.items():
            if isinstance(value, dict):
                self._take(f"{name}_", value, {})
        for name, prefix in _ROWS.items():
            for row in self._document[name]:
                told = {label: str(row[label]) for label in _LABELS if label in row}
                self._take(prefix, row, told)
        yield from self._found.values()

    def _take(self, prefix: str, row: Mapping[str, Any], labels: Mapping[str, str]) -> None:
        for field, number in row.items():
            counted = prefix == _ROWS["events"]
            # Of most events most sums are none.
            if isinstance(number, int) and field not in labels and (number or not counted):
                name, by = _metric(f"{prefix}{field}")
                if name not in self._found:
                    kind = CounterMetricFamily if counted else GaugeMetricFamily
                    self._found[name] = kind(
                        name, _helps().get(f"{prefix}{field}", name), labels=[*labels]
                    )
                value = number if by == 1 else number / by
                self._found[name].add_metric([*labels.values()], value)


@cache
def _metric(field: str) -> tuple[str, int]:
    """Return the name of a field's metric, in a unit of Prometheus, and by how much to divide."""
    for end, unit, by in _UNITS:
        if field.endswith(end):
            return f"xsc_{field.removesuffix(end)}{unit}", by
    return f"xsc_{field}", 1


@cache
def _helps() -> Mapping[str, str]:
    """Return what the schema says of the fields, by prefix and name."""
    schema = TypeAdapter(Measures).json_schema()
    found: dict[str, str] = {}

    def take(prefix: str, model: Mapping[str, Any]) -> None:
        for name, said in model["properties"].items():
            if "description" in said:
                found.setdefault(prefix + name, " ".join(said["description"].split()))

    def of(said: Mapping[str, Any]) -> Mapping[str, Any]:
        kind: Mapping[str, Any] = schema["$defs"][said["$ref"].rsplit("/", 1)[1]]
        return kind

    status = of(schema["properties"]["status"])
    for model in (schema, status):
        take("", model)
    for name, said in status["properties"].items():
        if "$ref" in said:
            take(f"{name}_", of(said))
    for name, prefix in _ROWS.items():
        take(prefix, of(schema["properties"][name]["items"]))
    return found
