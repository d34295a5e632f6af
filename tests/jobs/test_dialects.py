"""What callers write, and the job or the error it becomes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ourvidz.errors import CallerError, InvalidParameters, InvalidPrompt, ReferenceForbidden
from ourvidz.jobs.catalog import ALIASES, CATALOG
from ourvidz.jobs.dialects import Defaults, parse
from ourvidz.jobs.job import AdminJob, BaseJob, ChatJob, ImageJob, VideoJob, dump_job, load_job

DEFAULTS = Defaults(
    callback_hosts=frozenset({"hooks.example.com", "other.example.com:8443"}), draw_seed=lambda: 4711
)
URL = "https://assets.example.com/a.png"
OWN = "user-library/u1/a.png"


def body(kind: str = "sdxl_image_fast", **fields: Any) -> dict[str, Any]:
    return {"id": "j1", "type": kind, "prompt": "a heron", "user_id": "u1", **fields}


def image(**fields: Any) -> ImageJob:
    job = parse(body(**fields), DEFAULTS)
    assert isinstance(job, ImageJob)
    return job


def video(**fields: Any) -> VideoJob:
    job = parse(body(fields.pop("kind", "video_fast"), **fields), DEFAULTS)
    assert isinstance(job, VideoJob)
    return job


def chat(**fields: Any) -> ChatJob:
    job = parse({"id": "c1", "type": "chat_conversation", **fields}, DEFAULTS)
    assert isinstance(job, ChatJob)
    return job


def refusal(payload: object) -> CallerError:
    with pytest.raises(CallerError) as refused:
        parse(payload, DEFAULTS)
    return refused.value


@pytest.mark.parametrize("name", [*CATALOG, *ALIASES])
def test_every_type_and_alias_becomes_a_job_of_its_row(name: str) -> None:
    """A new row of the catalog needs no change in the parser."""
    job = parse(body(name), DEFAULTS)
    assert job.type == ALIASES.get(name, name)
    assert job.kind == job.row.kind


def test_an_empty_request_takes_everything_from_the_catalog() -> None:
    """Workers add nothing of their own, so the defaults must be the documented ones."""
    job = image()
    assert (job.steps, job.guidance_scale, job.num_images, job.expected_time) == (15, 6.0, 1, 30)
    assert (job.width, job.height, job.bucket, job.denoise_strength) == (1024, 1024, "workspace-temp", 0.15)
    clip = video()
    assert (clip.steps, clip.guidance_scale, clip.frames, clip.fps, clip.shift) == (25, 6.5, 83, 16, 5.0)
    assert (clip.width, clip.height, clip.solver, clip.expected_time) == (480, 832, "unipc", 180)


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        ({"steps": "25"}, "steps", 25),
        ({"steps": 25.0}, "steps", 25),
        ({"steps": "25.0"}, "steps", 25),
        ({"steps": None, "num_inference_steps": 30}, "steps", 30),
        ({"steps": "", "sample_steps": 31}, "steps", 31),
        ({"num_inference_steps": 30, "sample_steps": 31}, "steps", 30),
        ({"guidance_scale": "7.25"}, "guidance_scale", 7.25),
        ({"guidance_scale": 0}, "guidance_scale", 0.0),
        ({"sample_guide_scale": "1e1"}, "guidance_scale", 10.0),
        ({"batch_size": "3"}, "num_images", 3),
        ({"seed": 2147483647}, "seed", 2147483647),
        ({"seed": 0}, "seed", 0),
        ({"width": 64, "height": 2048}, "height", 2048),
        ({"size": "768*512"}, "width", 768),
        ({"resolution": "512x768", "size": "64*64"}, "width", 512),
        ({"expected_time": "12.5"}, "expected_time", 12.5),
        ({"negative_prompt": "fog"}, "negative_prompt", "fog"),
    ],
)
def test_a_value_is_read_from_the_first_place_that_has_one(
    config: dict[str, Any], field: str, value: object
) -> None:
    """Five generations of callers spell the same value differently; absent is null, missing or ""."""
    assert getattr(image(config=config), field) == value


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"steps": True}, "config.steps"),
        ({"steps": 25.5}, "config.steps"),
        ({"steps": "25.5"}, "config.steps"),
        ({"steps": 101}, "config.steps"),
        ({"steps": "many", "num_inference_steps": 20}, "config.steps"),
        ({"steps": [20]}, "config.steps"),
        ({"steps": 10**400}, "config.steps"),
        ({"steps": "1_0"}, "config.steps"),
        ({"steps": "٣"}, "config.steps"),
        ({"sample_guide_scale": float("nan")}, "config.sample_guide_scale"),
        ({"guidance_scale": float("inf")}, "config.guidance_scale"),
        ({"guidance_scale": "inf"}, "config.guidance_scale"),
        ({"guidance_scale": "1e999"}, "config.guidance_scale"),
        ({"guidance_scale": 20.01}, "config.guidance_scale"),
        ({"guidance_scale": {}}, "config.guidance_scale"),
        ({"batch_size": 2}, "config.batch_size"),
        ({"num_images": 3.5}, "config.num_images"),
        ({"seed": 2147483648}, "config.seed"),
        ({"width": 512}, "config.height"),
        ({"height": 512}, "config.width"),
        ({"width": 513, "height": 512}, "config.width"),
        ({"width": 512, "height": 2056}, "config.height"),
        ({"resolution": "1024"}, "config.resolution"),
        ({"resolution": 1024}, "config.resolution"),
        ({"size": "56*64"}, "config.size"),
        ({"negative_prompt": ["fog"]}, "config.negative_prompt"),
        ({"negative_prompt": "f" * 10_001}, "config.negative_prompt"),
        ({"negative_prompt": "\ud800"}, "config.negative_prompt"),
    ],
)
def test_a_value_outside_its_rule_is_refused_at_the_callers_own_path(
    config: dict[str, Any], field: str
) -> None:
    """Nothing is rounded, clamped or skipped: the caller decides, so the caller must know."""
    error = refusal(body(config=config))
    assert isinstance(error, InvalidParameters)
    assert error.field == field
    assert field in error.message
    json.dumps([error.message, error.rule, error.value], allow_nan=False).encode()


def test_an_error_names_field_rule_and_value_in_one_sentence() -> None:
    """The message is all that many callers ever log."""
    error = refusal(body(config={"resolution": "1023x1024"}))
    assert error.message == (
        "config.resolution must be WIDTHxHEIGHT, each a multiple of 8 from 64 to 2048, not '1023x1024'."
    )
    assert error.value == "1023x1024"


def test_an_error_never_repeats_what_a_person_wrote() -> None:
    """Errors are logged and prompts are not."""
    error = refusal(body(prompt="secret words " * 1000))
    assert isinstance(error, InvalidPrompt)
    assert "secret" not in f"{error.message} {error.value} {error.rule}"


@pytest.mark.parametrize("payload", [None, [], "x", 3, True, [{"id": "x"}]])
def test_what_is_not_an_object_is_refused_without_a_field(payload: object) -> None:
    """There is no path to name."""
    assert refusal(payload).field is None


@pytest.mark.parametrize("name", ["config", "metadata"])
@pytest.mark.parametrize("value", [[], "x", 0, True])
def test_a_container_that_is_no_object_is_refused_by_name(name: str, value: object) -> None:
    """Reading on as if it were empty would drop what the caller asked for."""
    assert refusal(body(**{name: value})).field == name


@pytest.mark.parametrize("name", ["config", "metadata"])
@pytest.mark.parametrize("value", [None, "", {}])
def test_an_absent_container_is_no_error(name: str, value: object) -> None:
    """null, missing and "" count as absent, for containers too."""
    assert image(**{name: value}).steps == 15


@pytest.mark.parametrize(
    "value", ["", None, "../x", ".x", "-x", "a b", "a/b", "é", "x" * 129, 7, True, ["x"], "a\n", "a\0"]
)
@pytest.mark.parametrize("field", ["id", "user_id"])
def test_ids_outside_their_alphabet_are_refused(field: str, value: object) -> None:
    """Ids become storage paths and Redis keys."""
    assert refusal(body(**{field: value})).field == field


def test_an_id_may_be_made_where_the_route_says_so() -> None:
    """Synchronous routes answer callers that know no job ids."""
    payload = {"type": "chat", "prompt": "hello"}
    assert refusal(payload).field == "id"
    assert parse(payload, DEFAULTS, make_id=lambda: "made").id == "made"
    assert parse({**payload, "job_id": "given"}, DEFAULTS, make_id=lambda: "made").id == "given"
    assert refusal({**payload, "id": "../x"}).field == "id"


def test_the_first_spelling_of_id_type_and_user_wins() -> None:
    """Callers send both spellings, and they may differ."""
    job = image(job_id="j2", job_type="video_fast", metadata={"user_id": "u2"})
    assert (job.id, job.type, job.user_id) == ("j1", "sdxl_image_fast", "u1")
    assert parse({"job_id": "j", "job_type": "chat", "prompt": "x"}, DEFAULTS).user_id is None
    assert image(user_id=None, metadata={"user_id": "u2"}).user_id == "u2"


@pytest.mark.parametrize("value", ["sdxl", "SDXL_IMAGE_FAST", 7, ["chat"], {}, "\ud800"])
def test_an_unknown_type_is_refused(value: object) -> None:
    """There is no queue for it."""
    assert refusal(body(type=value)).field == "type"
    assert refusal({"id": "x", "job_type": value}).field == "job_type"


@pytest.mark.parametrize("value", [None, "", "   ", "\n\t", 7, ["x"], "x" * 10_001, "a\0b", "a\udcffb"])
def test_a_prompt_that_cannot_be_used_is_an_invalid_prompt(value: object) -> None:
    """The code tells the caller which of its inputs to mend."""
    for kind in ("sdxl_image_fast", "video_fast", "chat_conversation"):
        error = refusal(body(kind, prompt=value))
        assert isinstance(error, InvalidPrompt)
        assert error.field == "prompt"


def test_a_prompt_is_kept_as_written() -> None:
    """Workers are pure inference: not a space is added or removed."""
    text = "  ein Reiher 🪶 (soft light:1.2)\n" + "x" * 9000
    assert image(prompt=text).prompt == text


@pytest.mark.parametrize(("value", "meant"), [(True, True), (False, False), ("true", True), ("false", False)])
def test_switches_take_booleans_and_their_names(value: object, meant: bool) -> None:
    """Form-shaped callers send strings."""
    assert image(compel_enabled=value).compel_enabled is meant
    assert image(metadata={"compel_enabled": value}).compel_enabled is meant
    assert video(config={"enhance_prompt": value}).enhance_prompt is meant


@pytest.mark.parametrize("value", [1, 0, "yes", [], {}])
def test_switches_take_nothing_else(value: object) -> None:
    """1 is not true in JSON, and a guess here changes the picture."""
    assert refusal(body(compel_enabled=value)).field == "compel_enabled"
    assert refusal(body(metadata={"exact_copy_mode": value})).field == "metadata.exact_copy_mode"


@pytest.mark.parametrize(
    ("places", "denoise"),
    [
        ({"metadata": {"denoise_strength": 0.3}, "config": {"denoise_strength": 0.4}}, 0.3),
        ({"config": {"denoise_strength": 0.4}, "denoise_strength": 0.5}, 0.4),
        ({"denoise_strength": "0.5", "metadata": {"reference_strength": 0.9}}, 0.5),
        ({"metadata": {"reference_strength": 0.9}}, 0.1),
        ({"config": {"reference_strength": 0.7}}, 0.3),
        ({"reference_strength": 1}, 0.0),
        ({"metadata": {"denoise_strength": 0}}, 0.0),
        ({}, 0.15),
    ],
)
def test_strength_is_read_from_its_places_in_order(places: dict[str, Any], denoise: float) -> None:
    """reference_strength is the older opposite, and only asked when there is no denoise_strength."""
    assert image(**places).denoise_strength == denoise


def test_a_drawn_seed_is_marked_and_a_given_one_is_not() -> None:
    """A repeat of the same request must not look like another job."""
    drawn, given = image(), image(metadata={"seed": "4711"})
    assert (drawn.seed, drawn.seed_drawn) == (4711, True)
    assert (given.seed, given.seed_drawn) == (4711, False)


def test_seeds_are_drawn_from_the_whole_range() -> None:
    """Nothing else may be random, and two jobs must not share a seed by default."""
    seeds = {Defaults().draw_seed() for _ in range(50)}
    assert len(seeds) > 45
    assert all(0 <= seed <= 2147483647 for seed in seeds)


def test_a_drawn_seed_has_room_for_a_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeds of its pictures then count up, as callers expect."""
    monkeypatch.setattr("ourvidz.jobs.defaults.secrets.randbelow", lambda limit: limit - 1)
    assert 2147483640 <= Defaults().draw_seed() <= 2147483647 - 5


@pytest.mark.parametrize(
    ("seed", "seeds"),
    [(7, [7, 8, 9]), (2147483647, [2147483647, 0, 1]), (2147483645, [2147483645, 2147483646, 2147483647])],
)
def test_every_picture_s_seed_is_one_that_callers_may_send(seed: int, seeds: list[int]) -> None:
    """The highest seed is as good as any, also for three pictures: after it they begin again at 0."""
    asked = image(config={"seed": seed, "num_images": 3})
    assert isinstance(asked, ImageJob)
    assert asked.seeds == seeds
    for each in asked.seeds:
        assert image(config={"seed": each}).seed == each


def test_negative_prompts_are_read_where_each_family_sends_them() -> None:
    """The live caller sends SDXL negatives at top level with Wan jobs as well, where they must not count."""
    everywhere = {
        "negative_prompt": "top",
        "config": {"negative_prompt": "config"},
        "metadata": {"negative_prompt": "metadata"},
    }
    assert image(**everywhere).negative_prompt == "top"
    assert image(metadata={"negative_prompt": "metadata"}).negative_prompt == "metadata"
    assert video(**everywhere).negative_prompt == "config"
    assert video(negative_prompt="top").negative_prompt is None


def test_a_negative_prompt_from_the_settings_is_for_sdxl_jobs_without_one() -> None:
    """It is never invented, and never part of an exact copy."""
    house = Defaults(negative_prompt="house")
    assert getattr(parse(body(), house), "negative_prompt", "") == "house"
    assert getattr(parse(body(negative_prompt="own"), house), "negative_prompt", "") == "own"
    assert getattr(parse(body("video_fast"), house), "negative_prompt", "") is None
    copy = body(prompt="", metadata={"exact_copy_mode": True, "reference_image_url": URL})
    assert getattr(parse(copy, house), "negative_prompt", "") is None


@pytest.mark.parametrize(
    ("denoise", "kept", "steps", "effective"),
    [(0, 0.0, 6, 0), (0.01, 0.01, 7, 7), (0.025, 0.025, 8, 8), (0.05, 0.05, 10, 10), (1, 0.05, 10, 10)],
)
def test_an_exact_copy_takes_few_steps_at_a_tiny_strength(
    denoise: float, kept: float, steps: int, effective: int
) -> None:
    """Whatever steps, guidance and negative prompt say."""
    job = image(
        prompt=" ",
        negative_prompt="fog",
        config={"steps": 50, "guidance_scale": 9},
        metadata={"exact_copy_mode": True, "reference_image_url": URL, "denoise_strength": denoise},
    )
    assert (job.mode, job.prompt, job.guidance_scale, job.negative_prompt) == ("exact_copy", "", 1.0, None)
    assert (job.denoise_strength, job.steps, job.effective_steps) == (kept, steps, effective)


def test_exact_copy_mode_with_a_prompt_is_a_modification_as_asked() -> None:
    """Nothing is clamped once the caller says what to change."""
    job = image(
        config={"steps": 30},
        metadata={"exact_copy_mode": True, "reference_image_url": URL, "denoise_strength": 0.4},
    )
    assert (job.mode, job.denoise_strength, job.steps, job.effective_steps) == ("modify", 0.4, 30, 12)


def test_exact_copy_mode_without_a_reference_needs_a_prompt() -> None:
    """There would be nothing to copy."""
    assert isinstance(refusal(body(prompt="", metadata={"exact_copy_mode": True})), InvalidPrompt)


@pytest.mark.parametrize(
    "config",
    [
        {"task": 1, "sample_solver": "euler", "frames": 5, "fps": 60},
        {"reference_mode": "nonsense"},
    ],
)
def test_fields_of_another_family_are_ignored(config: dict[str, Any]) -> None:
    """Old callers send Wan fields with SDXL jobs."""
    assert image(config=config).extras == {"config": config}


def test_unknown_fields_are_kept_in_their_shape_and_read_ones_are_not() -> None:
    """They are nobody's error, and an operator may want to see them."""
    job = image(
        quality="high",
        config={"steps": 20, "pipeline": "txt2img", "note": None},
        metadata={"aspect_ratio": "1:1", "deep": [{"a": 1}]},
    )
    assert job.extras == {
        "quality": "high",
        "config": {"pipeline": "txt2img", "note": None},
        "metadata": {"aspect_ratio": "1:1", "deep": [{"a": 1}]},
    }


def nest(levels: int) -> Any:
    value: Any = "bottom"
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "strange",
    [
        nest(50_000),
        {"k": nest(300)},
        "\ud800",
        {"\udfff": 1},
        "a\0b",
        float("nan"),
        10**5000,
        2**200,
        ["x" * 100] * 20_000,
        b"bytes",
        (1, 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_strange_unknown_fields_survive_storage(strange: object) -> None:
    """Unknown fields are never an error, not even for the serialiser behind the door."""
    job = image(whatever=strange, metadata={"other": strange}, video_id=strange)
    assert load_job(dump_job(job)) == job
    assert "whatever" in job.extras
    job.fingerprint()


@pytest.mark.parametrize(
    "field",
    ["id", "type", "prompt", "user_id", "bucket", "callback_url", "negative_prompt", "compel_enabled"],
)
def test_deep_nesting_in_a_known_field_is_a_plain_refusal(field: str) -> None:
    """Showing the value must not walk it."""
    assert refusal(body(**{field: nest(50_000)})).field == field


def test_what_the_caller_wants_back_is_carried() -> None:
    """The receiver matches callbacks with these, whatever they are."""
    job = image(
        video_id="v", image_id=3, character_id=None, created_at="now", metadata={"model_variant": "m"}
    )
    assert job.carried == {"video_id": "v", "image_id": 3, "created_at": "now", "model_variant": "m"}
    assert image(model_variant="top", metadata={"model_variant": "m"}).carried == {"model_variant": "top"}


def test_flags_are_read_as_booleans_and_echoed() -> None:
    """ "false" must not come back as true."""
    job = image(metadata={"unrestricted_mode": "false", "nsfw_optimization": True, "contentType": "sfw"})
    assert job.flags == {"unrestricted_mode": False, "nsfw_optimization": True, "content_type": "sfw"}
    assert job.callback_metadata()["unrestricted_mode"] is False
    assert job.callback_metadata()["nsfw_optimization"] is True


@pytest.mark.parametrize("bucket", ["workspace-temp", "sdxl_image_high", "video7b_fast_enhanced"])
def test_known_buckets_are_taken(bucket: str) -> None:
    """One per image or video type, and the default."""
    assert image(bucket=bucket).bucket == bucket


@pytest.mark.parametrize("bucket", ["user-library", "chat_enhance", "../x", 3, []])
def test_other_buckets_are_refused(bucket: object) -> None:
    """A bucket that can only be read is no place to write."""
    assert refusal(body(bucket=bucket)).field == "bucket"


@pytest.mark.parametrize(
    "fields",
    [
        {"config": {"expected_time": 0}},
        {"metadata": {"expected_generation_time": "soon"}},
        {"unrestricted_mode": 1},
        {"metadata": {"nsfw_optimization": "enabled", "sfw_mode": {}}},
    ],
)
def test_a_field_without_a_rule_is_never_an_error(fields: dict[str, Any]) -> None:
    """What it says is not understood: it counts as absent and is kept."""
    job = image(**fields)
    assert job.expected_time == 30
    assert job.flags == {}
    assert job.extras == fields


def test_the_fingerprint_ignores_seeds_and_what_is_carried_through() -> None:
    """A repeated submission is the same job."""
    first = image(video_id="a", quality="high", metadata={"contentType": "sfw"})
    other = parse(body(video_id="b", quality="low"), Defaults(draw_seed=lambda: 1))
    assert first.fingerprint() == other.fingerprint()
    assert image(config={"seed": 4711}).fingerprint() == first.fingerprint()
    assert image(prompt="another").fingerprint() != first.fingerprint()


def test_a_repeat_may_leave_the_seed_open_but_not_give_another() -> None:
    """A caller repeats its request, or asks again with the seed that it was told."""
    drawn, given = image(), image(config={"seed": 7})
    assert image().repeats(drawn.fingerprint(), drawn.callback_metadata())
    assert image(config={"seed": drawn.seed}).repeats(drawn.fingerprint(), drawn.callback_metadata())
    assert image().repeats(given.fingerprint(), given.callback_metadata())
    assert not image(config={"seed": 8}).repeats(given.fingerprint(), given.callback_metadata())
    assert not image(prompt="another").repeats(given.fingerprint(), given.callback_metadata())


@pytest.mark.parametrize("operation", ["status", "flush_caches", "queue-depths"])
def test_an_admin_job_needs_no_prompt_and_no_user(operation: str) -> None:
    """It makes nothing that anybody owns."""
    job = parse({"id": "a", "type": "admin_utilities", "operation": operation}, DEFAULTS)
    assert isinstance(job, AdminJob)
    assert job.operation == operation
    assert refusal({"id": "a", "type": "admin_utilities", "operation": "../x"}).field == "operation"


def test_a_job_of_every_kind_survives_storage() -> None:
    """What the ledger reads back is what the door wrote."""
    jobs: list[BaseJob] = [image(), video(), chat(prompt="hello")]
    for job in jobs:
        assert load_job(job.model_dump_json()) == job


def test_parsing_leaves_the_payload_alone() -> None:
    """The caller's own object may be used again."""
    payload = body(config={"steps": "20"}, metadata={"x": {"y": 1}})
    before = json.dumps(payload)
    job = parse(payload, DEFAULTS)
    job.extras["metadata"]["x"]["y"] = 2
    assert json.dumps(payload) == before


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.com/done",
        "http://HOOKS.example.com:9000/done?x=1",
        "https://other.example.com:8443/",
    ],
)
def test_callback_urls_on_the_allow_list_are_kept(url: str) -> None:
    """A host without a port allows every port."""
    assert image(callback_url=url).callback_url == url


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest",
        "https://other.example.com/",
        "https://hooks.example.com.evil.example/",
        "https://hooks.example.com@evil.example/",
        "https://user:pw@hooks.example.com/",
        "https://evil.example\\@hooks.example.com/",
        "ftp://hooks.example.com/",
        "//hooks.example.com/",
        "hooks.example.com",
        "https://hooks.example.com:99999/",
        "https://[::1/",
        "https://hooks.example.com/\nHost: x",
        "https://hooks.example.com./",
        7,
        ["https://hooks.example.com/"],
    ],
)
def test_other_callback_urls_are_refused(url: object) -> None:
    """The worker's network position is not the caller's to use."""
    error = refusal(body(callback_url=url))
    assert (error.code, error.field) == ("INVALID_PARAMETERS", "callback_url")


@pytest.mark.parametrize(
    "value",
    [
        URL,
        "HTTP://h/a",
        "data:image/png;base64,AAAA",
        "data:image/svg+xml,x",
        OWN,
        "workspace-temp/u1/j/0.png",
    ],
)
def test_usable_references_are_kept_as_written(value: str) -> None:
    """They are resolved in the worker; the door only looks."""
    assert image(metadata={"reference_image_url": value}).reference == value
    assert image(config={"image": value}, metadata={"reference_image_url": "file:///x"}).reference == value


@pytest.mark.parametrize(
    "value",
    [
        "file:///etc/passwd",
        "ftp://h/a.png",
        "javascript:alert(1)",
        "data:text/html,x",
        "data:,x",
        "https://",
        "https:///a.png",
        "http://[::1/a",
        "http://h h/a",
        "secrets/u1/a.png",
        "/etc/passwd",
        "//host/a.png",
        "a.png",
        "user-library/u1",
        "https://h/" + "x" * 5000,
        7,
        {"url": "https://h/a"},
        "user-library/u1/a\0.png",
    ],
)
def test_other_references_are_refused_at_the_door(value: object) -> None:
    """A file URL must not reach a process that can open it."""
    error = refusal(body(metadata={"reference_image_url": value}))
    assert (error.code, error.field) == ("INVALID_PARAMETERS", "metadata.reference_image_url")


@pytest.mark.parametrize(
    "path",
    [
        "user-library/u2/a.png",
        "user-library/U1/a.png",
        "user-library/u1/../u2/a.png",
        "user-library/../u1/a.png",
        "user-library/u1//a.png",
        "user-library/u1/",
        "user-library/u1/./a.png",
        "user-library/u1/%2e%2e/u2/a.png",
        "user-library/u1/..%2fu2/a.png",
        "user-library/u1/..\\u2/a.png",
    ],
)
def test_storage_paths_outside_the_users_own_are_forbidden(path: str) -> None:
    """A reference must never show one user another's picture."""
    error = refusal(body("video_fast", config={"first_frame": path}))
    assert isinstance(error, ReferenceForbidden)
    assert error.field == "config.first_frame"
