"""Compiles a worker's models when they are loaded, by one step of every kind of job of its family.

Compiling takes a minute for each kind. Within a job it would count towards that job's time limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from ourvidz import log
from ourvidz.jobs.catalog import of_family
from ourvidz.jobs.job import ImageJob, VideoJob
from ourvidz.settings import Settings
from ourvidz.wiring import control
from ourvidz.workflows.services import DeviceShare

_log = log.get(__name__)

ID = "first-pass"
_PROMPT = "a meadow"

FirstJob = ImageJob | VideoJob


class DeviceInUse(Exception):
    """Other workers have the memory that a job needs."""


def first_jobs(settings: Settings, family: Literal["sdxl", "wan"]) -> list[FirstJob]:
    """One job of one step for each shape of the family's job types: the number of images, and of frames.
    Empty unless the settings compile the family's model."""
    compiled = settings.sdxl_compile if family == "sdxl" else settings.wan_compile
    return list(_jobs(settings, family)) if compiled else []


def run_first_jobs(
    jobs: Sequence[FirstJob], device: DeviceShare, generate: Callable[[FirstJob], object]
) -> None:
    """Run the jobs, each while this worker holds its model on the device. Raises nothing: what fails here is
    compiled by the first job of its kind, or fails there for its own reason."""
    for job in jobs:
        facts = {"type": job.type, "images": job.num_images, "width": job.width, "height": job.height}
        try:
            with device.hold(job.row.family, job, _give_up):
                generate(job)
        except DeviceInUse:
            _log.info("first_pass_skipped", **facts)
        except Exception:  # noqa: BLE001  a worker starts also if compiling fails
            _log.exception("first_pass_failed", **facts)
        else:
            _log.info("first_pass", **facts)


def _give_up() -> None:
    raise DeviceInUse


def _jobs(settings: Settings, family: Literal["sdxl", "wan"]) -> Iterator[FirstJob]:
    defaults = control.defaults(settings)
    shapes: set[tuple[int, int]] = set()
    for row in of_family(family):
        for images in row.num_images:
            if row.frames is None or (row.frames, images) in shapes:
                continue
            shapes.add((row.frames, images))
            common = {
                "id": ID,
                "type": row.name,
                "user_id": ID,
                "expected_time": round(row.expected_s[1]),
                "prompt": _PROMPT,
                "steps": 1,
                "guidance_scale": row.guidance_scale,
                "seed": 0,
            }
            width, height = defaults.sdxl_size if family == "sdxl" else defaults.wan_size
            common |= {"width": width, "height": height}
            if family == "sdxl":
                yield ImageJob.model_validate(common | {"num_images": images})
            else:
                yield VideoJob.model_validate(common | {"frames": row.frames})
