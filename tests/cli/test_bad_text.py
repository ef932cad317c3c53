"""Calibration and evaluation text that cannot be used: refused in four parts, with nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from support.commands import Bench, Case, Complaint, check_refused, run
from support.families import LETTERS
from support.models import edit_json

GOOD = json.dumps({"text": LETTERS})
MESSAGES = json.dumps({"messages": [{"role": "user", "content": LETTERS}]})
NEED = "a .txt, .jsonl or .parquet file, a folder of such files, or a hub data set id"
Spoil = Callable[[Bench], Any]


def lines(*rows: str) -> Spoil:
    """Write the calibration text, a row a line."""
    return lambda bench: bench.text.write_text("\n".join(rows), encoding="utf-8")


def data(content: bytes) -> Spoil:
    return lambda bench: bench.text.write_bytes(content)


def file(name: str, content: str) -> Spoil:
    """Write another file beside the calibration text."""
    return lambda bench: (bench.folder / name).write_text(content, encoding="utf-8")


def with_template(template: str, *rows: str) -> Spoil:
    """Give the tokenizer a chat template, and the text these rows."""

    def spoil(bench: Bench) -> None:
        edit_json(bench.source / "tokenizer_config.json", chat_template=template)
        lines(*rows)(bench)

    return spoil


def bad_text(name: str, words: Complaint, spoil: Spoil, *arguments: str, planned: bool = False) -> Case:
    return Case(name, words, spoil, arguments, error="CalibrationError", planned=planned)


def bad_path(name: str, words: Complaint, path: str, spoil: Spoil = lambda bench: None, *, planned: bool) -> Case:
    return bad_text(name, words, spoil, "--calibration", path, planned=planned)


def bad_row(name: str, row: str, expected: str, found: str, fix: str) -> Case:
    """A second line that is wrong; the message must name it."""
    return bad_text(name, Complaint("text.jsonl:2", expected, found, fix), lines(GOOD, row))


ROWS = (
    bad_row("broken JSON", '{"text": ', "a JSON object", "invalid JSON", "one JSON object a line"),
    bad_row("a row that is a list", "[1]", "a JSON object", "list", "one JSON object a line"),
    bad_row("JSON too deep", "[" * 100_000, "a JSON object", "recursion", "one JSON object a line"),
    bad_row("a number too long", '{"n": ' + "1" * 5000 + "}", "a JSON object", "4300 digits", "one JSON object"),
    bad_row("a row without text", '{"body": "x"}', "a string 'text', or 'messages'", "the keys body", "to 'text'"),
    bad_row("a row without anything", "{}", "a string 'text'", "the keys (none)", "to 'text'"),
    bad_row("text that is a number", '{"text": 3}', "a string 'text'", "int", "to 'text'"),
    bad_row("text that is blank", '{"text": " "}', "some text", "an empty document", "Remove the row"),
    bad_row("half a character", r'{"text": "a\ud800"}', "whole characters", "at character 1", "Remove it"),
    bad_row("messages without a template", MESSAGES, "a chat template", "none", "whose tokenizer has a chat template"),
)

FILES = (
    bad_text("empty file", Complaint("text.jsonl", "at least one document", "none", "Give some text"), lines("")),
    bad_text(
        "shorter than one sequence",
        Complaint("calibration text", "one sequence of 16 tokens", "10 tokens in all", "calibration.sequence_length"),
        lines(json.dumps({"text": LETTERS[:10]})),
    ),
    bad_text(
        "a single sample",
        Complaint("calibration text", "at least 2 samples", "1", "Give more documents"),
        lines(json.dumps({"text": LETTERS[:16]})),
    ),
    bad_text(
        "not UTF-8",
        Complaint("text.jsonl", "UTF-8 text", "byte 0xe9 at offset 13", "Save the file as UTF-8"),
        data('{"text": "caf\xe9"}'.encode("latin-1")),
    ),
    bad_text(
        "messages that are a string",
        Complaint("text.jsonl:1", "that the chat template accepts", "failed", "Give a list of"),
        with_template("{% for m in messages %}{{ m.content }}{% endfor %}", '{"messages": "hello"}'),
    ),
    bad_text(
        "a template that is broken",
        Complaint("text.jsonl:1", "that the chat template accepts", "unexpected 'end of template'", "Give a list"),
        with_template("{% for", MESSAGES),
    ),
)

PATHS = (
    bad_path("missing path", Complaint("none.jsonl", NEED, "nothing", "Check"), "BENCH/none.jsonl", planned=True),
    bad_path("missing relative path", Complaint("./none", NEED, "nothing", "Check"), "./none", planned=True),
    bad_path("missing path above", Complaint("../none", NEED, "nothing", "Check"), "../none", planned=True),
    bad_path("empty path", Complaint("an empty path", NEED, "nothing", "Check the path"), "", planned=True),
    bad_path("the text itself", Complaint("abab", NEED, "nothing", "Check the path"), "ab" * 3000, planned=True),
    bad_path(
        "unknown file type",
        Complaint("table.csv", NEED, "a '.csv' file", "Convert it first"),
        "BENCH/table.csv",
        file("table.csv", "text\nhello"),
        planned=False,
    ),
    bad_path("folder without text", Complaint("dense", NEED, "a folder", "Check"), "BENCH/dense", planned=False),
    bad_path(
        "garbage instead of parquet",
        Complaint("table.parquet", "a parquet file", "footer", "Write the file again"),
        "BENCH/table.parquet",
        file("table.parquet", "zzz"),
        planned=False,
    ),
    bad_path(
        "hub data set out of reach",
        Complaint("owner/name", "a hub data set with a train split", "Error", "Check the id and the network"),
        "owner/name",
        planned=False,
    ),
)

EVALUATION = (
    bad_text(
        "missing evaluation text",
        Complaint("none.txt", NEED, "nothing", "Check the path"),
        lambda bench: None,
        "--set",
        "evaluate.text=[BENCH/none.txt]",
        planned=True,
    ),
    bad_text(
        "broken evaluation text",
        Complaint("held.jsonl:1", "a JSON object", "invalid JSON", "one JSON object a line"),
        file("held.jsonl", "{"),
        "--set",
        "evaluate.text=[BENCH/held.jsonl]",
    ),
    bad_text(
        "evaluation text of one token",
        Complaint("text", "at least 2 tokens in every document", "1 shorter", "Remove them"),
        file("held.txt", "a"),
        "--set",
        "evaluate.text=[BENCH/held.txt]",
    ),
)

CASES = (*ROWS, *FILES, *PATHS, *EVALUATION)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_text_that_cannot_be_used_is_refused(case: Case, bench: Bench) -> None:
    check_refused(case, bench)


def test_evaluation_text_is_read_before_anything_is_computed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def compute(*arguments: Any, **options: Any) -> None:
        raise AssertionError("hours of work were begun")

    monkeypatch.setattr("expertweaver.conversion.profile_layers", compute)
    file("held.jsonl", "{")(bench)
    result = bench.convert("--set", f"evaluate.text=[{bench.folder / 'held.jsonl'}]")
    assert result.exit_code == 3
    assert "held.jsonl:1" in result.stderr


def test_messages_are_calibration_text_where_the_tokenizer_has_a_template(bench: Bench) -> None:
    with_template("{% for m in messages %}{{ m.content }}{% endfor %}", *[MESSAGES] * 3)(bench)
    assert bench.convert().exit_code == 0


def test_evaluate_refuses_the_same_text(bench: Bench) -> None:
    lines(GOOD, "{")(bench)
    result = run("evaluate", bench.source, "--text", bench.text)
    assert result.exit_code == 3
    assert "text.jsonl:2" in result.stderr
    assert "Traceback" not in result.output
