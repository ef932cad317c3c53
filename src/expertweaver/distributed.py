"""Several processes that share one conversion, as `torchrun` starts them: who they are, and how they talk.

Every process runs the same code on rows of its own and meets the others in the methods of a `Group`. A failure of one
is told to all at the next meeting, so that all of them end, and with the same message.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from expertweaver.errors import ExpertWeaverError, Problem, RecipeError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

PATIENCE = timedelta(hours=6)
"""How long a process waits for another that lives but does not answer: it may be designing a wide layer, or verifying.

One that died is noticed at once, by its closed connection.
"""

FAREWELL = timedelta(seconds=10)
"""How long a process that ends with an error waits for the others to end too; launchers kill those that are late."""


class ProcessLostError(RuntimeError):
    """Another process of the group died, or failed for a reason that only its own output tells."""


class _ElsewhereError(Exception):
    """The cause of an error that another process met: everyone knows of it already."""


@dataclass(frozen=True)
class Group:
    """The processes that share a piece of work; one alone unless somebody says otherwise.

    All methods but `part` are meetings: every process calls the same ones in the same order.

    Attributes:
        rank: Number of this process.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that decides and writes."""
        return self.rank == 0

    def part(self, count: int) -> range:
        """This process' share of `count` things in order: contiguous, and nobody has more than one more than others."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def sum(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its sum over all processes; the order of adding depends on their number only."""
        if self.size > 1:
            self._agree()
            held = tensor.cpu().contiguous()
            with _noticing_the_dead() as dist:
                dist.all_reduce(held)
            tensor.copy_(held)
        return tensor

    def rows(self, tensor: Tensor) -> Tensor:
        """All processes' rows, [n, ...] each, in order of rank: at the leader. Elsewhere no rows."""
        if self.size == 1:
            return tensor
        self._agree()
        counts = self._exchanged(len(tensor))
        if not self.leads:
            if len(tensor):
                with _noticing_the_dead() as dist:
                    dist.send(tensor.cpu().contiguous(), dst=0)
            return tensor[:0]
        parts = [tensor, *(tensor.new_empty((count, *tensor.shape[1:]), device="cpu") for count in counts[1:])]
        with _noticing_the_dead() as dist:
            for rank, part in enumerate(parts[1:], start=1):
                if len(part):
                    dist.recv(part, src=rank)
        import torch

        return torch.cat([part.to(tensor.device) for part in parts])

    def lead(self, make: Callable[[], T]) -> T:
        """What the leader makes, given to everyone."""
        if self.size == 1:
            return make()
        made = [make() if self.leads else None]
        self._agree()
        with _noticing_the_dead() as dist:
            dist.broadcast_object_list(made, src=0)
        return made[0]  # type: ignore[return-value]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Tell everyone of an error inside, and hear of theirs: all processes leave with one, or none does."""
        try:
            yield
        except ProcessLostError:
            raise
        except Exception as error:
            if not _is_known(error):
                self._agree(error)
            raise
        self._agree()

    def all(self, number: int) -> list[int]:
        """Everyone's number, in order of rank."""
        if self.size == 1:
            return [number]
        self._agree()
        return self._exchanged(number)

    def _exchanged(self, number: int) -> list[int]:
        import torch

        numbers = torch.zeros(self.size, dtype=torch.int64)
        numbers[self.rank] = number
        with _noticing_the_dead() as dist:
            dist.all_reduce(numbers)
        return numbers.tolist()

    def _agree(self, error: Exception | None = None) -> None:
        """Go on if nobody failed; else raise what the first that failed tells, unless this process failed itself."""
        if self.size == 1 or not any(self._exchanged(int(error is not None))):
            return
        told: list[Exception | None] = [None] * self.size
        with _noticing_the_dead() as dist:
            dist.all_gather_object(told, _portable(error, self.rank))
        if error is None:
            rank, first = next((rank, found) for rank, found in enumerate(told) if found is not None)
            raise first from _ElsewhereError(f"process {rank} of {self.size}")


ALONE = Group()
"""The group of one process."""


@contextlib.contextmanager
def joined() -> Iterator[Group]:
    """The group of the processes that a launcher started (`torchrun`, `accelerate launch`); `ALONE` without one.

    Raises:
        RecipeError: The launcher's environment is incomplete.
    """
    if num_processes() == 1:
        yield ALONE
        return
    import torch.distributed as dist

    try:
        dist.init_process_group("gloo", timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:
        fix = "Start it with torchrun, or unset WORLD_SIZE and RANK."
        expected = "what a launcher sets for each of several processes"
        raise RecipeError(Problem("the environment", expected, str(error), fix)) from error
    try:
        yield Group(dist.get_rank(), dist.get_world_size())
    except Exception:
        with contextlib.suppress(RuntimeError):
            dist.monitored_barrier(timeout=FAREWELL)
        raise
    finally:
        dist.destroy_process_group()


def num_processes() -> int:
    """How many processes the launcher started; 1 without a launcher."""
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ and "WORLD_SIZE" in os.environ else 1


def is_first_process() -> bool:
    """Whether this is the process that may print, known before any group is formed."""
    return num_processes() == 1 or os.environ["RANK"] == "0"


def require_one_process(verb: str) -> None:
    """Refuse a verb that cannot be shared.

    Raises:
        RecipeError: A launcher started several processes.
    """
    if num_processes() > 1:
        fix = "Start it without a launcher; `convert` is the verb that several processes share."
        raise RecipeError(Problem(f"expertweaver {verb}", "one process", f"{num_processes()}", fix))


@contextlib.contextmanager
def _noticing_the_dead() -> Iterator[Any]:
    import torch.distributed as dist

    try:
        yield dist
    except RuntimeError as error:
        message = "another process of this conversion ended; its own output says why, and a repeated command continues"
        raise ProcessLostError(message) from error


def _portable(error: Exception | None, rank: int) -> Exception | None:
    """An error in a form that another process can raise; a bug stays where it is, and its traceback too."""
    if error is None or isinstance(error, ExpertWeaverError):
        return error
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror)
    return ProcessLostError(f"process {rank} failed: {type(error).__name__}: {error}")


def _is_known(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, _ElsewhereError):
            return True
        error = error.__cause__
    return False
