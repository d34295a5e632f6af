"""The safety gate, with stand-in terms."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ourvidz.errors import PolicyViolation
from ourvidz.jobs.outcome import JobError
from ourvidz.prompts.cleaning import clean_prompt
from ourvidz.prompts.weights import parse_prompt
from ourvidz.safety.gate import Gate, Terms
from ourvidz.safety.readings import read

GATE = Gate(Terms(minor=frozenset({"blorple", "wee zibby"}), sexual=frozenset({"quuxish", "vookil"})))


def is_refused(*texts: str) -> bool:
    try:
        GATE.check(texts)
    except PolicyViolation:
        return True
    return False


@pytest.mark.parametrize(
    "texts",
    [(), ("",), ("a blorple on a hill",), ("a quuxish lamp",), ("16 years old",), ("a hill", "a lamp")],
)
def test_terms_of_one_kind_pass(texts: tuple[str, ...]) -> None:
    """Each kind alone is allowed."""
    assert not is_refused(*texts)


@pytest.mark.parametrize(
    "texts",
    [
        ("quuxish blorple",),
        ("a blorple on a hill", "and a quuxish lamp"),
        ("vookil", "", "something else", "WEE ZIBBY"),
        ("a quuxish lamp, 16 years old",),
        ("quuxish",) * 3 + ("blorple",),
    ],
)
def test_terms_of_both_kinds_anywhere_in_a_job_are_refused(texts: tuple[str, ...]) -> None:
    """Distributing them over several fields must not help."""
    assert is_refused(*texts)


@pytest.mark.parametrize(
    "disguised",
    [
        "QUUXISH",
        "Quuxish!",
        "«quuxish»",
        "ｑｕｕｘｉｓｈ",
        "𝓺𝓾𝓾𝔁𝓲𝓼𝓱",
        "ⓠⓤⓤⓧⓘⓢⓗ",
        "🆀🆄🆄🆇🅸🆂🅷",
        "🇶🇺🇺🇽🇮🇸🇭",
        "qu\u200buxish",
        "q\u00aduux\u2060ish",
        "\u202equuxish\u202c",
        "quu\ufe0fxish",
        "quu\u3164xish",
        "qúüxïsh",
        "q̶u̶u̶x̶i̶s̶h̶",
        "quuхіѕһ",
        "quυχιsh",
        "quuxısh",
        "quux1sh",
        "quux!sh",
        "quuxi5h",
        "quuxi$h",
        "quux|5h",
        "v00kil",
        "vook1l",
        "vooki1",
        "voo.kil",
        "voo-kil",
        "voo_kil",
        "v*o*o*k*i*l",
        "q u u x i s h",
        "q.u.u.x.i.s.h",
        "q-u-u-x-i-s-h",
        "q . u . u . x . i . s . h",
        "a q u u x i s h t h i n g",
        "q u u x 1 s h",
        "quuxiiiish",
        "qquuuuxxiisshh",
        "vvooookil",
        "quuxӏsh",
        "vookiӏ",
        "vооkil",
        "ꓦꓳꓳꓗꓲꓡ",
        "qu ux is h",
        "q uu x i sh",
        "qu\u200bux\u200bish",
        "a\u200bquu\u200bxish\u200blamp",
        "quuuuuuxish",
        "vooooookil",
        "quuxishhhh",
        "quuxishes",
        "vookils",
        "vookil's",
        "a_vookil_lamp",
        "2vookils",
        "\u200bquuxish\u200b",
        "lamp\u200bvookil\u200blamp",
        "lamp\ue000vookil\ud800lamp",
        "灯quuxish灯",
        "qu&#117;xish",
        "quux&#x69;sh",
        "quu&shy;xish",
        "quu&amp;#120;ish",
        "&#113;&#117;&#117;&#120;&#105;&#115;&#104;",
        "quu(:1.2)xish",
        "quu(:1.2)xi[]sh",
        "qu&#117;x(:1.1)ish",
    ],
)
def test_a_disguised_term_is_matched(disguised: str) -> None:
    """Each of these passes a filter that compares strings."""
    assert is_refused(f"a blorple and a {disguised} lamp")
    assert not is_refused(f"a {disguised} lamp")


@pytest.mark.parametrize(
    "word", ["wee zibby", "Wee-Zibby", "weezibby", "wee  zibbies", "wee_zibby", "WEE\nZIBBYS"]
)
def test_terms_of_several_words_may_be_joined_or_split(word: str) -> None:
    """Plurals in -ies are matched too."""
    assert is_refused(f"a {word}", "quuxish")


@pytest.mark.parametrize(
    "harmless",
    [
        "quuxishness",
        "prequuxish",
        "requuxished",
        "vookilla",
        "vook illness",
        "quu xish",
        "quxish",
        "vokil",
        "voo kil",
        "vvookil",
        "voo,kil",
        "voo, kil",
        "quu;xish",
        "voo. kil",
        "as is quu it is xi",
        "quuxisch",
        "a b c d e f g",
        "1 2 3 4 5 6",
        "3.14159 @ 100% + $5!",
    ],
)
def test_a_word_that_contains_a_term_passes(harmless: str) -> None:
    """Names of towns and birds may contain a term."""
    assert not is_refused(f"blorple, {harmless}")


@pytest.mark.parametrize(
    "age",
    [
        "16 years old",
        "16-year-old",
        "sixteen years old",
        "a seventeen-year-old",
        "Ten Year Olds",
        "16yo",
        "16 y.o.",
        "16 y/o",
        "17 yrs old",
        "1.5 years old",
        "１６ years old",
        "16\u200b years old",
        "aged 12",
        "age: 9",
        "at the age of seven",
        "ages 5 to 25",
        "16-20 years old",
        "16 or 17 years old",
        "under 18",
        "under the age of eighteen",
        "<18",
        "six months old",
        "11yearsold",
        "16 years of age",
        "sixteen years of age",
        "17 yrs",
        "a 16-year",
        "turning 16",
        "turns sixteen",
        "her 17th birthday",
        "on their sixteenth birthday",
        "less than 18 years old",
        "less than sixteen years old",
        "17F",
        "17/m",
        "a 9th grader",
        "12-14 years old",
        "s1xteen years old",
        "dieciséis años",
        "dix-sept ans",
        "16-jährige",
        "16 anni",
        "16 anos",
        "16 jaar oud",
        "шестнадцать лет",
        "16 lat",
        "16 yaşında",
        "16 tahun",
        "16 tuổi",
        "عمرها 16",
        "16 साल",
        "她今年十六岁",
        "１６歳",
        "열여섯 살",
        "อายุ 16 ปี",
        "未满18",
    ],
)
def test_a_stated_age_under_eighteen_counts_as_a_term(age: str) -> None:
    """A term list cannot hold every way to state an age."""
    assert is_refused(f"somebody, {age}, and a quuxish lamp")


@pytest.mark.parametrize(
    "age",
    [
        "18 years old",
        "eighteen years old",
        "thirty-seven years old",
        "twenty one years old",
        "a hundred and five years old",
        "116 years old",
        "1,600 years old",
        "36yo",
        "26 y/o",
        "67 yo",
        "aged 40",
        "aged 21 to 35",
        "age of 99",
        "16 years",
        "16 steps",
        "wage 12",
        "seven lamps",
        "over 18",
        "1.16 metres",
        "17 yoghurts",
        "thirty five years of age",
        "30th birthday",
        "18F",
        "f 11, 2",
        "17mm lens",
        "under 5 minutes",
        "<1.8",
        "dix-huit ans",
        "soixante-dix-sept ans",
        "diez y ocho años",
        "treinta y cinco años",
        "einundzwanzig Jahre alt",
        "двадцать один год",
        "26岁",
        "二十六岁",
        "스물여섯 살",
        "a 4k picture, 1080p, f/1.8, 35mm",
    ],
)
def test_other_numbers_do_not_count(age: str) -> None:
    """Ages of adults, measures and years pass."""
    assert not is_refused(f"somebody, {age}, and a quuxish lamp")


def test_the_error_is_neutral_and_the_audit_is_not_in_it() -> None:
    """A precise error would help to get around the gate. The audit goes into the log only."""
    with pytest.raises(PolicyViolation) as refused:
        GATE.check(["a blorple", "QUUXISH"])
    violation = refused.value
    assert (violation.field, violation.rule, violation.value) == (None, None, None)
    assert violation.audit is not None
    assert violation.audit["category"] == "minors"
    assert len(violation.audit["text_sha256"]) == 64
    shown = JobError.of(violation).model_dump_json() + violation.message
    assert all(
        word not in shown.lower() for word in ("blorple", "quuxish", "minor", violation.audit["text_sha256"])
    )


def test_the_audit_hash_is_of_the_normalised_text() -> None:
    """The same text in another disguise has the same hash in the log."""
    hashes = set()
    for text in ("quuxish blorple", "QUUXISH blorple", "qu\u200buxish blorple", "other quuxish blorple"):
        with pytest.raises(PolicyViolation) as refused:
            GATE.check([text])
        assert refused.value.audit is not None
        hashes.add(refused.value.audit["text_sha256"])
    assert len(hashes) == 2


HARMLESS = (
    *("lamp", "hill", "kite", "river", "essex", "class", "cockpit"),
    *("4k", "1080p", "fox", "—", "snow,", "light!", "(soft:1.2)"),
)
ANY_TEXT = st.text(st.characters(exclude_categories=())) | st.text(
    st.sampled_from("quxishblorpe 01!|$@.\u200b\ud800")
)


@settings(deadline=None)
@given(st.lists(ANY_TEXT, max_size=4))
def test_arbitrary_unicode_raises_no_other_error(texts: list[str]) -> None:
    """An exception in the gate would let texts pass or block all jobs."""
    assert is_refused(*texts) in (True, False)


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=())), st.text(st.characters(exclude_categories=())))
def test_text_around_two_terms_does_not_hide_them(before: str, after: str) -> None:
    """Other fields may hold any text."""
    assert is_refused(before, "a quuxish lamp", "a blorple", after)


@settings(deadline=None)
@given(st.lists(st.sampled_from(HARMLESS)))
def test_harmless_words_in_any_order_pass(words: list[str]) -> None:
    """Even beside a term of one kind."""
    assert not is_refused(" ".join(words), "a blorple")
    assert not is_refused(" ".join(words), "quuxish")


def test_long_texts_are_checked_in_time() -> None:
    """The gate runs in the request; no text may make it slow."""
    started = time.process_time()
    for unit in ("q", "a ", "a_", "1l!|", "q.u.", "1 1 years ", "16 to 17 ", "-", "@", "quu"):
        assert not is_refused(unit * (50_000 // len(unit)), "quuxish")
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "prompt",
    [
        "qu&#117;xish",
        "quux&amp;#105;sh",
        "a &lt;hill&gt;",
        "quu(:1.2)xish",
        "a (red:1.2) [hill]",
        "quu[]xish BREAK x",
    ],
)
def test_what_the_encoders_read_is_among_the_variants(prompt: str) -> None:
    """The gate checks the text that reaches a model, not only the one that was sent."""
    words = read(prompt).folded
    assert clean_prompt(prompt).lower() in words
    read_by_sdxl = parse_prompt(prompt, weighted=True).prompt.text.lower()
    assert read_by_sdxl in {" ".join(word.split()) for word in words}


@pytest.mark.parametrize(
    "prompt",
    [
        "\uff51uuxish \uff41 hill",
        "quu\x00xish\ufeff",
        "quu\x0bxish",
        "quux\ufb01sh",
        "\uff06#113;uuxish",
    ],
)
def test_characters_that_wan_replaces_are_replaced_for_the_gate_too(prompt: str) -> None:
    """A term in characters that the cleaning of prompts turns into plain ones is found."""
    assert clean_prompt(prompt).lower() in read(prompt).folded


UNSPACED = Gate(Terms(minor=frozenset({"苹果", "小 梨"}), sexual=frozenset({"三角形", "동그라미"})))


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("一个苹果和三角形", True),
        ("苹 果 三·角·形", True),
        ("苹\u200b果，三角形", True),
        ("小梨和동그라미", True),
        ("苹果，三角。形", False),
        ("苹。果三角形", False),
        ("苹果", False),
    ],
)
def test_terms_of_scripts_without_spaces_are_found_anywhere(text: str, refused: bool) -> None:
    """There is no border of a word to look for; commas and full stops part what stands beside them."""
    if not refused:
        UNSPACED.check([text])
        return
    with pytest.raises(PolicyViolation):
        UNSPACED.check([text])
