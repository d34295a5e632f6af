"""Checks of every page: relative links, JSON blocks, and the size of images."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part == "node_modules" for part in path.relative_to(ROOT).parts)
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
README_LINES = 80
IMAGE_BYTES = 200_000

OpenPage = Callable[[str], Any]


def anchor(heading: str) -> str:
    """Return the anchor that GitHub generates for a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("name", PAGES)
def test_every_relative_link_has_a_target(page: OpenPage, name: str) -> None:
    """Files and anchors of links exist."""
    broken = []
    for target in LINK.findall(page(name).prose):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        anchors = map(anchor, page(str(file.resolve().relative_to(ROOT))).headings()) if fragment else ()
        if not file.exists() or (fragment and fragment not in anchors):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("name", PAGES)
def test_every_json_block_is_valid(page: OpenPage, name: str) -> None:
    """Readers copy the examples."""
    for block in page(name).blocks("json"):
        json.loads(block.text)


def test_the_front_page_is_short_and_shows_an_image(page: OpenPage) -> None:
    """The README has at most 80 lines."""
    front = page("README.md")
    assert len(front.text.splitlines()) < README_LINES
    assert "](docs/images/demo-grid.png)" in front.text.split("##")[0]
    assert "What is stored where" in front.headings()


def test_committed_images_are_small() -> None:
    """Every clone of the repository downloads them."""
    for path in (ROOT / "docs/images").iterdir():
        assert path.stat().st_size <= IMAGE_BYTES
        Image.open(path).verify()
