"""Text in, documents out: plain text, JSON lines, parquet, or a data set of the hub."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from expertweaver.errors import CalibrationError, Problem, shortened

RenderMessages = Callable[[list[dict[str, Any]]], str]
HUB_DATASET = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
MAX_DOCUMENT_BYTES = 64 << 20
"""More in one document is a file of another kind, or a whole corpus; a tokenizer would need many times as much."""

MAX_DOMAIN_LENGTH = 200
FILE_TYPES = (".txt", ".jsonl", ".parquet")
READABLE = "a .txt, .jsonl or .parquet file, a folder of such files, or a hub data set id like owner/name"


@dataclass(frozen=True)
class Document:
    """A piece of text that belongs together; attention never leaves it."""

    text: str
    domain: str


def read_documents(paths: Sequence[str], *, render_messages: RenderMessages | None = None) -> list[Document]:
    """Read every document of several files, folders or hub data sets, in order.

    Args:
        paths: Files (.txt, .jsonl, .parquet), folders of such files, or hub data set ids (`owner/name@revision`).
            A row has `text`, or `messages` as chat turns; `domain` is optional and defaults to the file's name.
            A .txt file is one document.
        render_messages: Turns chat messages into text (a tokenizer's chat template).

    Raises:
        CalibrationError: A path is missing, unreadable or holds no text.
    """
    documents = [document for path in paths for document in _read_source(path, render_messages)]
    if not documents:
        raise CalibrationError(Problem(", ".join(paths) or "text", "at least one document", "none", "Give some text."))
    return documents


def check_paths(paths: Sequence[str]) -> None:
    """Check that every path is there, or looks like a hub id, without reading it.

    Raises:
        CalibrationError: All paths that are neither.
    """
    problems = [
        Problem(name or "an empty path", READABLE, "nothing at this path", "Check the path.")
        for name in paths
        if not _is_there(name) and not _looks_like_hub_id(name)
    ]
    if problems:
        raise CalibrationError(*problems)


def _is_there(name: str) -> bool:
    """Whether a path exists; an empty one is no path, though pathlib reads it as the working directory."""
    try:
        return bool(name) and Path(name).exists()
    except OSError:  # too long for a path: somebody gave the text itself
        return False


def _looks_like_hub_id(name: str) -> bool:
    return HUB_DATASET.fullmatch(name) is not None and Path(name).suffix not in FILE_TYPES


def _read_source(name: str, render: RenderMessages | None) -> Iterator[Document]:
    path = Path(name)
    if not _is_there(name):
        check_paths([name])
        yield from _read_hub(name, render)
    elif path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in FILE_TYPES)
        if not files:
            raise CalibrationError(Problem(name, READABLE, "a folder without such files", "Check the path."))
        for file in files:
            yield from _read_file(file, render)
    else:
        yield from _read_file(path, render)


def _read_file(path: Path, render: RenderMessages | None) -> Iterator[Document]:
    if path.suffix == ".txt":
        yield _document({"text": _read_text(path)}, str(path), path.stem, render)
    elif path.suffix == ".jsonl":
        for number, line in enumerate(_lines(path), start=1):
            if line.strip():
                yield _document(_parse_row(line, f"{path}:{number}"), f"{path}:{number}", path.stem, render)
    elif path.suffix == ".parquet":
        for number, row in _rows_with_text(_read_parquet(path)):
            yield _document(row, f"{path}, row {number}", path.stem, render)
    else:
        raise CalibrationError(Problem(str(path), READABLE, f"a '{path.suffix}' file", "Convert it first."))


def _read_text(path: Path) -> str:
    """The whole file, with line ends as Python has them."""
    [content] = list(_pieces(path, lambda stream: stream.read(MAX_DOCUMENT_BYTES + 1), only_one=True)) or [b""]
    return _decoded(content, path, 0).replace("\r\n", "\n").replace("\r", "\n")


def _lines(path: Path) -> Iterator[str]:
    """One line after the other, so that neither a long file nor a long line is ever in memory."""
    offset = 0
    for line in _pieces(path, lambda stream: stream.readline(MAX_DOCUMENT_BYTES + 1)):
        yield _decoded(line, path, offset)
        offset += len(line)


def _pieces(path: Path, read: Callable[[BinaryIO], bytes], *, only_one: bool = False) -> Iterator[bytes]:
    try:
        with path.open("rb") as stream:
            while piece := read(stream):
                if len(piece) > MAX_DOCUMENT_BYTES:
                    found = "one that goes on after it"
                    fix = "Divide the text into documents, one JSON object a line."
                    expected = f"documents of at most {MAX_DOCUMENT_BYTES >> 20} MiB"
                    raise CalibrationError(Problem(str(path), expected, found, fix))
                yield piece
                if only_one:
                    return
    except OSError as error:
        raise CalibrationError(Problem(str(path), "a readable file", str(error), "Check its permissions.")) from error


def _decoded(content: bytes, path: Path, offset: int) -> str:
    """UTF-8 text; the mark that some editors put at the beginning of a file is left out."""
    try:
        return content.decode("utf-8-sig" if offset == 0 else "utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02x} at offset {offset + error.start}"
        raise CalibrationError(Problem(str(path), "UTF-8 text", found, "Save the file as UTF-8.")) from error


def _parse_row(line: str, where: str) -> dict[str, Any]:
    fix = "Write one JSON object a line."
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        found = f"invalid JSON ({getattr(error, 'msg', error)})"
        raise CalibrationError(Problem(where, "a JSON object", found, fix)) from error
    if not isinstance(row, dict):
        raise CalibrationError(Problem(where, "a JSON object", type(row).__name__, fix))
    return row


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    _require_data_extra(path)
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise CalibrationError(Problem(str(path), "a parquet file", str(error), "Write the file again.")) from error


def _rows_with_text(rows: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    """Rows with their numbers, without those whose text is blank: tables use them between articles."""
    for number, row in enumerate(rows):
        text = row.get("text")
        if not isinstance(text, str) or text.strip():
            yield number, row


def _read_hub(name: str, render: RenderMessages | None) -> Iterator[Document]:
    _require_data_extra(name)
    import datasets

    identifier, _, revision = name.partition("@")
    try:
        rows = datasets.load_dataset(identifier, split="train", revision=revision or None)
    except Exception as error:  # the library raises many unrelated classes; all of them mean "not available"
        fix = "Check the id and the network, or give a local file."
        found = f"{type(error).__name__}: {error}"
        raise CalibrationError(Problem(name, "a hub data set with a train split", found, fix)) from error
    for number, row in _rows_with_text(rows):
        yield _document(dict(row), f"{name}, row {number}", identifier, render)


def _document(row: dict[str, Any], where: str, default_domain: str, render: RenderMessages | None) -> Document:
    text = row.get("text")
    if text is None and "messages" in row:
        text = _render(row["messages"], where, render)
    if not isinstance(text, str):
        found = f"the keys {', '.join(map(str, row)) or '(none)'}" if text is None else type(text).__name__
        raise CalibrationError(Problem(where, "a string 'text', or 'messages'", found, "Rename the field to 'text'."))
    if not text.strip():
        raise CalibrationError(Problem(where, "some text", "an empty document", "Remove the row or fill it."))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        found = f"half a surrogate pair at character {error.start}"
        raise CalibrationError(Problem(where, "text of whole characters", found, "Remove it.")) from error
    if "\0" in text:
        found = f"a null character at {text.index(chr(0))}"
        fix = "Save the file as UTF-8; null characters are a sign of UTF-16 or of no text at all."
        raise CalibrationError(Problem(where, "text without null characters", found, fix))
    return Document(text, _domain(row.get("domain"), where) or default_domain)


def _domain(value: Any, where: str) -> str:
    """A domain's name: it stands in tables and reports, so it is short and can be printed."""
    name = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if name is None:
        return ""
    if not isinstance(name, str) or len(name) > MAX_DOMAIN_LENGTH or not name.isprintable():
        expected = f"a 'domain' of at most {MAX_DOMAIN_LENGTH} printable characters"
        found = ascii(name[:40]) if isinstance(name, str) else type(name).__name__
        raise CalibrationError(Problem(where, expected, found, "Give a short name, or leave it out."))
    return name


def _render(messages: Any, where: str, render: RenderMessages | None) -> str:
    if render is None:
        fix = "Use a model whose tokenizer has a chat template, or give 'text'."
        raise CalibrationError(Problem(where, "a chat template to render 'messages'", "none", fix))
    try:
        return render(messages)
    except Exception as error:  # a template is a program of the model's author and may raise anything
        found = f"the chat template failed: {shortened(str(error))}"
        fix = "Give a list of {'role', 'content'} turns."
        raise CalibrationError(Problem(where, "messages that the chat template accepts", found, fix)) from error


def _require_data_extra(name: str | Path) -> None:
    if importlib.util.find_spec("datasets") is None:
        fix = "Run: pip install 'expertweaver[data]'."
        raise CalibrationError(Problem(str(name), "the optional package 'datasets' to read it", "none", fix))
