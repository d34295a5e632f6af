"""Settings are read from the environment; invalid values raise one-line errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ourvidz.errors import SettingsError
from ourvidz.net.urls import parse_http_url
from ourvidz.settings import Settings, become_worker, environment, load_settings, settings
from ourvidz.settings.kinds import reveal_all
from ourvidz.wiring import control

PRODUCTION = {
    "OURVIDZ_PROFILE": "production",
    "OURVIDZ_REDIS_URL": "redis://10.0.0.1:6379/0",
    "SUPABASE_URL": "https://abc.supabase.co",
}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Read the settings from an environment with only these variables of ours."""
    for field in Settings.model_fields.values():
        monkeypatch.delenv(str(field.validation_alias), raising=False)
    monkeypatch.chdir(tmp_path)

    def load(**variables: str) -> Settings:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return load_settings()

    return load


def test_the_default_is_the_tiny_profile_on_loopback(read: Any) -> None:
    """An unconfigured installation works and listens on the loopback interface only."""
    settings = read()
    assert (settings.profile, settings.host, settings.storage) == ("tiny", "127.0.0.1", "local")
    assert settings.redis_url == "redis://127.0.0.1:6379/0"
    assert settings.default_callback_url is None
    assert control.defaults(settings).sdxl_size == (128, 128)


def test_the_production_profile_has_the_production_sizes(read: Any) -> None:
    """Sizes are set at submission, where the path of the model may be unknown."""
    sizes = control.defaults(read(**PRODUCTION))
    assert (sizes.sdxl_size, sizes.wan_size) == ((1024, 1024), (480, 832))


def test_an_upstash_url_becomes_a_broker_url_that_verifies_certificates(read: Any) -> None:
    """Kombu would accept any certificate unless certificates are required explicitly."""
    settings = read(UPSTASH_REDIS_REST_URL="https://eu1.upstash.io", UPSTASH_REDIS_REST_TOKEN="to/ken")
    assert settings.redis_url == "rediss://default:to%2Fken@eu1.upstash.io:6379?ssl_cert_reqs=required"


def test_the_redis_url_takes_precedence_over_upstash(read: Any) -> None:
    """An operator who stops using Upstash sets one variable."""
    upstash = {"UPSTASH_REDIS_REST_URL": "https://eu1.upstash.io", "UPSTASH_REDIS_REST_TOKEN": "t"}
    assert read(**upstash, OURVIDZ_REDIS_URL="redis://here/1").redis_url == "redis://here/1"


def test_the_broker_s_keys_are_below_the_prefix_and_no_pattern(read: Any) -> None:
    """Its keys are never bare names of queues; the broker would take `*` for other channels."""
    assert read().broker_prefix == "ourvidz:broker:"
    assert read(OURVIDZ_KEY_PREFIX="other:").broker_prefix == "other:broker:"
    for pattern in ("all*", "one?", "[a]:", "two words"):
        with pytest.raises(SettingsError, match="OURVIDZ_KEY_PREFIX"):
            read(OURVIDZ_KEY_PREFIX=pattern)


def test_lists_are_separated_by_commas_or_spaces(read: Any) -> None:
    """Both separators are in use."""
    settings = read(JOB_CALLBACK_SECRET="new, old", OURVIDZ_PORTS="7859 7860")
    assert (reveal_all(settings.callback_secrets), settings.ports) == (("new", "old"), (7859, 7860))


def test_allowed_hosts_may_be_hosts_ports_and_networks(read: Any) -> None:
    """All forms of the settings reference are accepted."""
    written = "localhost:8000 minio.internal [::1]:9000 10.1.0.0/16 fd00::/8"
    settings = read(OURVIDZ_FETCH_ALLOWED_HOSTS=written)
    assert " ".join(settings.fetch_allowed_hosts) == written


def test_an_empty_variable_counts_as_not_set(read: Any) -> None:
    """Templates of environment files contain empty variables."""
    assert read(SUPABASE_URL="", OURVIDZ_GPU="").default_callback_url is None


def test_a_dot_env_file_is_read(read: Any, tmp_path: Path) -> None:
    """Developers keep their settings there."""
    (tmp_path / ".env").write_text("SUPABASE_URL=https://abc.supabase.co\n")
    assert read().default_callback_url == "https://abc.supabase.co/functions/v1/job-callback"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OURVIDZ_PROFILE", "prod"),
        ("OURVIDZ_LEASE_S", "-1"),
        ("OURVIDZ_LEASE_S", "soon"),
        ("OURVIDZ_PORTS", "99999"),
        ("OURVIDZ_PORTS", "abc"),
        ("OURVIDZ_REDIS_URL", "foo"),
        ("OURVIDZ_PUBLIC_URL", "zz"),
        ("SUPABASE_URL", "not a url"),
        ("SUPABASE_URL", "https://"),
        ("OURVIDZ_CALLBACK_URL", "ftp://host/x"),
        ("OURVIDZ_TIME_LIMITS_S", "{"),
        ("OURVIDZ_TIME_LIMITS_S", '{"video_fast": 0}'),
        ("OURVIDZ_AUTOSCALE_TARGET_WAIT_S", '{"sdxl": 0}'),
        ("OURVIDZ_AUTOSCALE_MIN", '{"sdxl": -1}'),
        ("OURVIDZ_AUTOSCALE_MAX", '{"wan": 0}'),
        ("OURVIDZ_AUTOSCALE_MAX", '{"poems": 2}'),
        ("OURVIDZ_FETCH_ALLOWED_HOSTS", "10.0.0.0/40"),
        ("OURVIDZ_FETCH_ALLOWED_HOSTS", "localhost:8000, http://minio.internal"),
        ("OURVIDZ_FETCH_TIMEOUT_S", "0"),
        ("OURVIDZ_STORAGE", "floppy"),
        ("OURVIDZ_C2PA_ALGORITHM", "rot13"),
        ("OURVIDZ_C2PA_TIMESTAMP_URL", "stamps.example"),
        ("OURVIDZ_LOG_LEVEL", "LOUD"),
        ("OURVIDZ_SDXL_SCHEDULER", "downhill"),
        ("OURVIDZ_SDXL_LORAS", "hills.safetensors"),
        ("OURVIDZ_SDXL_JOB_LORAS", "hills=/m/a.safetensors, hills=/m/b.safetensors"),
    ],
)
def test_an_invalid_value_raises_a_one_line_error_with_its_variable(
    read: Any, variable: str, value: str
) -> None:
    """Operators see the cause in the last line of the log."""
    with pytest.raises(SettingsError) as wrong:
        read(**{variable: value})
    assert wrong.value.message.startswith(f"{variable}: ")
    assert "\n" not in wrong.value.message


@pytest.mark.parametrize(
    "url",
    [
        "http://me:pw@host.example/x",
        "http://host.example/a b",
        "http://host.example/{job}",
        "http://host.example:99999/",
        "http://host.example:0/",
        "http://host^x/",
        "http://host.example/\u200b",
        "http://[::1]x/",
        "HTTPS://Host.example",
        "http://[::1]:80/x?y=%7Bz%7D",
        "http://bücher.example/ü",
    ],
)
def test_a_web_url_is_refused_exactly_when_the_client_cannot_call_it(read: Any, url: str) -> None:
    """Else every callback would fail for a day, on the first day in production."""
    if parse_http_url(url) is not None and ":0/" not in url:
        assert read(OURVIDZ_CALLBACK_URL=url).callback_url == url
        return
    with pytest.raises(SettingsError, match=r"^OURVIDZ_CALLBACK_URL: ") as refused:
        read(OURVIDZ_CALLBACK_URL=url)
    assert "pw" not in str(refused.value)


@pytest.mark.parametrize("missing", ["OURVIDZ_REDIS_URL", "SUPABASE_URL"])
def test_the_production_profile_requires_redis_and_a_receiver(read: Any, missing: str) -> None:
    """A missing setting fails at startup instead of at the first job."""
    with pytest.raises(SettingsError, match=missing):
        read(**{name: value for name, value in PRODUCTION.items() if name != missing})


def test_upstash_needs_its_url_and_its_token(read: Any) -> None:
    """A URL without its token would fall back to the default Redis server."""
    with pytest.raises(SettingsError, match="UPSTASH_REDIS_REST_TOKEN"):
        read(UPSTASH_REDIS_REST_URL="https://eu1.upstash.io")


def test_an_adapter_needs_its_encoder(read: Any) -> None:
    """One without the other would fail the first job with a reference."""
    with pytest.raises(SettingsError, match="OURVIDZ_IP_ADAPTER_ENCODER"):
        read(OURVIDZ_IP_ADAPTER="/m/adapter.safetensors")


@pytest.mark.parametrize(
    ("variables", "limit_s"),
    [
        ({}, 120),
        ({"RUNPOD_POD_ID": "k2x9"}, 90),
        ({"RUNPOD_POD_ID": "k2x9", "OURVIDZ_SYNC_DEADLINE_S": "120"}, 120),
        ({"RUNPOD_POD_ID": "k2x9", "OURVIDZ_SYNC_DEADLINE_S": "30"}, 30),
        ({"OURVIDZ_SYNC_DEADLINE_S": "110"}, 110),
    ],
)
def test_behind_runpods_proxy_a_caller_has_its_answer_before_it_is_cut_off(
    read: Any, variables: dict[str, str], limit_s: float
) -> None:
    """The proxy ends a request after 100 seconds with a 524; what the operator sets still counts."""
    assert read(**variables).sync_limit_s == limit_s


@pytest.mark.parametrize("variable", ["OURVIDZ_C2PA_CERTIFICATE", "OURVIDZ_C2PA_KEY"])
def test_a_certificate_needs_its_key(read: Any, variable: str) -> None:
    """A certificate without its key would silently leave assets unsigned."""
    with pytest.raises(SettingsError, match="OURVIDZ_C2PA_CERTIFICATE and OURVIDZ_C2PA_KEY go together"):
        read(**{variable: "/etc/ourvidz/one.pem"})


@pytest.mark.parametrize(("gpu", "ending"), [(None, "-cpu"), ("0", "-gpu0"), ("GPU-1a2b", "-GPU-1a2b")])
def test_worker_ids_name_family_host_and_gpu(read: Any, gpu: str | None, ending: str) -> None:
    """Worker ids identify a worker in logs and callbacks."""
    worker_id = read(**({"OURVIDZ_GPU": gpu} if gpu else {})).worker_id("sdxl")
    assert worker_id.startswith("sdxl@")
    assert worker_id.endswith(ending)


def test_a_gpu_index_is_that_of_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA counts the fastest card first: on a host with two kinds a worker would run on the other one."""
    for name in ("OURVIDZ_WORKER", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    become_worker("sdxl", "1")
    assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["CUDA_DEVICE_ORDER"]) == ("1", "PCI_BUS_ID")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    become_worker("sdxl", "1")
    assert os.environ["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"
    settings.cache_clear()


@pytest.mark.parametrize("own", [None, "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_blocks_of_gpu_memory_grow_unless_the_allocator_is_configured(
    monkeypatch: pytest.MonkeyPatch, own: str | None
) -> None:
    """Jobs of changing sizes would leave gaps that no job can use."""
    for name in ("OURVIDZ_WORKER", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    if own is not None:
        monkeypatch.setenv(own, "backend:native")
    become_worker("sdxl", None)
    values = {name: value for name, value in os.environ.items() if name.endswith("ALLOC_CONF")}
    expected = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"} if own is None else {own: "backend:native"}
    assert values == expected
    settings.cache_clear()


@pytest.mark.parametrize(("load_s", "start_s"), [("60", 600), ("1800", 1800)])
def test_a_worker_may_take_to_start_what_a_job_may_take_to_load(load_s: str, start_s: float) -> None:
    """Celery replaces a child that takes longer, for ever on a slow disk."""
    program = "from ourvidz import celery_settings; print(celery_settings.worker_proc_alive_timeout)"
    variables = environment(OURVIDZ_MODEL_LOAD_S=load_s)
    run = subprocess.run(
        [sys.executable, "-c", program], env=variables, capture_output=True, text=True, timeout=60
    )
    assert float(run.stdout) == start_s


@pytest.mark.parametrize("password", ["s3cr3t/word", "s3cr3t#word", "s3cr3t?word"])
def test_a_password_that_is_not_encoded_is_refused_and_not_shown(read: Any, password: str) -> None:
    """Python's own error shows the beginning of it: in the doctor's table and in every traceback."""
    with pytest.raises(SettingsError, match="percent-encoded") as refused:
        read(OURVIDZ_REDIS_URL=f"redis://:{password}@127.0.0.1:6399/0")
    assert "s3cr3t" not in str(refused.value)


@pytest.mark.parametrize("variable", ["REDIS_SERVER_BIN", "OURVIDZ_ENV_FILE"])
def test_a_file_does_not_say_what_is_executed(read: Any, tmp_path: Path, variable: str) -> None:
    """`ourvidz up` in a directory of somebody else's would run a program of theirs."""
    (tmp_path / ".env").write_text(f"{variable}=./program\n")
    with pytest.raises(SettingsError, match=f"{variable}: set it in the environment"):
        read()


def test_a_file_that_is_named_is_read_instead_of_the_one_that_is_there(read: Any, tmp_path: Path) -> None:
    """Children of a process read the same one. One that is missing is an error."""
    (tmp_path / ".env").write_text("OURVIDZ_URL=http://there.example\n")
    (tmp_path / "named.env").write_text("OURVIDZ_URL=http://named.example\n")
    assert read(OURVIDZ_ENV_FILE=str(tmp_path / "named.env")).shim_url == "http://named.example"
    with pytest.raises(SettingsError, match="OURVIDZ_ENV_FILE: there is no file"):
        read(OURVIDZ_ENV_FILE=str(tmp_path / "absent.env"))
