"""The application as a whole."""

from __future__ import annotations

import re

from ourvidz.jobs.catalog import ALIASES, CATALOG


def test_the_document_lists_every_job_type(shim) -> None:
    """Generated clients know every type and alias."""
    document = shim.client.get("/openapi.json").json()
    schema = document["paths"]["/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["type"]["enum"] == [*CATALOG, *ALIASES]


def test_the_root_names_the_service(shim) -> None:
    """A person who opens the URL in a browser sees what it is."""
    assert shim.client.get("/").json()["service"] == "ourvidz"


def test_the_page_of_routes_loads_nothing_from_other_hosts(shim) -> None:
    """An installation without the internet has it too, and nobody else's script gets a key."""
    answer = shim.client.get("/docs")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'; connect-src 'self'" in policy
    assert re.findall(r"'nonce-([^']+)'", policy) == 2 * re.findall(r'<script nonce="([^"]+)"', answer.text)
    assert not re.search(r"https?://|<(script|link|img)[^>]* (src|href)=", answer.text)


def test_a_slash_at_the_end_redirects_nowhere(open_shim) -> None:
    """A redirect would go to whatever host a request names, with the key of a client that follows it."""
    shim = open_shim(OURVIDZ_API_KEYS="shop:s3cret:jobs", OURVIDZ_OPEN_ROUTES="/llen/{queue}")
    headers = {"X-API-Key": "s3cret", "Host": "evil.example"}
    for path in ("/jobs/", "/jobs/absent/", "/status/", "/nothing/", "/docs/", "/jobs//"):
        with_slash = shim.client.get(path, headers=headers, follow_redirects=False)
        assert "location" not in with_slash.headers
        assert with_slash.status_code == (404 if "//" in path or "n" in path else 200), path
    posted = shim.client.post("/jobs/", json=shim.payload(), headers=headers, follow_redirects=False)
    assert (posted.status_code, posted.headers["location"]) == (202, "/jobs/job-1")
    assert shim.client.get("/llen/sdxl_queue/").status_code == 200
    assert shim.client.delete("/llen/sdxl_queue/").status_code == 405
