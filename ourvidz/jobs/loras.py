"""Reads the LoRAs of an SDXL payload, out of those that the operator allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ourvidz.jobs.fields import Fields, FieldValue, invalid_value, parse_number
from ourvidz.jobs.job import JobLora
from ourvidz.jobs.ranges import LORA_WEIGHT

PATH = "config.loras"


def read_loras(fields: Fields, allowed: Mapping[str, float]) -> tuple[JobLora, ...]:
    """Read `config.loras`: a list of names or of objects with `name` and `weight`, or names with commas.

    `allowed` maps each allowed name to its default weight; if it is empty the field is not read. Raises
    `InvalidParameters` for other names, weights outside -2 to 2, and repeated names.
    """
    field = fields.first(PATH) if allowed else None
    if field is None:
        return ()
    loras = tuple(_parse_lora(entry, allowed) for entry in _entries(field))
    names = [lora.name for lora in loras]
    for name in names:
        if names.count(name) > 1:
            raise invalid_value(field.path, "a list with every name once", name)
    return loras


def _entries(field: FieldValue) -> list[FieldValue]:
    """The entries of a list, or the names of a comma-separated text, each with its path."""
    if isinstance(field.value, str):
        names = [name.strip() for name in field.value.split(",")]
        return [FieldValue(field.path, name) for name in names if name]
    if not isinstance(field.value, list):
        raise invalid_value(field.path, "a list of names, or of objects with name and weight", field.value)
    return [FieldValue(f"{field.path}[{index}]", entry) for index, entry in enumerate(field.value)]


def _parse_lora(entry: FieldValue, allowed: Mapping[str, float]) -> JobLora:
    """Parse one entry, a name or an object, with the default weight of its name."""
    fields: dict[Any, Any] = entry.value if isinstance(entry.value, dict) else {"name": entry.value}
    path = f"{entry.path}.name" if fields is entry.value else entry.path
    name = fields.get("name")
    if not isinstance(name, str) or name not in allowed:
        raise invalid_value(path, f"one of {', '.join(allowed)}", name)
    weight = fields.get("weight")
    if weight is None or weight == "":
        return JobLora(name=name, weight=allowed[name])
    parsed = parse_number(weight)
    if parsed is None or parsed not in LORA_WEIGHT:
        raise invalid_value(f"{entry.path}.weight", LORA_WEIGHT.rule, weight)
    return JobLora(name=name, weight=parsed)
