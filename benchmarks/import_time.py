"""How long it takes until a name of the package can be used, each in a fresh interpreter; compared with TRL's.

python -m benchmarks.import_time --json benchmarks/results/import_time.json
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trl_mise

from ._common import arguments, finish

ARMS = {
    "alone": "pass",
    "import trl_mise": "import trl_mise",
    "trl_mise.check_env": "from trl_mise import check_env",
    "trl_mise.envs.kitchen": "from trl_mise.envs.kitchen import KitchenEnv",
    "trl_mise.MISEConfig": "from trl_mise import MISEConfig",
    "trl_mise.MISETrainer": "from trl_mise import MISETrainer",
    "trl_mise.MISEGRPOTrainer": "from trl_mise import MISEGRPOTrainer",
    "import trl": "import trl",
    "trl.GRPOTrainer": "from trl import GRPOTrainer",
}
HELP = "import sys, runpy; sys.argv[1:] = ['--help']; runpy.run_module('trl_mise.cli', None, '__main__')"
WATCHED = ("torch", "transformers", "trl", "numpy")
REPORT = """
import atexit, json, sys
def tell():
    loaded = [name for name in {watched} if name in sys.modules]
    print("RESULT " + json.dumps([len(sys.modules), loaded]), file=sys.__stderr__)
atexit.register(tell)
"""


def measured(statement: str, folder: str) -> tuple[float, int, list[str]]:
    """Seconds of a process that runs the statement, how many modules it loaded, and which of the heavy ones."""
    code = REPORT.format(watched=WATCHED) + statement
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    seconds = time.perf_counter() - start
    lines = [line for line in done.stderr.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        raise RuntimeError(f"{statement!r} failed: {done.stderr[-2000:]}")
    modules, loaded = json.loads(lines[-1].removeprefix("RESULT "))
    return seconds, modules, loaded


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = arguments(__doc__.splitlines()[0]).parse_args(argv)
    has_cli = (Path(trl_mise.__file__).parent / "cli.py").exists()
    arms = {**ARMS, **({"trl_mise.cli --help": HELP} if has_cli else {})}
    if options.quick:
        arms = {name: arms[name] for name in ("alone", "import trl_mise", "trl_mise.envs.kitchen")}
    repeats = 1 if options.quick else options.repeats
    with tempfile.TemporaryDirectory() as folder:  # not in the checkout, whose folders would be modules
        for statement in arms.values():
            measured(statement, folder)  # into the system's cache
        runs = [{name: measured(statement, folder) for name, statement in arms.items()} for _ in range(repeats)]
    alone = statistics.median(run["alone"][0] for run in runs)
    rows = []
    for name in arms:
        seconds = statistics.median(run[name][0] for run in runs)
        _, modules, loaded = runs[-1][name]
        above = None if name == "alone" else seconds - alone
        found = {"s": seconds, "above alone": above, "modules": modules, "of them": ", ".join(loaded)}
        rows.append({"until it can be used": name, **found})
    return finish("import_time", options, rows, {"repeats": repeats})


if __name__ == "__main__":
    main()
