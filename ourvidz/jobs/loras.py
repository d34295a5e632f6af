"""The LoRA files an SDXL job names, out of those its operator allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ourvidz.jobs.fields import Fields, Found, number, refused
from ourvidz.jobs.job import JobLora
from ourvidz.jobs.ranges import LORA_WEIGHT

PATH = "config.loras"


def loras(fields: Fields, allowed: Mapping[str, float]) -> tuple[JobLora, ...]:
    """Names, or objects with a name and a weight, in a list; or names in a text with commas.

    `allowed` has the usual weight of every name. Where nothing is allowed the field is not read.
    """
    found = fields.first(PATH) if allowed else None
    if found is None:
        return ()
    chosen = tuple(_one(entry, allowed) for entry in _entries(found))
    names = [one.name for one in chosen]
    for name in names:
        if names.count(name) > 1:
            raise refused(found.path, "a list with every name once", name)
    return chosen


def _entries(found: Found) -> list[Found]:
    if isinstance(found.value, str):
        written = [name.strip() for name in found.value.split(",")]
        return [Found(found.path, name) for name in written if name]
    if not isinstance(found.value, list):
        raise refused(found.path, "a list of names, or of objects with name and weight", found.value)
    return [Found(f"{found.path}[{index}]", entry) for index, entry in enumerate(found.value)]


def _one(entry: Found, allowed: Mapping[str, float]) -> JobLora:
    given: dict[Any, Any] = entry.value if isinstance(entry.value, dict) else {"name": entry.value}
    at = f"{entry.path}.name" if given is entry.value else entry.path
    name = given.get("name")
    if not isinstance(name, str) or name not in allowed:
        raise refused(at, f"one of {', '.join(allowed)}", name)
    weight = given.get("weight")
    if weight is None or weight == "":
        return JobLora(name=name, weight=allowed[name])
    read = number(weight)
    if read is None or read not in LORA_WEIGHT:
        raise refused(f"{entry.path}.weight", LORA_WEIGHT.rule, weight)
    return JobLora(name=name, weight=read)
