"""Where a model comes from: a folder, or a hub id that is downloaded first."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from expertweaver.errors import CheckpointError, Problem

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
    path = Path(name).expanduser()
    if path.is_dir():
        return ModelFolder(name, path, None)
    match = HUB_ID.fullmatch(name)
    expected = "a model folder, or a hub id like owner/name or owner/name@revision"
    if path.exists():
        raise CheckpointError(Problem(name, expected, "a file", "Give the folder that holds config.json."))
    if match is None or name.startswith((".", "/", "~")):
        raise CheckpointError(Problem(name, expected, "nothing at this path", "Check the spelling of the path."))
    return _download(name, match["id"], match["revision"])


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
