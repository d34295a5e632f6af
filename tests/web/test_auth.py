"""API keys and scopes, and the shim without keys."""

from __future__ import annotations

import re

import pytest
from fastapi import Request

from ourvidz.errors import SettingsError
from ourvidz.keys.caller import Caller
from ourvidz.settings import load_settings
from ourvidz.web.auth import (
    caller_of,
    load_keyring,
    require_keys_where_public,
    require_safe_binding,
    require_scopes,
)

KEYS = "shop:s3cret:jobs ops:0perator:jobs+admin talk:ch4t:chat"
ROUTES = [
    ("GET", "/jobs", "jobs"),
    ("POST", "/jobs", "jobs"),
    ("GET", "/jobs/x", "jobs"),
    ("GET", "/job/x", "jobs"),
    ("GET", "/jobs/x/events", "jobs"),
    ("GET", "/jobs/x/callback", "jobs"),
    ("POST", "/jobs/x/cancel", "jobs"),
    ("POST", "/jobs/x/retry", "jobs"),
    ("DELETE", "/jobs/x", "jobs"),
    ("POST", "/rpush/sdxl_queue", "jobs"),
    ("GET", "/llen/sdxl_queue", "jobs"),
    ("GET", "/inbox", "jobs"),
    ("POST", "/prompts/inspect", "jobs"),
    ("POST", "/test-compel", "jobs"),
    ("GET", "/assets/workspace-temp/x/y/0.png", "jobs"),
    ("POST", "/queues/sdxl_queue/pause", "admin"),
    ("POST", "/queues/sdxl_queue/resume", "admin"),
    ("POST", "/workers/x/drain", "admin"),
    ("POST", "/workers/x/resume", "admin"),
    ("POST", "/admin", "admin"),
    ("POST", "/references", "jobs"),
    ("POST", "/tokens", "jobs"),
    ("DELETE", "/references/reference_images/x/uploads/x", "jobs"),
    ("DELETE", "/users/x/data", "admin"),
    ("GET", "/usage", "admin"),
    ("GET", "/autoscale/sdxl_queue", "admin"),
    ("GET", "/memory/status", "admin"),
    ("GET", "/memory/report", "admin"),
    ("POST", "/memory/load", "admin"),
    ("POST", "/memory/unload", "admin"),
    ("POST", "/memory/pin", "admin"),
    ("POST", "/emergency/operation", "admin"),
    ("DELETE", "/assets/workspace-temp/x/y/0.png", "admin"),
    ("POST", "/chat", "chat"),
    ("POST", "/chat/unrestricted", "chat"),
    ("POST", "/enhance", "chat"),
    ("POST", "/enhance/legacy", "chat"),
    ("POST", "/generate", "chat"),
    ("POST", "/v1/chat/completions", "chat"),
    ("GET", "/v1/models", "chat"),
    ("GET", "/v1/models/x", "chat"),
]
WRONG_KEY = {"jobs": "ch4t", "admin": "s3cret", "chat": "s3cret"}
RIGHT_KEY = {"jobs": "0perator", "admin": "0perator", "chat": "ch4t"}
OPEN = {
    "/",
    "/health",
    "/health/live",
    "/health/ready",
    "/status",
    "/model/info",
    "/worker/info",
    "/enhancement/info",
    "/chat/health",
    "/metrics",
    "/functions/v1/job-callback",
}
ANY_KEY = {"/debug/env"}
"""Routes that accept a key of any scope."""


@pytest.fixture
def keyed(open_shim):
    """A shim with keys."""
    return open_shim(OURVIDZ_API_KEYS=KEYS, OURVIDZ_EMBEDDED=True)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def code_of(answer) -> str:
    """The code of an error, in either form."""
    document = answer.json()
    return document["code"] if "code" in document else document["error"]["code"]


def test_every_route_is_listed_with_its_scope_or_as_open(keyed) -> None:
    """A new route is not open by accident."""
    documented = {
        (method.upper().replace("HEAD", "GET"), path)
        for path, methods in keyed.client.get("/openapi.json").json()["paths"].items()
        for method in methods
    }
    listed = [(method, re.compile(path.replace("/x", "/[^/]+"))) for method, path, _ in ROUTES]
    for method, path in documented:
        concrete = re.sub(r"\{queue\}", "sdxl_queue", path)
        concrete = "/assets/workspace-temp/x/y/0.png" if concrete.startswith("/assets/") else concrete
        concrete = concrete.replace("{id}", "x").replace("{model}", "x")
        concrete = concrete.replace("{path}", "reference_images/x/uploads/x")
        assert path in OPEN | ANY_KEY or any(
            method == m and known.fullmatch(concrete) for m, known in listed
        ), path


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES)
def test_a_route_needs_a_key_with_its_scope(keyed, method: str, path: str, scope: str) -> None:
    """401 without a valid key, 403 for a key without the scope."""
    for headers in ({}, bearer("wrong"), {"X-API-Key": ""}, {"Authorization": "Basic s3cret"}):
        answer = keyed.client.request(method, path, headers=headers)
        assert (answer.status_code, code_of(answer)) in {(401, "UNAUTHORIZED"), (401, "invalid_api_key")}
        assert answer.headers["www-authenticate"] == "Bearer"
    refused = keyed.client.request(method, path, headers=bearer(WRONG_KEY[scope]))
    assert (refused.status_code, code_of(refused)) in {(403, "FORBIDDEN"), (403, "insufficient_permissions")}
    for headers in (bearer(RIGHT_KEY[scope]), {"X-API-Key": RIGHT_KEY[scope]}):
        assert keyed.client.request(method, path, headers=headers).status_code not in (401, 403)


def test_the_environment_needs_a_key_of_any_scope(keyed) -> None:
    """Paths and versions are no secret, but not public."""
    assert keyed.client.get("/debug/env").status_code == 401
    for key in ("s3cret", "0perator", "ch4t"):
        assert keyed.client.get("/debug/env", headers=bearer(key)).status_code == 200


@pytest.mark.parametrize("path", ["/", "/health", "/health/live", "/status"])
def test_probes_need_no_key(keyed, path: str) -> None:
    """Load balancers send none."""
    assert keyed.client.get(path).status_code == 200


def test_the_three_worker_keys_have_the_scopes_jobs_and_chat_but_not_admin(open_shim) -> None:
    """Existing callers send any of the three."""
    shim = open_shim(WAN_WORKER_API_KEY="w", CHAT_WORKER_API_KEY="c", SDXL_WORKER_API_KEY="s")
    for key in "wcs":
        assert shim.client.get("/jobs", headers=bearer(key)).status_code == 200
        assert shim.client.post("/queues/sdxl_queue/pause", headers=bearer(key)).status_code == 403


def test_the_upstash_token_is_valid_on_the_upstash_routes_only(open_shim) -> None:
    """A caller that points its Redis URL at the shim keeps sending its token."""
    shim = open_shim(
        OURVIDZ_API_KEYS=KEYS, UPSTASH_REDIS_REST_URL="https://r.example.com", UPSTASH_REDIS_REST_TOKEN="tok"
    )
    assert shim.client.get("/llen/sdxl_queue", headers=bearer("tok")).status_code == 200
    assert shim.client.get("/jobs", headers=bearer("tok")).status_code == 403


def test_an_open_route_needs_no_key(open_shim) -> None:
    """One existing caller sends none; other routes still need one."""
    shim = open_shim(OURVIDZ_API_KEYS=KEYS, OURVIDZ_OPEN_ROUTES="/llen/{queue}, jobs")
    assert shim.client.get("/llen/sdxl_queue").status_code == 200
    assert shim.client.get("/jobs").status_code == 200
    assert shim.client.get("/jobs/x").status_code == 401


def test_an_open_path_deletes_nothing_and_an_open_method_is_that_one(open_shim) -> None:
    """A route that others may read or post to is not one that they may delete with."""
    shim = open_shim(OURVIDZ_API_KEYS=KEYS, OURVIDZ_OPEN_ROUTES="/jobs/{id} GET /jobs, POST /prompts/inspect")
    statuses = {
        (method, path): shim.client.request(method, path, json={}).status_code
        for method, path in (
            ("GET", "/jobs/x"), ("DELETE", "/jobs/x"), ("GET", "/jobs"), ("POST", "/jobs"),
            ("POST", "/prompts/inspect"), ("GET", "/jobs/x/callback"), ("DELETE", "/jobs/x/"),
        )
    }  # fmt: skip
    opened = [key for key, status in statuses.items() if status != 401]
    assert opened == [("GET", "/jobs/x"), ("GET", "/jobs"), ("POST", "/prompts/inspect")]


@pytest.mark.parametrize("host", ["a/llen/sdxl_queue?", "a/llen/sdxl_queue#", "a/llen/{queue}?x="])
def test_a_host_header_opens_no_route(open_shim, host: str) -> None:
    """A URL that is put together of `Host` and path may have another path than the request."""
    shim = open_shim(OURVIDZ_API_KEYS=KEYS, OURVIDZ_OPEN_ROUTES="/llen/{queue} /llen/sdxl_queue")
    assert shim.client.get("/jobs", headers={"Host": host}).status_code in (400, 401)


@pytest.mark.parametrize("routes", ["POST", "/enhance GET", "POST GET /enhance"])
def test_a_method_without_a_path_is_refused_at_start(routes: str) -> None:
    """Otherwise a route would be open, or closed, that the operator did not mean."""
    with pytest.raises(SettingsError, match="OURVIDZ_OPEN_ROUTES"):
        load_keyring(load_settings(_env_file=None, OURVIDZ_OPEN_ROUTES=routes))


EXPOSED = {
    "production": {
        "OURVIDZ_PROFILE": "production",
        "OURVIDZ_REDIS_URL": "redis://r.example:6379/0",
        "SUPABASE_URL": "https://p.example",
    },
    "public": {"OURVIDZ_PUBLIC_URL": "https://shim.example.com"},
}


@pytest.mark.parametrize("variables", EXPOSED.values(), ids=EXPOSED)
def test_where_others_reach_it_a_shim_without_keys_does_not_start(variables: dict[str, str]) -> None:
    """Behind a proxy a shim on loopback is public, too. Stored keys are enough, if they are required."""
    with pytest.raises(SettingsError, match="OURVIDZ_REQUIRE_KEYS=1"):
        require_safe_binding(load_settings(_env_file=None, **variables))
    with pytest.raises(SettingsError, match="OURVIDZ_REQUIRE_KEYS=1"):
        require_keys_where_public(load_settings(_env_file=None, **variables))  # as `uvicorn --factory` starts
    require_safe_binding(load_settings(_env_file=None, **variables, OURVIDZ_REQUIRE_KEYS=True))
    require_safe_binding(load_settings(_env_file=None, OURVIDZ_PUBLIC_URL="http://localhost:7860"))


def test_a_secret_may_contain_colons() -> None:
    """Generated keys contain any character."""
    keyring = load_keyring(load_settings(_env_file=None, OURVIDZ_API_KEYS="a:x:y:z:jobs"))
    assert keyring.secret_for("jobs") == "x:y:z"


@pytest.mark.parametrize("entry", ["secret", "a:jobs", "a:b:root", ":b:jobs", "a::jobs"])
def test_a_malformed_key_is_refused_at_start(entry: str) -> None:
    """Otherwise a misspelled entry would be a key nobody intended."""
    with pytest.raises(SettingsError, match="OURVIDZ_API_KEYS"):
        load_keyring(load_settings(_env_file=None, OURVIDZ_API_KEYS=entry))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.com"])
def test_without_keys_only_loopback_is_bound(host: str) -> None:
    """On a public address anybody could use a shim without keys."""
    with pytest.raises(SettingsError, match="OURVIDZ_HOST"):
        require_safe_binding(load_settings(_env_file=None, OURVIDZ_HOST=host))
    keys = "a:c0ffee5eedfadedfacade0123456789ab:jobs"
    require_safe_binding(load_settings(_env_file=None, OURVIDZ_HOST=host, OURVIDZ_API_KEYS=keys))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.9.9.9"])
def test_loopback_needs_no_keys(host: str) -> None:
    """The default on a developer's machine."""
    require_safe_binding(load_settings(_env_file=None, OURVIDZ_HOST=host))


def test_the_upstash_token_alone_does_not_count_as_a_key() -> None:
    """It protects two routes; the others would be open."""
    with pytest.raises(SettingsError):
        require_safe_binding(
            load_settings(
                _env_file=None, OURVIDZ_HOST="0.0.0.0",
                UPSTASH_REDIS_REST_URL="https://r.example.com", UPSTASH_REDIS_REST_TOKEN="t",
            )
        )  # fmt: skip


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({"Host": "localhost:7860"}, True),
        ({"Host": "127.0.0.1"}, True),
        ({"Host": "[::1]:7860"}, True),
        ({"Host": "LOCALHOST"}, True),
        ({"Host": "evil.example"}, False),
        ({"Host": "evil.example:7860"}, False),
        ({"Host": "127.0.0.1.evil.example"}, False),
        ({"Host": "localhost@evil.example"}, False),
        ({"Host": ""}, False),
        ({"Host": "127.0.0.7"}, True),
        ({"Host": "shim.example.com"}, False),
        ({"Origin": "http://localhost:7860"}, True),
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": "null"}, False),
    ],
)
def test_without_keys_only_local_hosts_and_origins_are_served(
    open_shim, headers: dict[str, str], allowed: bool
) -> None:
    """A web page must not reach a local shim by DNS rebinding, nor post to it from its own origin."""
    shim = open_shim(OURVIDZ_PUBLIC_URL="https://127.0.0.7")
    answer = shim.client.get("/jobs", headers=headers)
    assert answer.status_code == (200 if allowed else 403)
    if not allowed:
        assert answer.json()["code"] == "FORBIDDEN"


def test_with_keys_any_host_name_is_served(keyed) -> None:
    """The key protects it; proxies send any host name."""
    assert keyed.client.get("/jobs", headers={"Host": "x.example", **bearer("s3cret")}).status_code == 200


def test_other_origins_are_allowed_only_when_configured(open_shim) -> None:
    """CORS is off by default."""
    preflight = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    allowed = "access-control-allow-origin"
    closed = open_shim(OURVIDZ_API_KEYS=KEYS)
    assert allowed not in closed.client.options("/jobs", headers=preflight).headers
    shim = open_shim(OURVIDZ_API_KEYS=KEYS, OURVIDZ_CORS_ORIGINS="https://app.example")
    assert shim.client.options("/jobs", headers=preflight).headers[allowed] == "https://app.example"
    refused = shim.client.get("/jobs", headers={"Origin": "https://app.example"})
    assert (refused.status_code, refused.headers[allowed]) == (401, "https://app.example")


def test_a_route_knows_its_caller(open_shim) -> None:
    """Limits and bindings go by the key, not by the address."""
    shim = open_shim(OURVIDZ_API_KEYS=KEYS)
    seen = []

    @shim.client.app.get("/caller", dependencies=require_scopes(shim.client.app.state.keyring, "jobs"))
    def record_caller(request: Request) -> None:
        seen.append(caller_of(request))

    shim.client.get("/caller", headers=bearer("s3cret"))
    assert seen == [Caller("shop", key_id="settings:shop", scopes=frozenset({"jobs"}))]
