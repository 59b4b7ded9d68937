"""`WorkerProcess`: one interpreter for environments, from its start to the last of its traces."""

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping
from typing import IO, Any

from .worker_wire import HungUp, send

_MAX_LOG_BYTES = 2**20
_POLL_SECONDS = 0.5
_START_SECONDS = 60.0


def child_environment(**variables: str) -> dict[str, str]:
    """Environment variables of an interpreter that finds the modules that this one finds."""
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    return {**os.environ, "PYTHONPATH": paths, **variables}


class WorkerProcess:
    """An interpreter of its own: process group, working directory, a socket, and a file that takes what it prints."""

    def __init__(self, greeting: Mapping[str, Any]) -> None:
        directory = tempfile.mkdtemp(prefix="trl-mise-env-")
        self._log = tempfile.TemporaryFile("ab+", buffering=0)  # noqa: SIM115 (open as long as the process)
        self.sock, theirs = socket.socketpair()
        lifeline, ours = os.pipe()
        command = f"from trl_mise.envs.worker_main import serve; serve({theirs.fileno()}, {lifeline})"
        try:
            popen = subprocess.Popen(
                [sys.executable, "-c", command],
                cwd=directory,
                env=child_environment(TMPDIR=directory),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(theirs.fileno(), lifeline),
                start_new_session=True,
            )
        finally:
            theirs.close()
            os.close(lifeline)
        self._popen = popen
        self.kill = weakref.finalize(self, _end, popen, self.sock, ours, self._log, directory)
        with contextlib.suppress(HungUp):  # the first call will find out
            send(self.sock, greeting, _START_SECONDS)

    def wait_readable(self, deadline: float) -> None:
        """Until something arrives; meanwhile the log is kept from growing.

        Raises:
            TimeoutError: nothing came by the deadline.
        """
        while True:
            left = deadline - time.monotonic()
            if select.select([self.sock], [], [], max(0.0, min(left, _POLL_SECONDS)))[0]:
                return
            if os.fstat(self._log.fileno()).st_size > _MAX_LOG_BYTES:
                os.ftruncate(self._log.fileno(), 0)
            if left <= 0:
                raise TimeoutError

    def exit_status(self) -> str | None:
        """How the process ended; None if it still runs."""
        try:
            code = self._popen.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return None
        return f"it was killed by {signal.Signals(-code).name}" if code < 0 else f"it exited with status {code}"

    def log_tail(self, size: int = 4000) -> str:
        descriptor = self._log.fileno()
        end = os.fstat(descriptor).st_size
        return os.pread(descriptor, size, max(0, end - size)).decode("utf-8", "replace")


def _end(popen: "subprocess.Popen[bytes]", sock: socket.socket, lifeline: int, log: IO[bytes], directory: str) -> None:
    """Kills the whole process group, reaps it, and removes what it leaves behind."""
    with contextlib.suppress(ProcessLookupError):
        # The group outlives its leader where a grandchild does.
        os.killpg(popen.pid, signal.SIGKILL)
    popen.wait()
    sock.close()
    os.close(lifeline)
    log.close()
    shutil.rmtree(directory, ignore_errors=True)
