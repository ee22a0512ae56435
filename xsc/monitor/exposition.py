"""Writes measures as metrics in the text format of Prometheus.

Each whole number of the document is a metric. In a list, `_LABELS` of a row say what it is of. The
help of a metric is what the API's schema says of the field.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from typing import Any, Final

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
    status = document["status"]
    lines: dict[str, list[str]] = {}
    _take(lines, "", {**status, **document}, ())
    for name, value in status.items():
        if isinstance(value, dict):
            _take(lines, f"{name}_", value, ())
    for name, prefix in _ROWS.items():
        for row in document[name]:
            _take(lines, prefix, row, [label for label in _LABELS if label in row])
    return "".join(f"{line}\n" for metric in lines.values() for line in metric)


def _take(
    lines: dict[str, list[str]], prefix: str, row: Mapping[str, Any], labels: Collection[str]
) -> None:
    """Add the numbers of a row to the lines of their metrics."""
    told = ",".join(f'{label}="{_escaped(str(row[label]))}"' for label in labels)
    place = f"{{{told}}}" if told else ""
    counted = prefix == _ROWS["events"]
    for field, number in row.items():
        # Of most events most sums are none.
        if isinstance(number, int) and field not in labels and (number or not counted):
            name, by = _metric(f"{prefix}{field}")
            if counted:
                name += "_total"
            if name not in lines:
                said = _helps().get(f"{prefix}{field}", name)
                kind = "counter" if counted else "gauge"
                lines[name] = [f"# HELP {name} {said}", f"# TYPE {name} {kind}"]
            lines[name].append(f"{name}{place} {number / by}")


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


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
