"""How much the gate reads, in characters and not in seconds: its work is linear in what it is sent."""

from __future__ import annotations

import pytest

from ourvidz.jobs.job import ChatJob, Message
from ourvidz.safety import gate as gate_module
from ourvidz.safety import normalise
from ourvidz.safety.gate import Gate, Terms
from ourvidz.safety.normalise import MAX_EXPANSION, fold
from ourvidz.safety.readings import Readings, read

TERMS = Terms(minor=frozenset({"blorple", "wee zibby"}), sexual=frozenset({"quuxish", "vookil lamp"}))


class CountingReader:
    """Counts the texts that are read, and their characters."""

    def __init__(self) -> None:
        self.texts = self.characters = 0

    def __call__(self, text: str) -> Readings:
        self.texts += 1
        self.characters += len(text)
        return read(text)


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> CountingReader:
    reader = CountingReader()
    monkeypatch.setattr(gate_module, "read", reader)
    return reader


def chat(*contents: str) -> ChatJob:
    messages = tuple(Message(role="user", content=content) for content in contents)
    return ChatJob(id="a", type="chat_conversation", messages=messages, max_tokens=9, expected_time=1, seed=1)


@pytest.mark.parametrize("char", ["\ufdfa", "\ufdfb", "\u3316", "\u337f", "\ufb03", "\u01c6", "가", "ﬁ", "é"])
def test_no_character_becomes_many(char: str) -> None:
    """One stands for a phrase of eighteen letters: 10,000 of them were 180,000."""
    assert len(fold(char * 10_000)) <= MAX_EXPANSION * 10_000


def test_a_character_is_folded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it folds to is looked up from then on."""
    folded: list[int] = []
    table = normalise._FoldTable()
    fold_one = table._fold
    monkeypatch.setattr(table, "_fold", lambda code: folded.append(code) or fold_one(code))
    ("ǻöж\u0301\u0316 " * 5000).translate(table)
    assert sorted(folded) == sorted(map(ord, "ǻöж\u0301\u0316 "))


@pytest.mark.parametrize(
    "unit",
    ["a lamp ", "(a:1.1)", "&amp;#97; ", "<b>", "q\u200b", "1l!|", "BREAK ", "\ufdfa", "{[(|", "16 to 17 "],
)
def test_a_text_has_few_readings(unit: str) -> None:
    """Whatever it is made of: as it is, decoded, and without its syntax, each in at most two folds."""
    text = (unit * 10_000)[:10_000]
    readings = read(text)
    assert len(readings.folded) <= 8
    assert sum(map(len, readings.folded)) <= 8 * MAX_EXPANSION * len(text)
    assert len(readings.spelled) <= 4 * sum(map(len, readings.folded))


@pytest.mark.parametrize("unit", ["q qq ", "q ", "qq\u200bq\u200b", "q.q,qq "])
def test_a_letter_that_is_repeated_in_pieces_is_cut(unit: str) -> None:
    """Patterns of terms with that letter would begin at each of them and run to the end."""
    assert len(read(unit * 2000).spelled) < 100


def test_a_conversation_is_read_once(reader: CountingReader) -> None:
    """Its messages are not read one by one and again as the text that a model reads; of their borders only a
    few words are."""
    contents = ["A lighthouse on a cliff at dusk, with a boat that drifts past and gulls above it " * 4] * 250
    Gate(TERMS).check_job(chat(*contents))
    assert reader.characters < 1.35 * sum(map(len, contents))


def test_an_answer_is_read_and_not_its_conversation_again(reader: CountingReader) -> None:
    """The parts of an answer are judged several times a second."""
    gate, job, answer = Gate(TERMS), chat(*["A boat drifts by."] * 500), "It is a red boat. " * 20
    gate.check_job(job)
    before = reader.characters
    for end in range(0, len(answer), 18):
        gate.check_job(job, answer[:end])
    parts = sum(range(0, len(answer), 18))
    assert reader.characters - before < 2 * parts + 100 * len(answer) / 18


def test_verdicts_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker runs for weeks; and no text is kept, only its hash."""
    monkeypatch.setattr(gate_module, "KEPT_VERDICTS", 10)
    gate = Gate(TERMS)
    for at in range(100):
        gate.check([f"a lamp {at}"])
    assert len(gate._verdicts) <= 10
    assert all(len(digest) == 32 for _, digest in gate._verdicts)
