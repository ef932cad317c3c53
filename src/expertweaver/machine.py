"""What this machine can give."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from expertweaver.errors import Problem, RecipeError

if TYPE_CHECKING:
    import torch

CPU_INFO = Path("/proc/cpuinfo")
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
PROCESS = Path("/proc/self")
FORGET_PEAK = "5"
"""What Linux takes for: begin anew to measure the largest resident memory."""

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""What glibc's mallopt takes for: the free memory to keep, and the size from which a block is given back at once."""

LARGE_BLOCK = 16 << 20
"""Bytes from which a block is given back at once; half of it may stay at the heap's end."""

TELLING_FEATURES = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
    "asimd", "i8mm", "bf16", "sve",
)  # fmt: skip
"""Instruction sets that matrix kernels are written for, as Linux spells them."""


def cpu_name() -> str:
    """The processor; where /proc/cpuinfo does not name it (other systems, some ARM kernels) what Python knows."""
    return _cpu_field("model name") or platform.processor() or platform.machine()


def cpu_features() -> list[str]:
    """Those of the processor's instruction sets that decide the speed of matrix products; empty where nobody tells."""
    flags = (_cpu_field("flags") or _cpu_field("Features")).split()
    return [name for name in TELLING_FEATURES if name in flags]


def _cpu_field(name: str) -> str:
    lines = CPU_INFO.read_text(encoding="utf-8").splitlines() if CPU_INFO.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name), "")


def load_average() -> float | None:
    """Processes that wanted to run in the last minute; None where the system does not say."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def available_memory(device: torch.device | None = None) -> int:
    """Memory this process could take now, in bytes: what the system has or can reclaim, within a container's limit.

    Where the system does not say (other than Linux), half of the physical memory.

    Args:
        device: A GPU whose free memory is asked for instead.
    """
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
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


def compute_device(name: str) -> torch.device:
    """The device of a name: `cpu`, `cuda`, or `cuda:1`; of several processes on a machine each takes a GPU of its own.

    Raises:
        RecipeError: A name that is neither, or a GPU that torch does not see.
    """
    import torch

    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not (kind == "cuda" and number.isdecimal())):
        raise RecipeError(Problem("--device", "cpu, cuda or cuda:NUMBER", f"'{name}'", "Choose one of them."))
    if kind == "cpu":
        return torch.device("cpu")
    index = int(number or os.environ.get("LOCAL_RANK", "0"))
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= count:
        found = f"{count} GPUs that torch {torch.__version__} can use"
        fix = "Leave --device out to compute on the CPU, or install a torch with CUDA for this machine's driver."
        raise RecipeError(Problem(f"--device {name}", f"a GPU of number {index}", found, fix))
    return torch.device("cuda", index)


def return_freed_memory() -> None:
    """Let the C library give freed memory back to the system; between large steps it may keep hundreds of megabytes.

    Where the C library is not glibc there is nothing to do.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def hold_little_freed_memory() -> None:
    """Let the C library keep no more than a few megabytes of what this process frees, from now on.

    By default glibc comes to keep up to 64 MB at the end of its heap, and to put blocks of up to 32 MB into the heap,
    where they leave gaps; how many is chance. With another C library there is nothing to do.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, LARGE_BLOCK)
        mallopt(TRIM_THRESHOLD, LARGE_BLOCK // 2)


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
