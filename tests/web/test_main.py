"""The application as a whole."""

from __future__ import annotations

import subprocess
import sys

from ourvidz.jobs.catalog import ALIASES, CATALOG

HEAVY = ("torch", "diffusers", "transformers", "compel", "cv2", "numpy", "ourvidz.wiring.models")


def test_the_front_door_starts_without_the_model_libraries() -> None:
    """It must be back within a second or two after a crash, on a machine without a GPU."""
    script = (
        f"import sys, ourvidz.web.main, ourvidz.web.serve; print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_document_lists_every_job_type(shim) -> None:
    """A client generated from it knows what may be asked for."""
    document = shim.client.get("/openapi.json").json()
    schema = document["paths"]["/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["type"]["enum"] == [*CATALOG, *ALIASES]


def test_the_root_names_the_service(shim) -> None:
    """Somebody who opens the port in a browser learns what it is."""
    assert shim.client.get("/").json()["service"] == "ourvidz"
