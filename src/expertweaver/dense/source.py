"""Where a model comes from: a folder, or a hub id that is downloaded first."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from pathlib import Path

from expertweaver.errors import CheckpointError, Problem, shortened

HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "README.md", "LICENSE*", "NOTICE*"]
UNWANTED = ["consolidated*", "original/*"]
"""Second copies of the weights in other layouts."""


@dataclass(frozen=True)
class ModelFolder:
    """A folder with a model's files; `revision` is the commit for a hub model, None for a local folder."""

    name: str
    path: Path
    revision: str | None


def find_model(name: str) -> ModelFolder:
    """Find a local folder, or download a hub model (`owner/name`, `owner/name@revision`) into the hub's cache.

    A folder that exists always wins over a hub id of the same spelling.

    Raises:
        CheckpointError: Neither a folder nor a hub id, or the download failed.
    """
    match = HUB_ID.fullmatch(name)
    expected = "a model folder, or a hub id like owner/name or owner/name@revision"
    try:
        path = Path(name).expanduser()
        is_folder, is_there = path.is_dir(), path.exists()
    except (OSError, RuntimeError) as error:  # too long for a path; the home of nobody
        fix = "Check the spelling of the path."
        raise CheckpointError(Problem(shortened(name), expected, shortened(str(error)), fix)) from error
    if is_folder:
        check_entries(path)
        return ModelFolder(name, path, None)
    if is_there:
        raise CheckpointError(Problem(name, expected, "a file", "Give the folder that holds config.json."))
    if match is None or name.startswith((".", "/", "~")):
        raise CheckpointError(Problem(name, expected, "nothing at this path", "Check the spelling of the path."))
    return _download(name, match["id"], match["revision"])


def is_inside(folder: Path, path: Path) -> bool:
    """Whether what a path leads to lies in the model folder, or in the hub's cache of this model, whose links do."""
    root = folder.resolve()
    cache = root.parent.parent if root.parent.name == "snapshots" else root
    return path.resolve().is_relative_to(cache)


def check_entries(folder: Path) -> None:
    """Refuse links of model files that leave the folder, and entries that are neither files nor folders.

    A link could bring a file of the user's into the converted model (a LICENSE that is a private key), and a pipe
    would be waited for without end.

    Raises:
        CheckpointError: All such entries, or a folder that cannot be read.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        fix = "Check its permissions."
        raise CheckpointError(Problem(str(folder), "a readable model folder", str(error), fix)) from error
    problems = []
    for entry in entries:
        is_wanted = any(fnmatch.fnmatch(entry.name, pattern) for pattern in (*WANTED, "chat_template*"))
        if not is_wanted or not entry.exists():
            continue
        if not is_inside(folder, entry):
            fix = "Put the file itself there."
            found = f"a link to {entry.resolve()}"
            problems.append(Problem(str(entry), "a file inside the model folder", found, fix))
        elif not (entry.is_file() or entry.is_dir()):
            problems.append(Problem(str(entry), "a regular file", "a pipe, socket or device", "Put a file there."))
    if problems:
        raise CheckpointError(*problems)


def _download(name: str, repo_id: str, revision: str | None) -> ModelFolder:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from huggingface_hub.utils import HFValidationError

    try:
        folder = huggingface_hub.snapshot_download(
            repo_id, revision=revision, allow_patterns=WANTED, ignore_patterns=UNWANTED
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        fix = "Check the id, your access rights (hf auth login) and the network, or give a local folder."
        found = f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"
        raise CheckpointError(Problem(name, "a local folder or a reachable hub model", found, fix)) from error
    return ModelFolder(name, Path(folder), Path(folder).name)
