"""What a worker is registered as: whether, at which URL, with which function."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ourvidz.errors import SettingsError
from ourvidz.liveness import registration
from ourvidz.records.registrations import Registration
from ourvidz.settings import Settings, load_settings

RUNPOD = {"RUNPOD_POD_ID": "k2x9", "SUPABASE_URL": "https://abc.supabase.co/"}


def read(**variables: Any) -> Settings:
    return load_settings(_env_file=None, **variables)


def of(family: str = "sdxl", **variables: Any) -> Registration | None:
    return registration.of_worker(read(**variables), family, models={"tiny": {}})


def url(family: str = "sdxl", **variables: Any) -> str | None:
    made = of(family, **variables)
    return None if made is None else made.worker_url


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"RUNPOD_POD_ID": "k2x9"},
        {"SUPABASE_URL": "https://abc.supabase.co"},
        {"SUPABASE_URL": "https://abc.supabase.co", "OURVIDZ_PUBLIC_URL": "https://gpu.example.com"},
        {**RUNPOD, "OURVIDZ_REGISTRATION": "off"},
        {**RUNPOD, "OURVIDZ_PORTS": (0,)},
    ],
)
def test_workers_are_registered_on_a_pod_with_a_backend_only(variables: dict[str, Any]) -> None:
    """Elsewhere nobody has asked for it; a port that is drawn at the start is not known to the worker."""
    assert of(**variables) is None


def test_the_url_is_that_of_the_pod_at_the_port_of_the_family() -> None:
    """Callers in the field know the chat worker at 7861 and the others at 7860."""
    assert url(**RUNPOD) == "https://k2x9-7860.proxy.runpod.net"
    both = {**RUNPOD, "OURVIDZ_PORTS": (7860, 7861)}
    assert url("chat", **both) == "https://k2x9-7861.proxy.runpod.net"
    assert url("wan", **both) == "https://k2x9-7860.proxy.runpod.net"
    assert url("chat", **RUNPOD, OURVIDZ_PORTS=(8001, 8002)) == "https://k2x9-8001.proxy.runpod.net"


@pytest.mark.parametrize(
    ("public", "expected"),
    [
        ("https://gpu.example.com/", "https://gpu.example.com"),
        ("http://[2001:db8::7]:7860", "http://[2001:db8::7]:7860"),
        ("https://gpu.example.com:8443/ourvidz/", "https://gpu.example.com:8443/ourvidz"),
        ("http://127.0.0.1:7860", "https://k2x9-7860.proxy.runpod.net"),
        ("http://[::1]:7860", "https://k2x9-7860.proxy.runpod.net"),
        ("http://[::]:7860", "https://k2x9-7860.proxy.runpod.net"),
        ("http://localhost:7860", "https://k2x9-7860.proxy.runpod.net"),
    ],
)
def test_the_public_url_comes_first_unless_only_this_host_can_call_it(public: str, expected: str) -> None:
    """`ourvidz up` sets one that is local."""
    made = of(**RUNPOD, OURVIDZ_PUBLIC_URL=public)
    assert made is not None
    assert made.worker_url == expected
    detected = json.loads(made.document)["detection_method"]
    assert detected == ("RUNPOD_POD_ID" if "runpod" in expected else "OURVIDZ_PUBLIC_URL")


def test_each_family_has_its_function() -> None:
    """Those that the backend of today has."""
    names = {family: of(family, **RUNPOD) for family in ("sdxl", "wan", "chat")}
    functions = {family: made.callback_url for family, made in names.items() if made is not None}
    base = "https://abc.supabase.co/functions/v1"
    assert functions == {
        "sdxl": f"{base}/update-worker-url",
        "wan": f"{base}/update-worker-url",
        "chat": f"{base}/register-chat-worker",
    }
    assert set(functions.values()) == registration.function_urls(read(**RUNPOD))
    assert registration.function_urls(read()) == frozenset()


def test_a_host_that_is_no_pod_can_be_registered_too() -> None:
    """With `on`, and then only as what the operator has named."""
    asked = {"OURVIDZ_REGISTRATION": "on", "SUPABASE_URL": "https://abc.supabase.co"}
    assert url(**asked, OURVIDZ_PUBLIC_URL="https://gpu.example.com") == "https://gpu.example.com"
    with pytest.raises(SettingsError, match="needs OURVIDZ_PUBLIC_URL or RUNPOD_POD_ID"):
        read(**asked)
    with pytest.raises(SettingsError, match="needs SUPABASE_URL"):
        read(OURVIDZ_REGISTRATION="on", RUNPOD_POD_ID="k2x9")


@pytest.mark.parametrize("pod", ["a.b", "a/b", "-a", "a@b", "a b"])
def test_a_pod_id_is_a_part_of_a_host_name(pod: str) -> None:
    """Anything else would name another host."""
    with pytest.raises(SettingsError, match="RUNPOD_POD_ID"):
        read(RUNPOD_POD_ID=pod)
