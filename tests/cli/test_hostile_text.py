"""Text, chat templates and names that somebody made to break or to mislead: refused in four parts, nothing touched."""

from __future__ import annotations

import json
import os
import tracemalloc

import pytest
from support.commands import Bench, Case, Complaint, check_complaint, check_refused, hashes, refusal, run
from support.spoils import Spoil, bench_file, both, tokenizer_config

LETTERS = "abcdefghijklmnopqrstuvwxyz" * 3
GOOD = json.dumps({"text": LETTERS}) + "\n"
MESSAGES = json.dumps({"messages": [{"role": "user", "content": LETTERS}]}) + "\n"
UTF8 = "Save the file as UTF-8"
A_LINE = "Write one JSON object a line"
SHORT = "Give a short name"


def bad_text(name: str, spoil: Spoil, words: Complaint, *arguments: str, planned: bool = False) -> Case:
    return Case(name, words, spoil, arguments, error="CalibrationError", planned=planned)


def bad_rows(name: str, content: str | bytes, expected: str, found: str, fix: str) -> Case:
    return bad_text(name, bench_file("text.jsonl", content), Complaint("text.jsonl", expected, found, fix))


def bad_file(file: str, name: str, content: str | bytes, expected: str, found: str, fix: str) -> Case:
    words = Complaint(file, expected, found, fix)
    return bad_text(name, bench_file(file, content), words, "--calibration", f"BENCH/{file}")


def bad_domain(name: str, domain: object, found: str) -> Case:
    row = json.dumps({"text": LETTERS, "domain": domain}) + "\n"
    return bad_rows(f"domain {name}", GOOD + row, "a 'domain' of at most 200 printable", found, SHORT)


def sparse(file: str, size: int) -> Spoil:
    """A file of gigabytes that takes no room: zeros without a line's end."""
    return both(bench_file(file, b""), lambda bench: os.truncate(bench.folder / file, size))


ENCODINGS = (
    bad_rows("UTF-16", (GOOD * 9).encode("utf-16"), "UTF-8 text", "byte 0xff at offset 0", UTF8),
    bad_rows("UTF-16 without a mark", (GOOD * 9).encode("utf-16-le"), "a JSON object", "invalid JSON", A_LINE),
    bad_rows("UTF-32", (GOOD * 9).encode("utf-32"), "UTF-8 text", "byte 0xff", UTF8),
    bad_rows("Latin-1 in the third line", (GOOD * 2).encode() + b'{"text": "\xe9"}', "UTF-8", "at offset 192", UTF8),
    bad_rows("half a character at the end", b'{"text": "\xc3', "UTF-8 text", "byte 0xc3", UTF8),
    bad_rows("an encoded surrogate", b'{"text": "\xed\xa0\x80"}', "UTF-8 text", "byte 0xed", UTF8),
    bad_rows("gzip", b"\x1f\x8b\x08" + bytes(range(128, 256)), "UTF-8 text", "byte 0x8b", UTF8),
    bad_rows("null bytes only", bytes(1000), "a JSON object", "invalid JSON", A_LINE),
    bad_rows("a null in the text", GOOD + '{"text": "a\\u0000b"}\n', "without null characters", "at 1", "UTF-16"),
    bad_file("a.txt", "text of null bytes", bytes(1000), "without null characters", "at 0", "UTF-16"),
    bad_file("a.txt", "text in UTF-16", "hello".encode("utf-16-le"), "without null characters", "at 1", "UTF-16"),
    bad_file("a.txt", "text in Latin-1", b"caf\xe9", "UTF-8 text", "byte 0xe9 at offset 3", UTF8),
    bad_file("a.txt", "an empty text", b"", "some text", "an empty document", "Remove the row"),
    bad_file("a.txt", "text of blanks", b" \n\t ", "some text", "an empty document", "Remove the row"),
    bad_text(
        "a line of three gigabytes",
        sparse("text.jsonl", 3 << 30),
        Complaint("text.jsonl", "documents of at most 64 MiB", "one that goes on", "Divide the text"),
    ),
    bad_text(
        "a text of three gigabytes",
        sparse("a.txt", 3 << 30),
        Complaint("a.txt", "documents of at most 64 MiB", "one that goes on", "Divide the text"),
        "--calibration",
        "BENCH/a.txt",
    ),
)

ROWS = (
    bad_rows("a page of HTML", "<html>", "a JSON object", "invalid JSON", A_LINE),
    bad_rows("a truth value", "true\n", "a JSON object", "bool", A_LINE),
    bad_rows("a string", '"abc"\n', "a JSON object", "str", A_LINE),
    bad_rows("text not a number", '{"text": NaN}\n', "a string 'text'", "float", "Rename"),
    bad_rows("text null", '{"text": null}\n', "a string 'text'", "the keys text", "Rename"),
    bad_rows("text a list", '{"text": ["a"]}\n', "a string 'text'", "list", "Rename"),
    bad_rows("too deep", '{"text":' * 50_000, "a JSON object", "recursion", A_LINE),
    bad_rows("two objects a line", GOOD.strip() * 2, "a JSON object", "Extra data", A_LINE),
    bad_domain("a map", {"a": None}, "dict"),
    bad_domain("a list", ["a"], "list"),
    bad_domain("too long", "d" * 100_000, "'ddd"),
    bad_domain("half a character", "\ud800", "\\ud800"),
    bad_domain("that steers a terminal", "\x1b[2J", "\\x1b"),
    bad_domain("of several lines", "a\nb", "a\\nb"),
    bad_domain("that runs backwards", "\u202eabc", "\\u202e"),
)

KIND = "a .txt, .jsonl or .parquet file"
FILES = (
    bad_file("a.json", "another ending", GOOD, KIND, "a '.json' file", "Convert it first"),
    bad_file("a.pkl", "a pickle", b"\x80\x04.", KIND, "a '.pkl' file", "Convert it first"),
    bad_file("a.py", "a program", b"print(1)", KIND, "a '.py' file", "Convert it first"),
    bad_file("a.parquet", "half a parquet file", b"PAR1" + bytes(50), "a parquet file", "footer", "Write the file"),
)


def bad_path(name: str) -> Case:
    """A spelling that is neither a path nor a hub data set."""
    words = Complaint(name[:20], KIND, "nothing at this path", "Check the path")
    return bad_text(f"path {name[:20]!r}", lambda bench: None, words, "--calibration", name, planned=True)


SPELLINGS = (
    "owner/na me", "owner/..", "a/b/c", "owner/name;rm -rf", "https://evil.example/x", "file:///etc/passwd", "a\0b",
    "owner/\u202ename", "~nosuchuser/x", "owner/name@", "owner/name@main\n", "-x/y", "\u00e9/\u00e9", "x" * 5000,
)  # fmt: skip
PATHS = tuple(bad_path(name) for name in SPELLINGS)


def bad_template(name: str, template: str, found: str) -> Case:
    spoil = both(tokenizer_config(chat_template=template), bench_file("text.jsonl", MESSAGES * 3))
    words = Complaint("text.jsonl:1", "messages that the chat template accepts", found, "Give a list of")
    return bad_text(f"template: {name}", spoil, words)


TEMPLATES = (
    bad_template("classes", "{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    bad_template("globals", "{{ cycler.__init__.__globals__.os.system('exit 1') }}", "unsafe"),
    bad_template("an attribute by name", "{{ (messages|attr('__class__')).mro() }}", "unsafe"),
    bad_template("a format string", "{{ '{0.__class__.__mro__}'.format(messages) }}", "unsafe"),
    bad_template("an import", "{% import 'os' as os %}{{ os }}", "no loader"),
    bad_template("a file", "{% include '/etc/passwd' %}", "no loader"),
    bad_template("an endless range", "{% for i in range(1000000000) %}x{% endfor %}", "Range too big"),
    bad_template("changing its input", "{% set x = messages.append(1) %}", "unsafe"),
    bad_template("an undefined name", "{{ a.b.c }}", "undefined"),
    bad_template("a refusal", "{{ raise_exception('no') }}", "no"),
    bad_template("a number too long", "{{ 10**100000 }}", "4300 digits"),
    bad_text(
        "template: nothing of the messages",
        both(tokenizer_config(chat_template=" "), bench_file("text.jsonl", MESSAGES * 3)),
        Complaint("text.jsonl:1", "some text", "an empty document", "Remove the row"),
    ),
)

CASES = (*ENCODINGS, *ROWS, *FILES, *PATHS, *TEMPLATES)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_text_made_to_break_or_mislead_is_refused(case: Case, bench: Bench) -> None:
    check_refused(case, bench)


def test_a_line_of_gigabytes_never_comes_into_memory(bench: Bench) -> None:
    from expertweaver.calibration.documents import MAX_DOCUMENT_BYTES, read_documents
    from expertweaver.errors import CalibrationError

    sparse("text.jsonl", 3 << 30)(bench)
    tracemalloc.start()
    with pytest.raises(CalibrationError):
        read_documents([str(bench.text)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * MAX_DOCUMENT_BYTES


def test_the_mark_at_the_beginning_and_foreign_line_ends_change_nothing(bench: Bench) -> None:
    from expertweaver.calibration.documents import read_documents

    plain = read_documents([str(bench.text)])
    content = bench.text.read_bytes()
    bench.text.write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
    assert read_documents([str(bench.text)]) == plain


HUB = "a model folder, or a hub id like owner/name"
MODELS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(SPELLINGS, (HUB, "nothing at this path")),
    "~nosuchuser/x": (HUB, "home directory"),
    "x" * 5000: (HUB, "too long"),
    "owner/name@../../x": ("a local folder or a reachable hub model", "Error"),
    "owner/" + "x" * 300: ("a local folder or a reachable hub model", "Error"),
    "/dev/null": (HUB, "a file"),
    "/etc/passwd": (HUB, "a file"),
    "  ": (HUB, "nothing at this path"),
    "/": ("a model's config.json", "No such file"),
}
del MODELS["-x/y"]  # an option, to the command line


@pytest.mark.parametrize("name", MODELS, ids=[ascii(name)[:30] for name in MODELS])
def test_a_model_of_an_odd_name_is_refused_without_a_look_at_the_network(name: str, bench: Bench) -> None:
    before = hashes(bench.folder)
    arguments = bench.arguments("--json")
    arguments[1] = name
    error, [problem] = refusal(run(*arguments), 3)
    assert error == "CheckpointError"
    check_complaint(problem, Complaint("", *MODELS[name], ""))
    assert hashes(bench.folder) == before
    assert bench.ours == []
