"""What `ourvidz doctor` looks at for the chat worker: its models, and who else judges texts."""

from __future__ import annotations

from ourvidz.cli.checks import NETWORK_S, Check, check_checkpoint, failed, ok, skipped
from ourvidz.pipelines.checkpoints import QwenVariant, find_qwen
from ourvidz.settings import Settings

NAME = "qwen"


def check_qwen(chosen: Settings) -> Check:
    """The language models of the chat worker, if this installation has one: checkpoints here, or servers that
    speak the OpenAI API."""
    servers: dict[QwenVariant, str | None] = {
        "instruct": chosen.qwen_instruct_url,
        "base": chosen.qwen_base_url,
    }
    if chosen.profile == "production" and chosen.qwen_model is None and not any(servers.values()):
        return skipped(NAME, "OURVIDZ_QWEN_MODEL is not set: no chat worker can run here")
    looks = [_check_variant(chosen, variant, url) for variant, url in servers.items()]
    wrong = next((look for look in looks if look.status == "failed"), None)
    return wrong or ok(NAME, "; ".join(look.reason for look in looks))


def check_moderation(chosen: Settings) -> Check:
    """The operator's own judge of texts. Any answer will do: only a real text may be sent there."""
    import requests

    url = chosen.moderation_url
    if url is None:
        return skipped("moderation", "OURVIDZ_MODERATION_URL is not set: the safety gate alone judges texts")
    try:
        answer = requests.options(url, timeout=NETWORK_S, allow_redirects=False)
    except requests.RequestException as lost:
        fix = "correct OURVIDZ_MODERATION_URL, or leave it out: jobs with sfw_mode fail"
        return failed("moderation", f"{url}: {type(lost).__name__}", fix)
    return ok("moderation", f"{url} answers ({answer.status_code})")


def _check_variant(chosen: Settings, variant: QwenVariant, url: str | None) -> Check:
    variable = f"OURVIDZ_QWEN_{variant.upper()}_URL"
    if url is not None:
        return _check_server(f"{url.rstrip('/')}/models", chosen.qwen_key, variable)
    if chosen.profile == "production" and chosen.qwen_model is None:
        return failed(NAME, f"there is no {variant} model", f"set OURVIDZ_QWEN_MODEL or {variable}")
    return check_checkpoint(NAME, NAME, lambda: find_qwen(chosen.qwen_model, variant))


def _check_server(url: str, key: str | None, variable: str) -> Check:
    import requests

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = requests.get(url, headers=headers, timeout=NETWORK_S, allow_redirects=False)
    except requests.RequestException as lost:
        return failed(NAME, f"{url}: {type(lost).__name__}", f"start that server, or correct {variable}")
    if answer.status_code != requests.codes.ok:
        return failed(NAME, f"{url} answers {answer.status_code}", f"correct {variable} or OURVIDZ_QWEN_KEY")
    return ok(NAME, f"{url} answers")
