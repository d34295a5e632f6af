"""The application as a whole."""

from __future__ import annotations

from ourvidz.jobs.catalog import ALIASES, CATALOG


def test_the_document_lists_every_job_type(shim) -> None:
    """Generated clients know every type and alias."""
    document = shim.client.get("/openapi.json").json()
    schema = document["paths"]["/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["type"]["enum"] == [*CATALOG, *ALIASES]


def test_the_root_names_the_service(shim) -> None:
    """A person who opens the URL in a browser sees what it is."""
    assert shim.client.get("/").json()["service"] == "ourvidz"
