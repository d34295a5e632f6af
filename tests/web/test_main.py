"""The application as a whole."""

from __future__ import annotations

import subprocess
import sys

from ourvidz.jobs.catalog import ALIASES, CATALOG

HEAVY = ("torch", "diffusers", "transformers", "compel", "cv2", "numpy", "ourvidz.wiring.models")


def test_the_shim_imports_no_model_library() -> None:
    """It starts within a second or two, on machines without a GPU too."""
    script = (
        f"import sys, ourvidz.web.main, ourvidz.web.serve; print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"


def test_the_document_lists_every_job_type(shim) -> None:
    """Generated clients know every type and alias."""
    document = shim.client.get("/openapi.json").json()
    schema = document["paths"]["/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["type"]["enum"] == [*CATALOG, *ALIASES]


def test_the_root_names_the_service(shim) -> None:
    """A person who opens the URL in a browser sees what it is."""
    assert shim.client.get("/").json()["service"] == "ourvidz"
