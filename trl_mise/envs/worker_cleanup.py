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
_CAN_LOOK = os.path.exists("/proc/self/environ")
_ROUNDS, _ROUND_SECONDS = 50, 0.01


def kill_group(group: int) -> None:
    """SIGKILL to every process of a group. The group outlives its leader where a grandchild does."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says the latter of zombies
        os.killpg(group, signal.SIGKILL)


def kill_marked(directory: str) -> None:
    """Kills what descends from the worker of this directory but has left its group, and waits until all are gone.

    They are found by `MARK` in `/proc`, so on Linux only; elsewhere a process that leaves the group gets away.
    """
    num_clean = 0
    for _ in range(_ROUNDS):
        marked = _marked(f"{MARK}={directory}")
        for pid in marked:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        # One that is just being exec'ed shows no environment for a moment, so one look is not enough.
        num_clean = 0 if marked else num_clean + 1
        if num_clean == 2 or not _CAN_LOOK:
            return
        time.sleep(_ROUND_SECONDS)


def _marked(mark: str) -> list[int]:
    """Other processes with this in their environment; a zombie has none any more."""
    found = []
    for name in os.listdir("/proc") if _CAN_LOOK else ():
        if not name.isdigit() or int(name) == os.getpid():
            continue
        with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as environ:
            if os.fsencode(mark) in environ.read().split(b"\0"):
                found.append(int(name))
    return found


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
