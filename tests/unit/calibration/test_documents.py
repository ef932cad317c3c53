"""Text in: every kind of file, folders, chat messages and data sets of the hub become documents with a domain."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from expertweaver.calibration.documents import Document, check_paths, read_documents
from expertweaver.errors import CalibrationError

TURNS = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "there"}]


def write(file: Path, *rows: Any) -> str:
    """Write rows as JSON lines, or as a parquet table."""
    if file.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file)
    else:
        file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(file)


def render(turns: Sequence[dict[str, Any]]) -> str:
    return " ".join(f"<{turn['role']}>{turn['content']}" for turn in turns)


def problem_of(*paths: str, **options: Any) -> tuple[str, str]:
    """Place and finding of the one problem of some paths."""
    with pytest.raises(CalibrationError) as raised:
        read_documents(paths, **options)
    [problem] = raised.value.problems
    return problem.where, problem.found


def test_a_text_file_is_one_document_named_after_it(tmp_path: Path) -> None:
    file = tmp_path / "novel.txt"
    file.write_text("Line one.\n\nLine two é.\n", encoding="utf-8")
    assert read_documents([str(file)]) == [Document("Line one.\n\nLine two é.\n", "novel")]


def test_a_line_of_json_is_a_document(tmp_path: Path) -> None:
    file = write(tmp_path / "mixed.jsonl", {"text": "a", "domain": "code"}, {"text": "b"}, {"text": "c", "domain": ""})
    assert read_documents([file]) == [Document("a", "code"), Document("b", "mixed"), Document("c", "mixed")]


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes('{"text": "a\u2028b"}\r\n\n{"text": "c"}\n\n'.encode())
    assert [document.text for document in read_documents([str(file)])] == ["a\u2028b", "c"]


def test_a_row_of_parquet_is_a_document(tmp_path: Path) -> None:
    file = write(tmp_path / "table.parquet", {"text": "a", "domain": "law"}, {"text": "b", "domain": None})
    assert read_documents([file]) == [Document("a", "law"), Document("b", "table")]


def test_a_folder_gives_its_files_in_order_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", {"text": "two"})
    write(tmp_path / "c.parquet", {"text": "three"})
    (tmp_path / "a.txt").write_text("one", encoding="utf-8")
    (tmp_path / "LICENSE").write_text("terms", encoding="utf-8")
    (tmp_path / "d.csv").write_text("no", encoding="utf-8")
    found = read_documents([str(tmp_path)])
    assert found == [Document("one", "a"), Document("two", "b"), Document("three", "c")]


def test_several_sources_follow_each_other(tmp_path: Path) -> None:
    first, second = write(tmp_path / "z.jsonl", {"text": "1"}), write(tmp_path / "a.jsonl", {"text": "2"})
    assert [document.text for document in read_documents([first, second])] == ["1", "2"]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_messages_are_rendered(suffix: str, tmp_path: Path) -> None:
    file = write(tmp_path / f"chat{suffix}", {"messages": TURNS})
    expected = [Document("<user>hello <assistant>there", "chat")]
    assert read_documents([file], render_messages=render) == expected


def test_text_comes_before_messages(tmp_path: Path) -> None:
    file = write(tmp_path / "both.jsonl", {"text": "plain", "messages": TURNS})
    assert read_documents([file], render_messages=render) == [Document("plain", "both")]
    empty = write(tmp_path / "null.jsonl", {"text": None, "messages": TURNS})
    assert read_documents([empty], render_messages=render)[0].text.startswith("<user>")


def test_messages_need_a_template_that_takes_them(tmp_path: Path) -> None:
    file = write(tmp_path / "chat.jsonl", {"messages": TURNS}, {"messages": [3]})
    assert problem_of(file) == (f"{file}:1", "none")
    where, found = problem_of(file, render_messages=render)
    assert where == f"{file}:2"
    assert found.startswith("the chat template failed")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str | None]]:
    """Stand in for the hub's data sets; remembers what was asked for."""
    asked: list[tuple[str, str, str | None]] = []

    def load(name: str, *, split: str, revision: str | None) -> list[dict[str, Any]]:
        asked.append((name, split, revision))
        if name == "owner/missing":
            raise FileNotFoundError("no such data set")
        return [{"text": "a", "domain": "law"}, {"text": "b"}, {"messages": TURNS}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


def test_a_data_set_of_the_hub_is_read_at_its_revision(hub: list[Any]) -> None:
    expected = [
        Document("a", "law"),
        Document("b", "owner/name"),
        Document("<user>hello <assistant>there", "owner/name"),
    ]
    assert read_documents(["owner/name"], render_messages=render) == expected
    read_documents(["owner/name@v1.0"], render_messages=render)
    assert hub == [("owner/name", "train", None), ("owner/name", "train", "v1.0")]


def test_a_row_of_the_hub_is_named_by_its_number(hub: list[Any]) -> None:
    assert problem_of("owner/name") == ("owner/name, row 2", "none")


def test_a_data_set_that_is_not_there_says_what_to_check(hub: list[Any]) -> None:
    assert problem_of("owner/missing") == ("owner/missing", "FileNotFoundError: no such data set")


def test_a_local_path_wins_over_a_hub_id(hub: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "name").mkdir()
    write(tmp_path / "owner" / "name" / "a.jsonl", {"text": "local"})
    monkeypatch.chdir(tmp_path)
    assert read_documents(["owner/name"]) == [Document("local", "a")]
    assert hub == []


@pytest.mark.parametrize(
    "name", ["none.jsonl", "folder/none.jsonl", "./none", "../none", "/none", "", "a b/c", "word", "x" * 6000, "a\0b"]
)
def test_a_path_that_is_not_there_never_asks_the_hub(
    name: str, hub: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CalibrationError, match="nothing at this path"):
        check_paths([name])
    with pytest.raises(CalibrationError, match="nothing at this path"):
        read_documents([name])
    assert hub == []


def test_an_empty_path_is_not_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "requirements.txt").write_text("numpy", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert problem_of("")[0] == "an empty path"
    assert read_documents(["."]) == [Document("numpy", "requirements")]


def test_all_missing_paths_are_named_at_once(hub: list[Any], tmp_path: Path) -> None:
    good = write(tmp_path / "a.jsonl", {"text": "a"})
    with pytest.raises(CalibrationError) as raised:
        check_paths(["one.txt", good, "owner/name", "two.txt"])
    assert [problem.where for problem in raised.value.problems] == ["one.txt", "two.txt"]
    assert hub == []


def test_without_the_extra_parquet_and_the_hub_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "datasets" else find_spec(name))
    for name in (write(tmp_path / "table.parquet", {"text": "a"}), "owner/name"):
        with pytest.raises(CalibrationError, match=r"pip install 'expertweaver\[data\]'"):
            read_documents([name])
    assert read_documents([write(tmp_path / "plain.jsonl", {"text": "a"})])


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ("{", "invalid JSON"),
        ("[" * 100_000, "invalid JSON"),
        ('{"text": "a", "n": ' + "9" * 5000 + "}", "invalid JSON"),
        ("3", "int"),
        ("{}", "the keys (none)"),
        ('{"body": "a", "title": "b"}', "the keys body, title"),
        ('{"text": ["a"]}', "list"),
        ('{"text": ""}', "an empty document"),
        (r'{"text": "abc\udc00"}', "half a surrogate pair at character 3"),
    ],
    ids=lambda value: value[:20],
)
def test_a_bad_row_is_named_by_file_and_line(row: str, found: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(f'{{"text": "good"}}\n\n{row}\n', encoding="utf-8")
    where, said = problem_of(str(file))
    assert where == f"{file}:3"
    assert said.startswith(found)


def test_bytes_that_are_not_utf8_are_named_by_their_place(tmp_path: Path) -> None:
    file = tmp_path / "latin.txt"
    file.write_bytes(b"caf\xe9")
    assert problem_of(str(file)) == (str(file), "byte 0xe9 at offset 3")


@pytest.mark.parametrize("rows", [(), ("",), ("  ",)])
def test_a_file_without_rows_is_no_text(rows: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(rows), encoding="utf-8")
    assert problem_of(str(file)) == (str(file), "none")
    assert problem_of() == ("text", "none")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 but not really PAR1")
    (tmp_path / "table.csv").write_text("text", encoding="utf-8")
    assert problem_of(str(tmp_path / "damaged.parquet"))[0] == str(tmp_path / "damaged.parquet")
    assert problem_of(str(tmp_path / "table.csv"))[1] == "a '.csv' file"
    (tmp_path / "damaged.parquet").unlink()
    assert problem_of(str(tmp_path))[0] == str(tmp_path / "folder.txt")
