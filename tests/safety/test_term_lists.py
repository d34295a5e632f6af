"""The shipped term lists, and those that other packages add."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ourvidz.errors import PolicyViolation, SettingsError
from ourvidz.safety.gate import Gate
from ourvidz.safety.term_lists import GROUP, Terms, load_terms


@pytest.fixture(scope="module")
def shipped() -> Gate:
    """A gate with the shipped terms."""
    return Gate(load_terms())


def test_the_shipped_lists_are_installed() -> None:
    """A gate without terms would let everything pass."""
    terms = load_terms()
    assert len(terms.minor) >= 30
    assert len(terms.sexual) >= 40
    assert not any("#" in term for term in terms.minor | terms.sexual)


def test_every_shipped_term_is_matched(shipped: Gate) -> None:
    """The pattern of a term must match the term itself."""
    terms = load_terms()
    for term in terms.sexual:
        with pytest.raises(PolicyViolation):
            shipped.check([term, "child"])
    for term in terms.minor:
        with pytest.raises(PolicyViolation):
            shipped.check([term.upper(), "nsfw"])


@pytest.mark.parametrize(
    "sentence",
    [
        "a child flying a kite on a beach",
        "two kids building a sandcastle",
        "a little girl in a red raincoat feeds ducks",
        "a teenager playing the guitar on a porch",
        "a toddler and a golden retriever in the garden",
        "a class of schoolchildren visiting a museum, group portrait",
        "a baby sleeping in a cradle, soft light",
        "a boy, 10 years old, blows out the candles of a cake",
        "Essex landscape with children on a footbridge",
        "children in the cockpit of an airliner",
        "a young girl reads Middlesex aloud to her classmates",
        "an infant elephant beside its mother in Sussex",
        "the kid from Scunthorpe practises the bassoon, analysis of his assets",
        "teens at a therapist's office, watercolour",
        "a fennec fox with kits, detailed fur, 4k, 85mm, f/1.8",
        "a minor chord, sheet music, a sextant and a sextet",
        "youngsters on skis, sextuplets in matching anoraks",
        "a kindergarten in Penistone, morning fog",
        "baby goats on a grape trellis, drapes and scrape marks",
        "preteen astronaut on a distant planet, nebula, (sharp focus:1.2)",
        "an adolescent grizzly bear catching salmon",
        "a paper boat drifts along a stream",
        "children asked: what is 3 + 4? 1 2 3 4 5!",
        "a toddler's drawing of a house, a sun, a cat",
        "Ein Kind mit einem Drachen, Дети играют в снегу, 子供が凧を揚げる",
        "a Sexagesima procession with children",
    ],
)
def test_harmless_sentences_pass_the_shipped_lists(shipped: Gate, sentence: str) -> None:
    """Children, animals, landscapes, and words that contain a term are common in prompts."""
    shipped.check([sentence, "blurry, low quality, extra fingers, watermark, text"])


CAPTIONS = (
    "masterpiece,best quality,ultra-detailed,8k uhd,sharp focus,(soft light:1.2),[grain]",
    "a red (circle:1.3), blue background, BREAK small (star:0.8) in the corner AND a ring",
    "portrait of an elderly fisherman, age 72, weathered skin, 85mm f/1.8, ISO 100",
    "a man, thirty-five years old, on the 30th birthday of his sister, candid",
    "city street at night, 10 pm, neon signs, 24mm, under 5 seconds of exposure",
    "turns of a mountain road, 3 lanes, aerial view, 4K, 16:9",
    "a 1967 roadster, one of 18 built, parked under an oak",
    "Kite. Drachen. Cometa. A page of a picture dictionary, one word a line",
    "she reads. Then shadows, hills and grass in the evening sun; as is, no filter",
    "I am at it: to do or no, as we go by, is up to us",
    "Paysage d'hiver à dix-huit heures, vingt-deux maisons, peinture à l'huile",
    "Ein Haus mit sieben Fenstern, einundzwanzig Bäume, 50 Jahre Stadtgeschichte",
    "вот дом, а тот сад — на холме, сорок два окна",
    "夕暮れの港、漁船が三隻、遠くに灯台",
    "二十六座山峰，云海，清晨，远景",
    "e.g. a lamp, i.e. a light; U.S.A., c. 1920, b/w, A.D. 1200",
    "C++ code on a screen, x = 10**3, f(11, 2), v1.8, <b>bold</b> &amp; plain",
    "two cats sit on a mat, one of 12 in a series, No. 9 of 17",
    "grade of the slope 12 %, age of the rock 300 million years",
)
"""Ordinary captions with weights, lists without spaces, numbers, several languages."""


@pytest.mark.parametrize("caption", CAPTIONS)
def test_ordinary_captions_pass_beside_a_term_of_either_kind(shipped: Gate, caption: str) -> None:
    """They contain no term and no age, also where words and sentences follow each other closely."""
    shipped.check([caption, "nsfw"])
    shipped.check([caption, "a child"])


@pytest.mark.parametrize(
    "text",
    ["a nude, oil on canvas, museum", "nsfw", "an erotic novel for adults, 35 years old", "topless bus tour"],
)
def test_texts_about_adults_pass_the_shipped_lists(shipped: Gate, text: str) -> None:
    """The gate has one rule; other content policies are the caller's."""
    shipped.check([text])


def install_package(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, **lists: str) -> None:
    """Install a package with term lists, as its wheel would."""
    package = folder / name
    package.mkdir()
    (package / "__init__.py").write_text("")
    for file, text in lists.items():
        (package / f"{file}.txt").write_text(text, encoding="utf-8")
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {name}\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, name, raising=False)


def test_another_package_adds_terms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators extend the lists without changing this package."""
    before = load_terms()
    install_package(
        tmp_path,
        monkeypatch,
        "zib_terms",
        minor_zib="zibling # theirs\n\n# a comment\n",
        sexual="vookish\nVookil\n",
    )
    after = load_terms()
    assert after.minor == before.minor | {"zibling"}
    assert after.sexual == before.sexual | {"vookish", "Vookil"}
    with pytest.raises(PolicyViolation):
        Gate(after).check(["a zibling", "v o o k i l"])


@pytest.mark.parametrize("lists", [{}, {"terms": "zibling"}])
def test_a_package_without_valid_lists_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lists: dict[str, str]
) -> None:
    """A gate without some of its terms would look like a complete one."""
    install_package(tmp_path, monkeypatch, "bad_terms", **lists)
    with pytest.raises(SettingsError):
        load_terms()


def test_a_package_that_cannot_be_imported_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the package."""
    install_package(tmp_path, monkeypatch, "broken_terms", minor="zibling")
    (tmp_path / "broken_terms" / "__init__.py").write_text("raise RuntimeError('no')\n")
    with pytest.raises(SettingsError, match="broken_terms"):
        load_terms()


@pytest.mark.parametrize(("minor", "sexual"), [((), ("x",)), (("x",), ())])
def test_a_gate_needs_terms_of_both_kinds(minor: tuple[str, ...], sexual: tuple[str, ...]) -> None:
    """Without one kind no text would be refused."""
    with pytest.raises(SettingsError):
        Terms(minor=frozenset(minor), sexual=frozenset(sexual))


@pytest.mark.parametrize("term", ["x", "!", " ", "7"])
def test_a_term_of_one_letter_is_an_error(term: str) -> None:
    """Its pattern would match everywhere."""
    with pytest.raises(SettingsError):
        Gate(Terms(minor=frozenset({term}), sexual=frozenset({"quuxish"})))
