"""`ourvidz doctor`: does this machine have what it needs? A reason and a fix for everything that it lacks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ourvidz.cli.checks import NETWORK_S, Check, check_checkpoint, failed, ok, skipped
from ourvidz.cli.console import print_json
from ourvidz.cli.doctor_texts import check_moderation, check_qwen
from ourvidz.errors import OurvidzError, SettingsError
from ourvidz.pipelines.checkpoints import find_sdxl, find_wan
from ourvidz.settings import Settings, load_settings

SDXL_GIB = 10
"""What the SDXL family takes of a GPU in production."""
MEASURING_CACHES = ("first_block", "mag")
"""Wan's step caches that a threshold says something to."""
TORCH_PATIENCE_S = 120

_MIB = 1 << 20
_LOOK_AT_TORCH = """
import json, torch
gpus = []
for index in range(torch.cuda.device_count()):
    free, total = torch.cuda.mem_get_info(index)
    gpus.append({"name": torch.cuda.get_device_name(index), "free": free, "total": total})
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": gpus}))
"""


@click.command(short_help="Check that this machine has what it needs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Check that this machine has what it needs. Exit status 1 when something is missing."""
    checks = examine()
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        _show(checks)
    if any(check.status == "failed" for check in checks):
        raise click.exceptions.Exit(1)


def examine() -> list[Check]:
    """Every check, in reading order. Without valid settings the rest is skipped."""
    checks = [check_python()]
    try:
        chosen = load_settings()
    except SettingsError as wrong:
        checks.append(
            failed("settings", wrong.message, "correct this variable in the environment or in .env")
        )
        return [
            *checks,
            *(skipped(name, "needs valid settings") for name in ("torch", *(n for n, _ in LOOKS))),
        ]
    checks.append(ok("settings", f"profile {chosen.profile}, state in {chosen.state_dir}"))
    checks.extend(check_torch(chosen))
    checks.extend(look(chosen) for _, look in LOOKS)
    return checks


def check_python() -> Check:
    """The interpreter. One that is too old could not have read this far."""
    version = ".".join(map(str, sys.version_info[:3]))
    return ok("python", f"{version} at {sys.executable}")


def check_torch(chosen: Settings) -> list[Check]:
    """torch and the GPUs it sees; in a process of its own, this one stays light."""
    try:
        run = subprocess.run(
            (sys.executable, "-c", _LOOK_AT_TORCH), capture_output=True, text=True, timeout=TORCH_PATIENCE_S
        )
    except subprocess.TimeoutExpired:
        reason = f"import took longer than {TORCH_PATIENCE_S} s"
        return [failed("torch", reason, "look at the disk and the GPU driver (nvidia-smi)")]
    if run.returncode != 0:
        reason = (run.stderr.strip().splitlines() or [f"exit status {run.returncode}"])[-1]
        return [failed("torch", reason, "pip install -e . in this environment")]
    found = json.loads(run.stdout.strip().splitlines()[-1])
    built = f"CUDA {found['cuda']}" if found["cuda"] else "CPU only"
    return [
        ok("torch", f"{found['torch']} ({built})"),
        judge_gpus(found, production=chosen.profile == "production", grouped=chosen.wan_group_offload),
    ]


def judge_gpus(found: dict[str, Any], *, production: bool, grouped: bool = False) -> Check:
    """Whether the GPUs that torch sees are enough. The tiny profile needs none."""
    gpus = found["gpus"]
    told = "; ".join(
        f"{gpu['name']}: {gpu['free'] // _MIB} of {gpu['total'] // _MIB} MiB free" for gpu in gpus
    )
    if not gpus:
        if grouped:
            reason = "torch sees no GPU, and OURVIDZ_WAN_GROUP_OFFLOAD needs one: no Wan worker starts"
            return failed("gpu", reason, "leave OURVIDZ_WAN_GROUP_OFFLOAD out")
        if not production:
            return skipped("gpu", "none; the tiny profile runs on the CPU")
        return failed("gpu", "torch sees no GPU", "install the driver and a CUDA build of torch")
    if production and max(gpu["total"] for gpu in gpus) < SDXL_GIB << 30:
        return failed("gpu", told, f"SDXL needs a GPU with {SDXL_GIB} GiB")
    return ok("gpu", told)


def check_checkpoints(chosen: Settings) -> Check:
    """The weights of the SDXL worker, if this installation has one."""
    if chosen.profile == "production" and chosen.sdxl_model is None:
        return skipped("checkpoints", "OURVIDZ_SDXL_MODEL is not set: no SDXL worker can run here")
    return check_checkpoint("checkpoints", "sdxl", lambda: find_sdxl(chosen.sdxl_model))


def check_wan(chosen: Settings) -> Check:
    """The weights of the Wan worker, if this installation has one."""
    if chosen.profile == "production" and chosen.wan_model is None:
        return skipped("wan checkpoint", "OURVIDZ_WAN_MODEL is not set: no Wan worker can run here")
    found = check_checkpoint("wan checkpoint", "wan", lambda: find_wan(chosen.wan_model, expected="t2v"))
    if found.status != "ok" or chosen.wan_vace_model is None:
        return found
    beside = check_checkpoint(
        "wan checkpoint", "wan_vace", lambda: find_wan(chosen.wan_vace_model, expected="vace")
    )
    return ok(found.name, f"{found.reason}; {beside.reason}") if beside.status == "ok" else beside


def check_wan_options(chosen: Settings) -> Check:
    """How Wan was told to run."""
    if chosen.wan_cache_threshold is not None and chosen.wan_cache not in MEASURING_CACHES:
        reason = f"OURVIDZ_WAN_CACHE_THRESHOLD has no effect: only {' and '.join(MEASURING_CACHES)} measure"
        return failed("wan", reason, "leave it out, or set OURVIDZ_WAN_CACHE to one of them")
    told = {
        "dtype": chosen.wan_dtype,
        "attention": chosen.wan_attention,
        "compiled": chosen.wan_compile,
        "few steps": chosen.wan_few_steps,
        "cache": chosen.wan_cache,
        "threshold": chosen.wan_cache_threshold,
        "VAE always tiled": chosen.wan_vae_tiling == "always",
        "group offload": chosen.wan_group_offload,
        "frames x pixels at most": chosen.wan_max_frame_pixels,
    }
    return ok("wan", _told(told))


def _told(chosen: Mapping[str, object]) -> str:
    """What of this was chosen, in words."""
    said = "; ".join(name if value is True else f"{name} {value}" for name, value in chosen.items() if value)
    return said or "as its checkpoint and the device say"


def check_sdxl(chosen: Settings) -> Check:
    """How SDXL was told to run, and whether the files it names are there."""
    loras = (*chosen.sdxl_loras, *chosen.sdxl_job_loras)
    named = [written.partition("=")[2].partition("@")[0] for written in loras]
    files = [
        *(Path(name).expanduser() for name in named),
        *(path for path in (chosen.ip_adapter, chosen.ip_adapter_encoder) if path),
    ]
    gone = [str(path) for path in files if not path.exists()]
    if gone:
        return failed(
            "sdxl",
            f"missing: {', '.join(gone)}",
            "correct OURVIDZ_SDXL_LORAS, OURVIDZ_SDXL_JOB_LORAS or OURVIDZ_IP_ADAPTER…",
        )
    told = {
        "scheduler": chosen.sdxl_scheduler,
        "few steps": chosen.sdxl_few_steps,
        "dtype": chosen.sdxl_dtype,
        "attention": chosen.sdxl_attention,
        "compiled": chosen.sdxl_compile,
        "channels last": chosen.sdxl_channels_last,
        "LoRAs": " ".join(written.partition("=")[0] for written in chosen.sdxl_loras),
        "LoRAs by name": " ".join(written.partition("=")[0] for written in chosen.sdxl_job_loras),
        "IP-Adapter": chosen.ip_adapter and chosen.ip_adapter.stem,
    }
    return ok("sdxl", _told(told))


def check_broker(chosen: Settings) -> Check:
    """The Redis server: reachable, and never throwing anything away."""
    import redis

    from ourvidz.cli.embedded import find_server
    from ourvidz.cli.state import StateDir

    running = (StateDir(chosen.state_dir).announced() or {}).get("redis")
    if not (chosen.redis_url_given or chosen.upstash_url or running):
        try:
            return ok("broker", f"`ourvidz up` will start {find_server(chosen.redis_server_bin)}")
        except SettingsError as missing:
            return failed("broker", missing.message, "pip install 'ourvidz[embedded]'")
    external = chosen.redis_url_given or chosen.upstash_url
    url = chosen.redis_url if external or running is None else running
    try:
        with redis.Redis.from_url(
            url, decode_responses=True, socket_connect_timeout=NETWORK_S, socket_timeout=NETWORK_S
        ) as client:
            client.ping()
            facts = client.info()
    except (redis.RedisError, ValueError) as lost:
        fix = "start it, or correct OURVIDZ_REDIS_URL" if external else "restart `ourvidz up`"
        return failed("broker", f"{type(lost).__name__}: {lost}", fix)
    policy = facts.get("maxmemory_policy")
    if policy != "noeviction":
        return failed("broker", f"maxmemory-policy is {policy}: jobs can vanish", "set it to noeviction")
    return ok("broker", f"version {facts.get('valkey_version') or facts.get('redis_version')}, noeviction")


def check_storage(chosen: Settings) -> Check:
    """Where assets are kept: writes, reads and deletes a probe."""
    from ourvidz.storage.local import LocalStore

    try:
        LocalStore(chosen.storage_dir).check()
    except OurvidzError as wrong:
        return failed("storage", wrong.message, "set OURVIDZ_STORAGE_DIR to a directory that can be written")
    return ok("storage", str(chosen.storage_dir))


def check_signing(chosen: Settings) -> Check:
    """The certificate that assets are signed with: signs a small picture."""
    if chosen.c2pa_certificate is None:
        return skipped("signing", "OURVIDZ_C2PA_CERTIFICATE is not set: assets carry XMP, and no manifest")
    from ourvidz.wiring import signing

    try:
        signing.signer(chosen)
    except SettingsError as wrong:
        return failed("signing", wrong.message, "correct it, or leave the OURVIDZ_C2PA_… variables out")
    stamped = f"timestamps from {chosen.c2pa_timestamp_url}" if chosen.c2pa_timestamp_url else "no timestamps"
    return ok("signing", f"{chosen.c2pa_certificate}, {chosen.c2pa_algorithm}, {stamped}")


def check_callbacks(chosen: Settings) -> Check:
    """The receiver of callbacks. Any answer will do: only a real callback may post there."""
    import requests

    url = chosen.default_callback_url
    if url is None:
        return skipped("callbacks", "they go to the inbox of `ourvidz up`")
    try:
        answer = requests.options(url, timeout=NETWORK_S, allow_redirects=False)
    except requests.RequestException as lost:
        return failed(
            "callbacks", f"{url}: {type(lost).__name__}", "correct SUPABASE_URL or OURVIDZ_CALLBACK_URL"
        )
    return ok("callbacks", f"{url} answers ({answer.status_code})")


LOOKS: tuple[tuple[str, Callable[[Settings], Check]], ...] = (
    ("checkpoints", check_checkpoints),
    ("sdxl", check_sdxl),
    ("wan checkpoint", check_wan),
    ("wan", check_wan_options),
    ("qwen", check_qwen),
    ("moderation", check_moderation),
    ("broker", check_broker),
    ("storage", check_storage),
    ("signing", check_signing),
    ("callbacks", check_callbacks),
)


def _show(checks: list[Check]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    colours = {"ok": "green", "failed": "red", "skipped": "dim"}
    table = Table("check", "", "reason", "fix")
    for check in checks:
        # What stands in brackets, such as the name of an extra, would be taken for a style.
        reason, fix = escape(check.reason), escape(check.fix)
        table.add_row(check.name, f"[{colours[check.status]}]{check.status}[/]", reason, fix)
    Console().print(table)
