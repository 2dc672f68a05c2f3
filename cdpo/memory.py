"""Running out of memory: how it is told from other errors, on a GPU and on a CPU, and what may be done about it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from cdpo.errors import OutOfMemory

#: what allocators say: torch's on a GPU and on a CPU, CUDA's libraries, the system, C++
SAID = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "_alloc_failed",
    "std::bad_alloc",
)
ADVICE = (
    "What helps: fewer tokens (`max_length`, `max_new_tokens`); an adapter in place of all weights (`lora: true`); "
    "`dtype: bf16`; the weights cut into parts (`accelerate_config` in devices.yaml); on a CPU fewer steps at once "
    "(`cpu_workers`); a card with more memory"
)


def ran_out(error: BaseException) -> bool:
    """Whether `error` says that there was no memory left."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError | OSError) and any(said in str(error).lower() for said in SAID)


def machine_memory() -> int:
    """Bytes of this machine's main memory, or of what a container may use of it."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        return min(whole, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return whole


@contextlib.contextmanager
def recognised(rows: int | None = None) -> Iterator[None]:
    """While entered, whatever says that there was no memory left is raised as OutOfMemory, with `rows`."""
    try:
        yield
    except OutOfMemory:
        raise
    except Exception as error:
        if not ran_out(error):
            raise
        raise OutOfMemory(rows, _first_line(error)) from error


@contextlib.contextmanager
def at_once(rows: int | None) -> Iterator[None]:
    """While entered, `rows` rows go through a model at once: where memory does not do, half of them may.

    None: they all must, and so must what is entered inside.
    """
    try:
        with recognised(rows):
            yield
    except OutOfMemory as error:
        if rows is None and error.rows is not None:
            raise OutOfMemory(None, error.said) from error
        raise


def _first_line(error: BaseException) -> str:
    """What the allocator said, without the advice of its own that follows."""
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
