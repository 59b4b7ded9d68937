"""`WorkerProcess`: one interpreter for environments, from its start to the last of its traces."""

import contextlib
import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from typing import IO, Any

from .worker_cleanup import MARK, kill_group, kill_marked, remove_directory, start_time, trim_log
from .worker_wire import HungUp, Inbox

_POLL_SECONDS = 0.2
_MESSAGE_SECONDS = 2.0
_EXIT_ROUNDS, _EXIT_SECONDS = 100, 0.01
_KILL_SECONDS = 5.0
_TAIL_BYTES = 4000
# An argument list rather than PYTHONPATH, which would also reach other interpreters that an environment starts.
_COMMAND = (
    "import sys; fds = map(int, sys.argv[1:3]); sys.path[:] = sys.argv[3:]; del sys.argv[1:]; "
    "from trl_mise.envs.worker_main import serve; serve(*fds)"
)


def child_environment(**variables: str) -> dict[str, str]:
    """Environment variables of an interpreter that finds the modules that this one finds."""
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    return {**os.environ, "PYTHONPATH": paths, **variables}


class WorkerProcess:
    """An interpreter of its own: process group, working directory, a socket, and a file that takes what it prints.

    Nothing here blocks but `receive`, and that not longer than it is told to: what does not fit into the socket now
    is sent while `receive` waits, so that two sides that both have much to say cannot wait for each other.

    Args:
        greeting (`bytes`): the first message.

    Raises:
        OSError: no process could be started; nothing is left of the attempt.
    """

    def __init__(self, greeting: bytes) -> None:
        with contextlib.ExitStack() as undo:
            directory = tempfile.mkdtemp(prefix="trl-mise-env-")
            undo.callback(remove_directory, directory)
            self._log = undo.enter_context(_open_log())
            self._sock, theirs = socket.socketpair()
            undo.callback(self._sock.close)
            with theirs:
                lifeline, self._lifeline = os.pipe()
                undo.callback(os.close, self._lifeline)
                try:
                    self._popen = _start(directory, self._log, theirs.fileno(), lifeline)
                finally:
                    os.close(lifeline)
            undo.pop_all()
        since = start_time(self._popen.pid)
        self._sock.setblocking(False)
        self._poller = select.poll()  # unlike select.select, of any descriptor
        self._inbox, self._outbox = Inbox(), bytearray()
        self._last_words: str | None = None
        # Also at exit, and when it is forgotten; what it is given must not hold the object itself.
        self._end = weakref.finalize(
            self, _end, os.getpid(), self._popen, self._sock, self._lifeline, self._log, directory, since
        )
        self.post(greeting)

    def post(self, message: bytes) -> None:
        """Sends a message as far as that goes without waiting; `receive` sends the rest."""
        self._outbox += message
        self._flush()

    @property
    def is_sending(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._outbox)

    def receive(self, deadline: float) -> list[Any]:
        """Waits for at least one message.

        Args:
            deadline (`float`): of `time.monotonic()`. What has arrived by now is returned even if it has passed, so
                nothing is late because others were waited for.

        Raises:
            TimeoutError: nothing came by the deadline.
            HungUp: the process has ended, or closed the connection.
            WireError: what it sent is no message.
        """
        # An answer may have come in time and be too long for the socket: its rest comes while it is read.
        rest_by = max(deadline, time.monotonic() + _MESSAGE_SECONDS)
        while True:
            trim_log(self._log.fileno())
            # A child that it forked may keep the connection open. Asked first: then nothing comes after the last look.
            ended = self._has_ended()
            left = (rest_by if self._inbox.is_waiting else deadline) - time.monotonic()
            messages = self._exchange(0.0 if ended else max(0.0, min(left, _POLL_SECONDS)))
            if messages:
                return messages
            if ended:
                raise HungUp("the process has ended")
            if time.monotonic() >= (rest_by if self._inbox.is_waiting else deadline):
                raise TimeoutError

    def kill(self) -> None:
        """Kills the whole process group and everything that left it, and removes what they leave behind."""
        if self._last_words is None:
            self._last_words = self._log_tail()
            self._end()

    def ask_where_it_is(self) -> None:
        """Has the process write down what it is doing; one that cannot is not waited for."""
        with contextlib.suppress(OSError):
            size = os.fstat(self._log.fileno()).st_size
            os.write(self._lifeline, b"?")
            for _ in range(25):
                time.sleep(0.02)
                if os.fstat(self._log.fileno()).st_size != size:
                    return

    def exit_status(self) -> str | None:
        """How the process ended; None if it does not, although it closed the connection."""
        for _ in range(_EXIT_ROUNDS):
            if self._has_ended():
                break
            time.sleep(_EXIT_SECONDS)
        else:
            return None
        code = self._popen.returncode
        return f"it was killed by {_signal_name(-code)}" if code < 0 else f"it exited with status {code}"

    def last_words(self) -> str:
        """The end of what the process printed."""
        return self._log_tail() if self._last_words is None else self._last_words

    def _has_ended(self) -> bool:
        if self._popen.returncode is None and self._popen.poll() is not None:
            kill_group(self._popen.pid)  # at once: now that it is reaped, its number may become another's
        return self._popen.returncode is not None

    def _log_tail(self) -> str:
        descriptor = self._log.fileno()
        end = os.fstat(descriptor).st_size
        return os.pread(descriptor, _TAIL_BYTES, max(0, end - _TAIL_BYTES)).decode("utf-8", "replace")

    def _exchange(self, seconds: float) -> list[Any]:
        """Waits until the socket can be read or, with something to send, written, and does that once."""
        self._poller.register(self._sock, select.POLLIN | (select.POLLOUT if self._outbox else 0))
        ready = self._poller.poll(seconds * 1000)
        if not ready:
            return []
        self._flush()
        if ready[0][1] & ~select.POLLOUT == 0:
            return []
        try:
            data = self._sock.recv(2**18)
        except BlockingIOError:
            return []
        except OSError as error:
            raise HungUp(str(error)) from error
        if not data:
            raise HungUp("the connection was closed")
        return self._inbox.feed(data)

    def _flush(self) -> None:
        try:
            while self._outbox:
                del self._outbox[: self._sock.send(self._outbox)]
        except BlockingIOError:
            pass
        except OSError:  # nobody reads; what was answered before is still to be had, and then `receive` finds out
            self._outbox.clear()


def _open_log() -> IO[bytes]:
    """A file without a name, to which everyone appends. Mode "a" does not do that for temporary files."""
    log = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (open as long as the process)
    fcntl.fcntl(log, fcntl.F_SETFL, fcntl.fcntl(log, fcntl.F_GETFL) | os.O_APPEND)
    return log


def _start(directory: str, log: IO[bytes], *descriptors: int) -> "subprocess.Popen[bytes]":
    paths = [os.path.abspath(path) for path in sys.path]  # the trainer's "" is not the worker's
    # The order of sets of str must be the same after a restart: an episode is made again from its seed.
    hash_seed = os.environ.get("PYTHONHASHSEED") or "0"
    return subprocess.Popen(
        [sys.executable, "-u", "-c", _COMMAND, *map(str, descriptors), *paths],
        cwd=directory,
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "TMPDIR": directory, MARK: directory},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=descriptors,
        start_new_session=True,
    )


def _end(
    owner: int,
    popen: "subprocess.Popen[bytes]",
    sock: socket.socket,
    lifeline: int,
    log: IO[bytes],
    directory: str,
    since: int,
) -> None:
    """Kills the process with all that it started, reaps it, and removes what is left."""
    if os.getpid() != owner:  # a fork of the trainer forgets what is not its own
        return
    if popen.returncode is None:
        kill_group(popen.pid)
    with contextlib.suppress(subprocess.TimeoutExpired):
        popen.wait(_KILL_SECONDS)
    kill_marked(directory, since)
    sock.close()
    os.close(lifeline)
    log.close()
    remove_directory(directory)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return f"signal {number}"
