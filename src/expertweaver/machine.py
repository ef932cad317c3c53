"""What this machine can give."""

from __future__ import annotations

import os


def available_memory() -> int:
    """Free memory now, in bytes; what the system could take back from its caches is not counted."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
