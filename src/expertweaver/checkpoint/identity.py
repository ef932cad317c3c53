"""What makes two runs the same run: the source's weights and the packages that compute.

Threads, processors and processes are not part of it: they change roundings only, and a run may be continued elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from expertweaver.dense.model import DenseModel


def source_identity(dense: DenseModel) -> dict[str, Any]:
    """Fingerprints of a model; weights that were written anew are others, even of the same shapes."""
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
