"""Whether what is published works: contents of wheel and source distribution, then the wheel in a clean environment.

    python tests/distribution/check_dist.py dist                  # what `make dist` built
    python tests/distribution/check_dist.py dist --venv .venv-dist # keeps the environment, and uses it again
    python tests/distribution/check_dist.py dist --release        # also what must be done before a release

The environment gets torch and the wheel, nothing optional; everything in it runs outside the source tree.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from contents import (
    differences,
    project,
    read_sdist,
    read_wheel,
    release_problems,
    sdist_problems,
    version_problems,
    wheel_problems,
)

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dist", type=Path, help="the folder with one wheel and one source distribution")
    parser.add_argument("--torch", default="torch", help="requirement of torch, e.g. torch==2.13.0")
    parser.add_argument("--venv", type=Path, help="where to make the environment; a temporary folder by default")
    parser.add_argument("--release", action="store_true", help="check what must be done before a release, too")
    args = parser.parse_args()
    checker = Checker()
    wheel, sdist = found(args.dist)
    checker.problems("versions", version_problems(ROOT))
    checker.problems("contents of the wheel", wheel_problems(read_wheel(wheel), ROOT))
    checker.problems("contents of the source distribution", sdist_problems(read_sdist(sdist), ROOT))
    with tempfile.TemporaryDirectory() as folder:
        rebuilt = build_wheel(sdist, Path(folder))
        checker.problems("the wheel from the source distribution", differences(read_wheel(wheel), read_wheel(rebuilt)))
    if args.release:
        checker.problems("ready for a release", release_problems(ROOT))
    checker.end()
    with tempfile.TemporaryDirectory() as folder:
        clean = Clean(args.venv or Path(folder) / "venv", Path(folder))
        checker.step("a clean environment", lambda: clean.install(args.torch, wheel))
        checker.step("requirements are met", lambda: clean.python("-m", "pip", "check"))
        checker.step("every module without extras", lambda: clean.python(str(HERE / "import_all.py")))
        checker.step("a training of its own", lambda: clean.python(str(HERE / "train_small.py")))
        for arguments in commands():
            checker.step(" ".join(arguments), lambda arguments=arguments: clean.run(*arguments))
        checker.step("a typed script, mypy --strict", lambda: clean.types(HERE / "typed_script.py"))
        checker.end()


class Checker:
    """Prints a line for each check, and remembers what failed."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def problems(self, name: str, problems: list[str]) -> None:
        print(f"{'FAILED' if problems else 'ok    '} {name}", flush=True)
        for problem in problems:
            print(f"         {problem}")
        self.failed += [name] if problems else []

    def step(self, name: str, action) -> None:  # type: ignore[no-untyped-def]
        start = time.perf_counter()
        done = action()
        text = f"{name} ({time.perf_counter() - start:.0f} s)"
        self.problems(text, [] if done.returncode == 0 else (done.stdout + done.stderr)[-3000:].splitlines())

    def end(self) -> None:
        if self.failed:
            sys.exit(f"{len(self.failed)} failed: {', '.join(self.failed)}")


class Clean:
    """A virtual environment with the wheel and what it requires.

    Args:
        folder (`Path`): of the environment; made if it is not there.
        work (`Path`): an empty folder, where everything runs.
    """

    def __init__(self, folder: Path, work: Path) -> None:
        self.folder, self.work = folder.absolute(), work
        self.bin = self.folder / ("Scripts" if os.name == "nt" else "bin")

    def install(self, torch: str, wheel: Path) -> subprocess.CompletedProcess[str]:
        if not self.bin.exists():
            subprocess.run([sys.executable, "-m", "venv", str(self.folder)], check=True)
        # torch first: what it is asked for by name comes without CUDA where the index has such a wheel.
        done = self.python("-m", "pip", "install", "--quiet", "--no-compile", torch)
        if done.returncode:
            return done
        self.python("-m", "pip", "uninstall", "--quiet", "--yes", "trl-mise")
        return self.python("-m", "pip", "install", "--quiet", "--no-compile", torch, str(wheel.absolute()))

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("python", *arguments)

    def run(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        return subprocess.run(
            [str(self.bin / command), *arguments],
            **{"cwd": self.work, "env": environment, "stdin": subprocess.DEVNULL},
            **{"capture_output": True, "text": True},
        )

    def types(self, script: Path) -> subprocess.CompletedProcess[str]:
        """mypy, which is not in there, reads the packages of the environment."""
        python = str(self.bin / "python")
        command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--python-executable", python]
        return subprocess.run([*command, str(script)], cwd=self.work, capture_output=True, text=True)


def found(dist: Path) -> tuple[Path, Path]:
    """The only wheel and the only source distribution of the folder."""
    said = project(ROOT)
    name = f"{said['name'].replace('-', '_')}-{said['version']}"
    files = sorted(path.name for path in dist.iterdir())
    wanted = [f"{name}-py3-none-any.whl", f"{name}.tar.gz"]
    if files != wanted:
        sys.exit(f"{dist} holds {files}, not {wanted}; run `make dist` again")
    return dist / wanted[0], dist / wanted[1]


def build_wheel(source: Path, folder: Path) -> Path:
    """Builds a wheel from a source distribution."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def commands() -> list[tuple[str, ...]]:
    """Entry points, called as a user would."""
    found = [("python", "-m", "trl_mise.envs.webshop", "--help")]
    for script in project(ROOT).get("scripts", {}):
        found += [(script, "--help"), (script, "env"), (script, "envs"), (script, "check-env", "--env", "kitchen")]
        found.append((script, "eval", "--env", "kitchen", "--agent", "expert", "--episodes", "5"))
        found.append(("python", "-m", "trl_mise.cli", "train", "--help"))
    return found


if __name__ == "__main__":
    main()
