"""What is left of a worker process, found and removed. Used on both sides: whoever survives cleans up."""

import contextlib
import os
import shutil
import signal
import time

MARK = "TRL_MISE_WORKER"
"""Environment variable that a worker's descendants inherit; its value is the worker's private directory."""

MAX_LOG_BYTES = 2**20
_KEPT_LOG_BYTES = 2**16
_ROUNDS, _ROUND_SECONDS = 50, 0.01


def kill_group(group: int) -> None:
    """SIGKILL to every process of a group. The group outlives its leader where a grandchild does."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says the latter of zombies
        os.killpg(group, signal.SIGKILL)


def start_time(pid: int) -> int:
    """When a process was forked, in ticks since the machine started; 0 where there is no `/proc`."""
    try:
        return _stat(pid)[0]
    except OSError:
        return 0


def kill_marked(directory: str, since: int) -> None:
    """Kills what descends from the worker of this directory but has left its group, and waits until all are gone.

    They are found by `MARK` in `/proc`, so on Linux only; elsewhere a process that leaves the group gets away.

    Args:
        directory (`str`): the worker's.
        since (`int`): `start_time` of the worker.
    """
    if not os.path.exists("/proc/self/environ"):
        return
    for _ in range(_ROUNDS):
        marked, hidden = _look_for(f"{MARK}={directory}", since)
        for pid in marked:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if not marked and not hidden:
            return
        time.sleep(_ROUND_SECONDS)


def _look_for(mark: str, since: int) -> tuple[list[int], list[int]]:
    """Other processes with this in their environment, and younger ones that show none yet.

    A process that is being exec'ed shows no environment for milliseconds; neither does a zombie or a thread of the
    kernel, but those have no memory either.
    """
    marked, hidden = [], []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            with open(f"/proc/{pid}/environ", "rb") as file:
                environ = file.read()
            if os.fsencode(mark) in environ.split(b"\0"):
                marked.append(pid)
            elif not environ:
                started, memory = _stat(pid)
                if started >= since and memory:
                    hidden.append(pid)
    return marked, hidden


def _stat(pid: int) -> tuple[int, int]:
    """(start time, bytes of memory) of a process."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()  # the name before it may hold anything
    return int(fields[19]), int(fields[20])


def remove_directory(directory: str) -> None:
    """Removes a worker's directory; something that was just killed may still have been writing there."""
    for _ in range(_ROUNDS):
        shutil.rmtree(directory, ignore_errors=True)
        if not os.path.lexists(directory):
            return
        time.sleep(_ROUND_SECONDS)


def trim_log(descriptor: int) -> None:
    """Cuts a log that has grown too long down to its end; it must have been opened for appending."""
    with contextlib.suppress(OSError):
        size = os.fstat(descriptor).st_size
        if size > MAX_LOG_BYTES:
            tail = os.pread(descriptor, _KEPT_LOG_BYTES, size - _KEPT_LOG_BYTES)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, tail)
