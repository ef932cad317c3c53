"""What makes two runs the same run: the source's weights and the packages that compute.

Threads, processors and processes are not part of it: they change roundings only, and a run may be continued elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from expertweaver.dense.model import DenseModel
from expertweaver.registry import PACKAGE_FOLDER


def source_identity(dense: DenseModel) -> dict[str, Any]:
    """Fingerprints of a model: its headers and configuration, and size and time of every weight file.

    Weights that were written anew are others, even of the same shapes. Hashing all weights would take minutes for a
    large model; a file changed in place, with its time set back, is left to the verification, which compares bits.
    """
    files = sorted({info.file for info in dense.reader.tensors.values()})
    return {
        "source": dense.reader.fingerprint,
        "source_config": hashlib.sha256(json.dumps(dict(dense.config), sort_keys=True).encode()).hexdigest(),
        "source_files": {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files},
    }


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide what is computed."""
    import torch
    import transformers

    from expertweaver import __version__

    return {"expertweaver": __version__, "torch": torch.__version__, "transformers": transformers.__version__}


def code_fingerprint() -> str:
    """SHA-256 over the package's own code: its version number does not tell a changed working copy."""
    digest = hashlib.sha256()
    for file in sorted(file for suffix in ("*.py", "*.yaml") for file in PACKAGE_FOLDER.rglob(suffix)):
        digest.update(f"{file.relative_to(PACKAGE_FOLDER)}\n".encode() + file.read_bytes())
    return digest.hexdigest()
