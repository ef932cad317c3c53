"""What this machine can give."""

from __future__ import annotations

import os
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
PROCESS = Path("/proc/self")
FORGET_PEAK = "5"
"""What Linux takes for: begin anew to measure the largest resident memory."""


def available_memory() -> int:
    """Memory this process could take now, in bytes: what the system has or can reclaim, within a container's limit.

    Where the system does not say (other than Linux), half of the physical memory.
    """
    try:
        fields = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines() if ":" in line)
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return min(free, _container_room(free))


def _container_room(otherwise: int) -> int:
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return otherwise
    return otherwise if limit == "max" else max(0, int(limit) - used)


def forget_peak_memory() -> bool:
    """Begin anew to measure the largest resident memory of this process; False where the system cannot."""
    try:
        (PROCESS / "clear_refs").write_text(FORGET_PEAK)
    except OSError:
        return False
    return True


def peak_memory() -> int | None:
    """Largest resident memory of this process since it was last forgotten, in bytes; None where nobody tells."""
    try:
        fields = dict(line.split(":", 1) for line in (PROCESS / "status").read_text().splitlines() if ":" in line)
        return int(fields["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError):
        return None
