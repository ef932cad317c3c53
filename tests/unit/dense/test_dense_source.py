"""Where a model comes from: folders, hub ids with a revision, and names that are neither."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from support.models import tiny_llama

from expertweaver.dense.model import open_dense
from expertweaver.dense.source import UNWANTED, WANTED, ModelFolder, find_model
from expertweaver.errors import CheckpointError

COMMIT = "0123456789abcdef"


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stand in for the hub; remembers what was asked for."""
    asked: list[dict[str, Any]] = []
    snapshot = tmp_path / "models--owner--name" / "snapshots" / COMMIT
    tiny_llama(snapshot)

    def download(repo_id: str, **options: Any) -> str:
        asked.append({"repo_id": repo_id, **options})
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


@pytest.mark.parametrize(
    ("name", "repo_id", "revision"),
    [
        ("owner/name", "owner/name", None),
        ("Owner-1/Na.me_2", "Owner-1/Na.me_2", None),
        ("owner/name@main", "owner/name", "main"),
        ("owner/name@v1.0-rc", "owner/name", "v1.0-rc"),
        ("owner/name@refs/pr/3", "owner/name", "refs/pr/3"),
    ],
)
def test_a_hub_id_is_downloaded_at_its_revision(
    name: str, repo_id: str, revision: str | None, downloads: list[dict[str, Any]]
) -> None:
    found = find_model(name)
    patterns = {"allow_patterns": WANTED, "ignore_patterns": UNWANTED}
    assert downloads == [{"repo_id": repo_id, "revision": revision, **patterns}]
    assert (found.name, found.revision, found.path.name) == (name, COMMIT, COMMIT)


def test_a_downloaded_model_is_opened(downloads: list[dict[str, Any]]) -> None:
    dense = open_dense("owner/name@main")
    assert dense.folder.revision == COMMIT
    assert dense.family.name == "llama"


def test_weights_that_can_run_code_are_not_downloaded() -> None:
    assert not [pattern for pattern in WANTED if pattern.endswith((".bin", ".pt", ".pth", ".py", ".pkl"))]


@pytest.mark.parametrize(
    "name",
    ["name", "/owner/name", "./owner/name", "../name", "~/name", "owner/name/more", "owner/", "@main", "a b/c",
     "owner/name@", "owner/.hidden", "https://hub/owner/name"],
)  # fmt: skip
def test_a_name_that_is_neither_folder_nor_id_is_refused(
    name: str, downloads: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match="nothing at this path"):
        find_model(name)
    assert downloads == []


def test_a_folder_wins_over_an_id_of_the_same_spelling(
    downloads: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_model("owner/name") == ModelFolder("owner/name", Path("owner/name"), None)
    assert downloads == []


def test_the_home_folder_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert find_model("~/model").path == tmp_path / "model"


def test_a_file_is_no_model(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="found a file"):
        find_model(str(file))


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("no network\nand more"),
        HFValidationError("bad id"),
        ConnectionError(),
        OSError("disk"),
    ],
)
def test_a_failed_download_says_what_to_check(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError) as raised:
        find_model("owner/name")
    [problem] = raised.value.problems
    assert problem.where == "owner/name"
    assert problem.found.startswith(type(error).__name__)
    assert "\n" not in problem.found
    assert "or give a local folder" in problem.fix


@pytest.mark.parametrize(
    ("name", "fetched"),
    [
        ("config.json", True),
        ("model-00001-of-00002.safetensors", True),
        ("README.md", True),
        ("LICENSE", True),
        ("consolidated.safetensors", False),
        ("original/consolidated.00.pth", False),
        ("original/params.json", False),
        ("pytorch_model.bin", False),
        ("modeling_custom.py", False),
    ],
)
def test_what_is_fetched_from_the_hub(name: str, fetched: bool) -> None:
    """The card is needed for the licence that is inherited; code and second copies of the weights are not."""
    from huggingface_hub.utils import filter_repo_objects

    kept = list(filter_repo_objects([name], allow_patterns=WANTED, ignore_patterns=UNWANTED))
    assert kept == ([name] if fetched else [])
