"""Putting a finished conversion on the hub: what would go there, and sending it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expertweaver.checkpoint.card import inherited_metadata
from expertweaver.checkpoint.manifest import RECORD_FOLDER
from expertweaver.checkpoint.record import check_hashes, read_record
from expertweaver.checkpoint.shards import file_sha256
from expertweaver.errors import CheckpointError, Problem, RecipeError
from expertweaver.yaml_file import read_yaml

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
CARD = "README.md"
RECORDS = ("manifest.json", "recipe.yaml", "partition.safetensors", "evaluation.json", "report.html")
"""Parts of the record that are sent; times and facts of the machine (run.json) stay at home."""

TOKEN = re.compile(r"hf_\w+")


@dataclass(frozen=True)
class Upload:
    """What goes to the hub.

    Attributes:
        folder: The converted model.
        repo_id: Where it goes, owner/name.
        private: Whether a new repository is private.
        files: Names relative to the folder, with their bytes.
        left_out: Names of files that stay at home.
        remarks: What the user should look at first.
        url: Where it is now; None for a dry run.
    """

    folder: Path
    repo_id: str
    private: bool
    files: Mapping[str, int]
    left_out: tuple[str, ...]
    remarks: tuple[str, ...]
    url: str | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {**vars(self), "folder": str(self.folder), "num_bytes": self.num_bytes}


def push(model: str | Path, repo_id: str, *, private: bool = False, yes: bool = False) -> Upload:
    """Send a converted model and its card to the hub; without `yes`, only say what would be sent.

    A dry run makes every check that needs no network: the conversion is finished, and every file but the card is as it
    was verified.

    Args:
        model: A folder that `convert` wrote.
        repo_id: Where to send it, owner/name; it is created if it is not there.
        private: Create a private repository.
        yes: Send.

    Raises:
        RecipeError: A repository id that is none.
        CheckpointError: The folder is no finished conversion, a file differs from its recorded hash, an existing
            repository is public where a private one was asked for, or the hub refuses.
    """
    folder = Path(model)
    _check_request(folder, repo_id)
    manifest = read_record(folder)
    recorded: dict[str, str] = manifest.get("files_sha256") or {}
    weights = {name: digest for name, digest in recorded.items() if name != CARD}
    check_hashes(folder, weights, folder / RECORD_FOLDER / "manifest.json")
    files = _files(folder, list(weights))
    others = [path for path in folder.rglob("*") if path.is_file()]
    upload = Upload(
        folder=folder,
        repo_id=repo_id,
        private=private,
        files=files,
        left_out=tuple(sorted({str(path.relative_to(folder)) for path in others} - set(files))),
        remarks=tuple(_remarks(folder, recorded.get(CARD))),
    )
    return _send(upload) if yes else upload


def _check_request(folder: Path, repo_id: str) -> None:
    if REPO_ID.fullmatch(repo_id) is None:
        fix = "Name your account or organisation and the model."
        raise RecipeError(Problem("REPO_ID", "a hub id like owner/name", f"'{repo_id}'", fix))
    if not folder.is_dir():
        fix = "Give a folder that `expertweaver convert` wrote."
        raise CheckpointError(Problem(str(folder), "a local model folder", "nothing of this kind", fix))


def _files(folder: Path, recorded: list[str]) -> dict[str, int]:
    """What is sent: every file with a recorded hash, the card as it is now, and the record."""
    records = [f"{RECORD_FOLDER}/{name}" for name in RECORDS if (folder / RECORD_FOLDER / name).is_file()]
    if not (folder / CARD).is_file():
        fix = "Convert the model again, or restore its card."
        raise CheckpointError(Problem(str(folder), f"a model card ({CARD})", "none", fix))
    return {name: (folder / name).stat().st_size for name in sorted({CARD, *recorded, *records})}


def _remarks(folder: Path, card_sha256: str | None) -> list[str]:
    """An edited card, a card without a licence, and paths of this machine that the recipe would make public."""
    edited = file_sha256(folder / CARD) != card_sha256
    remarks = ["the card was edited since the conversion and is sent as it is now"] if edited else []
    if paths := sorted(set(_paths(read_yaml(folder / RECORD_FOLDER / "recipe.yaml")))):
        remarks.append(f"recipe.yaml and manifest.json name paths of this machine: {', '.join(paths)}")
    if "license" not in inherited_metadata(folder):
        remarks.append("the card names no licence; add the source model's before others use this")
    return remarks


def _paths(value: Any) -> list[str]:
    """Texts anywhere in a recipe that are absolute paths or begin at home or above."""
    if isinstance(value, dict):
        return [path for inner in value.values() for path in _paths(inner)]
    if isinstance(value, list):
        return [path for inner in value for path in _paths(inner)]
    return [value] if isinstance(value, str) and value.startswith(("/", "~", "..")) else []


def _send(upload: Upload) -> Upload:
    import huggingface_hub
    from huggingface_hub import errors

    api = huggingface_hub.HfApi()
    try:
        api.create_repo(upload.repo_id, private=upload.private, exist_ok=True)
        _check_visibility(api, upload)
        commit = api.upload_folder(
            repo_id=upload.repo_id,
            folder_path=upload.folder,
            allow_patterns=list(upload.files),
            commit_message="Add a model converted by ExpertWeaver",
        )
    except (errors.HTTPError, errors.HFValidationError, OSError) as error:  # pyright: ignore[reportPrivateImportUsage]
        if isinstance(error, CheckpointError):
            raise
        fix = "Check the id, your rights to write there (hf auth login) and the network."
        found = TOKEN.sub("hf_...", f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}")
        raise CheckpointError(Problem(upload.repo_id, "a hub repository that can be written", found, fix)) from error
    return Upload(**{**vars(upload), "url": str(commit.repo_url)})


def _check_visibility(api: Any, upload: Upload) -> None:
    """An existing repository keeps its visibility; what was meant to be private must not become public."""
    if upload.private and not api.repo_info(upload.repo_id).private:
        fix = "Make the repository private in its settings, or choose another id."
        raise CheckpointError(Problem(upload.repo_id, "a private repository", "one that exists and is public", fix))
