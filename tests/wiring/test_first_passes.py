"""Models are compiled when they are loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from PIL import Image

from ourvidz.jobs.catalog import of_family
from ourvidz.jobs.job import BaseJob
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from ourvidz.settings import Settings, load_settings
from ourvidz.wiring.first_passes import FirstJob, first_jobs, run_first_jobs
from ourvidz.wiring.models import build
from ourvidz.workflows.services import UnsharedDevice
from tests.factories import image_job
from tests.pipelines.helpers import no_progress

pytestmark = pytest.mark.model

COMPILED = {"OURVIDZ_SDXL_COMPILE": "true", "OURVIDZ_WAN_COMPILE": "true", "OURVIDZ_PREVIEWS": "false"}


def settings_with(**variables: str) -> Settings:
    return load_settings(_env_file=None, **variables)


def test_every_shape_of_the_catalog_has_a_first_job() -> None:
    """Steps and prompts do not change a shape; nothing is compiled unless a setting says so."""
    settings = settings_with(**COMPILED)
    images, videos = first_jobs(settings, "sdxl"), first_jobs(settings, "wan")
    assert [job.num_images for job in images] == [1, 3, 6]
    assert sorted(getattr(job, "frames", 0) for job in videos) == [1, 83]
    assert {row.frames for row in of_family("wan")} == {1, 83}
    assert {(job.steps, job.user_id) for job in (*images, *videos)} == {(1, "first-pass")}
    assert first_jobs(settings_with(), "sdxl") == first_jobs(settings_with(), "wan") == []


def test_jobs_of_the_catalog_compile_nothing_after_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute of compiling in the first jobs would end them by their time limits. The back end here counts
    graphs and does not compile them."""
    graphs: list[int] = []

    def count_graphs(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        graphs.append(1)
        return graph.forward

    def skip_decoding(pipeline: SDXLPipeline, latents: torch.Tensor) -> list[Image.Image]:
        return [Image.new("RGB", (64, 64))] * len(latents)

    monkeypatch.setattr(SDXLPipeline, "decode", skip_decoding)
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=count_graphs))
    models = build(settings_with(**COMPILED), "sdxl")
    models.warm()
    loaded = len(graphs)
    assert loaded > 0
    assert sum(models.take_gpu_seconds().values()) == 0
    for images in (1, 3, 6):
        job = image_job(type="sdxl_image_high", num_images=images, guidance_scale=7.5, steps=1)
        models.images().generate(job, on_step=no_progress)
    assert len(graphs) == loaded
    torch._dynamo.reset()


def test_a_worker_starts_although_a_first_pass_fails_or_the_device_is_in_use() -> None:
    """Its jobs compile then, or fail for their own reasons."""

    class Busy(UnsharedDevice):
        @contextmanager
        def hold(
            self,
            model: str,
            job: BaseJob,
            waiting: Callable[[], None],
            granted: Callable[[], None] = lambda: None,
        ) -> Iterator[None]:
            if job.model_dump()["num_images"] == 1:
                waiting()
            yield

    ran: list[int] = []

    def generate(job: FirstJob) -> None:
        ran.append(job.num_images)
        if job.num_images == 3:
            raise RuntimeError("no compiler")

    run_first_jobs(first_jobs(settings_with(**COMPILED), "sdxl"), Busy(), generate)
    assert ran == [3, 6]
