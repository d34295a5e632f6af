"""The judgement of pictures, with a real small classifier that recognises shapes and refuses stars."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from ourvidz.errors import PolicyViolation, SettingsError, WorkerUnavailable
from ourvidz.pipelines.base import GeneratedImages, GeneratedVideo, Snapshot
from ourvidz.settings import load_settings
from ourvidz.storage.local import LocalStore
from ourvidz.wiring.pictures import picture_gate
from ourvidz.workflows.assets import AssetUploader
from ourvidz.workflows.image import generate_images
from ourvidz.workflows.pictures import JobPictures, PictureGate
from ourvidz.workflows.signing import AssetSigner
from ourvidz.workflows.video import generate_video
from tests import factories
from tests.factories import RecordingRun, image_job, video_job
from tests.shape_classifier import refuse_stars
from training.scenes import composite
from training.shapes import coverage

NAME = "tests.shape_classifier:refuse_stars"


def picture(shape: str) -> Image.Image:
    """A red shape on a white background."""
    return Image.fromarray(composite(coverage(shape, 0.5, 0.5, 0.3, 64, 64), "red", "white"))


CIRCLE, SQUARE, STAR = map(picture, ("circle", "square", "star"))


def broken(picture: Image.Image) -> bool:
    raise RuntimeError("no model")


def undecided(picture: Image.Image) -> Any:
    return None


class Images:
    """A pipeline that returns given pictures; it counts its jobs and offers one preview."""

    def __init__(self, *images: Image.Image) -> None:
        self.images = list(images)
        self.jobs = 0

    def generate(self, job: Any, *, on_image: Any = None, on_preview: Any, **_: Any) -> Any:
        self.jobs += 1
        on_preview(lambda: lambda: self.images[0])
        if job.kind == "video":
            return GeneratedVideo(frames=self.images, fps=8, seed=1, frames_generated=9, seconds=0.1)
        for index, image in enumerate(self.images):
            on_image(index, image)
        return GeneratedImages(images=self.images, seeds=list(range(len(self.images))), seconds=0.1)


class Models:
    def __init__(self, pipeline: Images) -> None:
        self.pipeline = pipeline

    def images(self) -> Images:
        return self.pipeline

    videos = images

    def memory(self) -> dict[str, Any]:
        return {}


@pytest.fixture
def run_job(tmp_path: Path) -> Callable[..., Any]:
    """Runs a job whose pipeline returns these pictures; returns its outcome."""

    def run(*images: Image.Image, job: Any, gate: PictureGate | None, reference: Any = None) -> Any:
        models = Models(Images(*images))
        services = factories.services(models, tmp_path, pictures=gate)
        if reference is not None:
            file = io.BytesIO()
            reference.save(file, "PNG")
            services.store.put("user-library/user-1/r.png", file.getvalue(), content_type="image/png")
        run.recording, run.models = RecordingRun(), models  # type: ignore[attr-defined]
        workflow = generate_images if job.kind == "image" else generate_video
        return workflow(job, run.recording, services)  # type: ignore[attr-defined]

    return run


def stored(folder: Path) -> list[str]:
    return [file.name for file in (folder / "assets").rglob("*.png") if file.name != "r.png"]


def test_the_classifier_of_the_tests_knows_the_shapes() -> None:
    """All seven, drawn."""
    shapes = ("circle", "ring", "square", "diamond", "triangle", "cross", "star")
    assert [refuse_stars(picture(shape)) for shape in shapes] == [shape == "star" for shape in shapes]


def test_a_refused_result_is_not_stored(run_job: Callable[..., Any], tmp_path: Path) -> None:
    """Of several images one is enough."""
    with pytest.raises(PolicyViolation) as refused:
        run_job(STAR, job=image_job(), gate=PictureGate(refuse_stars))
    assert refused.value.message == "This request cannot be processed."
    assert stored(tmp_path) == []
    with pytest.raises(PolicyViolation):
        run_job(CIRCLE, SQUARE, STAR, job=image_job(num_images=3), gate=PictureGate(refuse_stars))


def test_an_accepted_result_is_stored(run_job: Callable[..., Any], tmp_path: Path) -> None:
    """Its metadata says that it was judged; without a classifier it says nothing."""
    outcome = run_job(CIRCLE, job=image_job(), gate=PictureGate(refuse_stars))
    assert stored(tmp_path) == ["0.png"]
    assert outcome.metadata["pictures_judged"] is True
    assert "pictures_judged" not in run_job(STAR, job=image_job(), gate=None).metadata


def test_a_refused_reference_is_not_used(run_job: Callable[..., Any], tmp_path: Path) -> None:
    """The job ends before anything is generated, and does not fall back to the prompt."""
    path = "user-library/user-1/r.png"
    for job in (
        image_job(reference=path),
        video_job(reference_mode="start", start_reference=path, type="image_fast", frames=1),
    ):
        with pytest.raises(PolicyViolation):
            run_job(CIRCLE, job=job, gate=PictureGate(refuse_stars), reference=STAR)
        assert run_job.models.pipeline.jobs == 0  # type: ignore[attr-defined]
        assert run_job(CIRCLE, job=job, gate=PictureGate(refuse_stars), reference=SQUARE).assets


@pytest.mark.parametrize("place", [0, 4, 8, 9])
def test_the_frames_of_a_clip_are_judged(run_job: Callable[..., Any], tmp_path: Path, place: int) -> None:
    """The first of every four, and the last."""
    frames = [CIRCLE] * 10
    frames[place] = STAR
    with pytest.raises(PolicyViolation):
        run_job(*frames, job=video_job(frames=10), gate=PictureGate(refuse_stars))
    assert run_job.recording.puts == []  # type: ignore[attr-defined]


def test_a_refused_preview_is_not_sent(run_job: Callable[..., Any]) -> None:
    """It leaves the worker before the result is judged."""
    with pytest.raises(PolicyViolation):
        run_job(STAR, job=image_job(), gate=PictureGate(refuse_stars))
    (render,) = run_job.recording.previews  # type: ignore[attr-defined]
    with pytest.raises(PolicyViolation):
        render()
    run_job(CIRCLE, job=image_job(), gate=PictureGate(refuse_stars))
    assert run_job.recording.previews[0]() is CIRCLE  # type: ignore[attr-defined]


@pytest.mark.parametrize("classify", [broken, undecided])
def test_a_classifier_that_fails(run_job: Callable[..., Any], tmp_path: Path, classify: Any) -> None:
    """Closed, the job fails and may be tried again; open, it passes and says so."""
    with pytest.raises(WorkerUnavailable) as failed:
        run_job(CIRCLE, job=image_job(), gate=PictureGate(classify))
    assert failed.value.retryable
    assert stored(tmp_path) == []
    outcome = run_job(CIRCLE, job=image_job(), gate=PictureGate(classify, fail_open=True))
    assert outcome.metadata["pictures_judged"] is False
    assert stored(tmp_path) == ["0.png"]


def test_a_classifier_that_keeps_failing_open_is_not_asked_for_every_frame() -> None:
    """Its time-outs would add up to the time limit of the job."""
    asked: list[Image.Image] = []

    def classify(picture: Image.Image) -> bool:
        asked.append(picture)
        raise TimeoutError

    pictures = JobPictures(PictureGate(classify, fail_open=True), "a")
    pictures.check_frames([CIRCLE] * 81)
    assert len(asked) == 3
    assert pictures.metadata() == {"pictures_judged": False}


def test_one_picture_is_judged_at_a_time(tmp_path: Path) -> None:
    """Images are stored by several threads; a classifier need not be made for that."""
    inside, most = [0], [0]
    lock = threading.Lock()

    def classify(picture: Image.Image) -> bool:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        refuse_stars(picture)
        with lock:
            inside[0] -= 1
        return False

    job = image_job(num_images=6)
    pictures = JobPictures(PictureGate(classify), job.id)
    signer = AssetSigner(None, "trainedAlgorithmicMedia", job_id=job.id)
    result = GeneratedImages(images=[CIRCLE] * 6, seeds=list(range(6)), seconds=0.1)
    with AssetUploader(job, RecordingRun(), LocalStore(tmp_path), signer, pictures) as uploader:
        assert len(uploader.finish(result)) == 6
    assert most == [1]


@pytest.fixture
def endpoint() -> Iterator[Any]:
    """A moderation endpoint that flags stars; `requests` are the documents that it got."""

    class Handler(BaseHTTPRequestHandler):
        requests: ClassVar[list[Any]] = []

        def do_POST(self) -> None:
            document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.requests.append((self.headers.get("Authorization"), document))
            url = document["input"][0]["image_url"]["url"]
            sent = Image.open(io.BytesIO(base64.b64decode(url.partition("base64,")[2])))
            body = json.dumps({"results": [{"flagged": refuse_stars(sent)}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Write nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    Handler.requests.clear()
    server.requests = Handler.requests  # type: ignore[attr-defined]
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def gate_of(tmp_path: Path, **variables: Any) -> PictureGate | None:
    """The gate that these settings configure."""
    return picture_gate(load_settings(_env_file=None, OURVIDZ_STATE_DIR=tmp_path, **variables))


def test_an_endpoint_judges_pictures(tmp_path: Path, endpoint: Any) -> None:
    """In the form of the OpenAI moderation API, with the key, and no larger than a classifier needs."""
    url = f"http://127.0.0.1:{endpoint.server_address[1]}/v1/moderations"
    gate = gate_of(tmp_path, OURVIDZ_IMAGE_CLASSIFIER=url, OURVIDZ_IMAGE_CLASSIFIER_KEY="k")
    assert gate is not None
    assert gate.check(CIRCLE.resize((2048, 1024)), job_id="a", kind="result")
    with pytest.raises(PolicyViolation):
        gate.check(STAR, job_id="a", kind="result")
    key, document = endpoint.requests[0]
    assert key == "Bearer k"
    assert [part["type"] for part in document["input"]] == ["image_url"]


def test_an_endpoint_that_is_away(tmp_path: Path, free_tcp_port: int) -> None:
    """Closed by default."""
    variables = {"OURVIDZ_IMAGE_CLASSIFIER": f"http://127.0.0.1:{free_tcp_port}/v1"}
    closed = gate_of(tmp_path, **variables)
    opened = gate_of(tmp_path, OURVIDZ_IMAGE_CLASSIFIER_FAILS="open", **variables)
    assert closed is not None
    assert opened is not None
    with pytest.raises(WorkerUnavailable):
        closed.check(CIRCLE, job_id="a", kind="result")
    assert not opened.check(CIRCLE, job_id="a", kind="result")


def test_the_settings_name_a_callable(tmp_path: Path) -> None:
    """Not set, nothing is judged; what cannot be imported stops the worker's jobs and not only a picture."""
    assert gate_of(tmp_path) is None
    gate = gate_of(tmp_path, OURVIDZ_IMAGE_CLASSIFIER=NAME)
    assert gate is not None
    assert gate.classify is refuse_stars
    for name in ("tests.shape_classifier:nothing", "no_such_module:f", "tests.shape_classifier:np"):
        with pytest.raises(SettingsError, match="OURVIDZ_IMAGE_CLASSIFIER"):
            gate_of(tmp_path, OURVIDZ_IMAGE_CLASSIFIER=name, OURVIDZ_IMAGE_CLASSIFIER_FAILS="open")
    for value in ("refuse_stars", "ftp://host/x", "a b:c"):
        with pytest.raises(SettingsError, match="OURVIDZ_IMAGE_CLASSIFIER"):
            gate_of(tmp_path, OURVIDZ_IMAGE_CLASSIFIER=value)


def test_nothing_else_of_a_snapshot_is_changed() -> None:
    """Without a classifier previews are passed on as they are."""
    offered: list[Snapshot] = []
    assert JobPictures(None, "a").judging(offered.append) == offered.append
    JobPictures(PictureGate(refuse_stars), "a").judging(offered.append)(lambda: lambda: CIRCLE)
    assert np.array_equal(np.asarray(offered[0]()()), np.asarray(CIRCLE))
