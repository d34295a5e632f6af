"""A classifier of pictures in a real worker: what it refuses leaves no file."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from training.scenes import composite
from training.shapes import coverage

pytestmark = pytest.mark.system


def test_a_star_is_refused_and_leaves_no_file(stack: Callable[..., Any]) -> None:
    """As result and as reference; a circle is stored. The caller gets one neutral sentence, the receiver the
    same."""
    star = Image.fromarray(composite(coverage("star", 0.5, 0.5, 0.3, 64, 64), "red", "white"))
    file = io.BytesIO()
    star.save(file, "PNG")
    reference = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    config = {"steps": 15, "width": 64, "height": 64, "seed": 1, "num_images": 3}
    with stack(env={"OURVIDZ_IMAGE_CLASSIFIER": "tests.shape_classifier:refuse_stars"}) as running:
        running.submit("circle", prompt="a red circle on a white background", config=config)
        running.submit("star", prompt="a red star on a white background", config=config)
        running.submit("reference", prompt="a red circle", config={**config, "image": reference})
        circle, result, used = map(running.wait_done, ("circle", "star", "reference"))
        assert circle["status"] == "completed", circle
        assert circle["result"]["metadata"]["pictures_judged"] is True
        for refused in (result, used):
            assert refused["status"] == "failed"
            assert refused["error"]["code"] == "POLICY_VIOLATION"
            assert refused["error"]["message"] == "This request cannot be processed."
        running.wait_callbacks("star", "processing", "failed")
        names = {path.parent.name for path in (running.state_dir / "assets").rglob("*") if path.is_file()}
        assert names == {"circle"}
