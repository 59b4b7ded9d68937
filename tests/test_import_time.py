"""What an import loads: the package is light until a trainer is asked for. Seconds are `benchmarks.import_time`'s."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ["torch", "transformers", "trl", "accelerate", "datasets", "peft", "pandas", "scipy", "sklearn", "matplotlib"]
# What each must not load, beyond HEAVY; numpy takes a tenth of a second by itself.
LIGHT = {
    "import trl_mise": ["numpy", "huggingface_hub", "jinja2", "yaml", "asyncio", "multiprocessing"],
    "from trl_mise import check_env": ["huggingface_hub"],
    "from trl_mise import TextEnv, Trajectory, Turn, HindsightScores": [],
    "from trl_mise.envs.kitchen import KitchenEnv; KitchenEnv().reset(seed=0)": ["huggingface_hub"],
    "from trl_mise.envs.registry import ENVIRONMENTS": ["numpy", "textworld", "scienceworld"],
    "from trl_mise.versions import report; report()": ["numpy", "huggingface_hub"],
    "import trl_mise; dir(trl_mise); trl_mise.__version__": ["numpy"],
}
PROBE = """
import json, sys
before = set(sys.modules)
exec(sys.argv[1])
print("RESULT", json.dumps(sorted(set(sys.modules) - before)))
"""


def loaded_by(statement: str) -> set[str]:
    """Modules that a fresh interpreter has after the statement, and had not before."""
    command = [sys.executable, "-W", "ignore", "-c", PROBE, statement]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return set(json.loads(line.removeprefix("RESULT ")))


@pytest.mark.parametrize("statement", LIGHT)
def test_what_is_light(statement: str) -> None:
    loaded = loaded_by(statement)
    assert [name for name in [*HEAVY, *LIGHT[statement]] if name in loaded] == []
    assert "trl_mise" in loaded


def test_the_package_itself_is_one_module() -> None:
    loaded = loaded_by("import trl_mise")
    assert {name for name in loaded if name.startswith("trl_mise")} == {"trl_mise"}
    assert len(loaded) < 150, "importlib.metadata and what it needs; more is somebody's slow start"


def test_a_trainer_is_loaded_when_it_is_asked_for() -> None:
    """The probe sees what it should: otherwise the tests above prove nothing."""
    loaded = loaded_by("import trl_mise; assert 'torch' not in sys.modules; trl_mise.MISETrainer")
    assert {"torch", "transformers", "trl_mise.trainer"} <= loaded


@pytest.mark.skipif(not (ROOT / "trl_mise" / "cli.py").exists(), reason="there is no command line yet")
def test_the_command_lines_help_is_light() -> None:
    statement = "import runpy; sys.argv[1:] = ['--help']\ntry: runpy.run_module('trl_mise.cli', None, '__main__')\n"
    loaded = loaded_by(f"{statement}except SystemExit: pass")
    assert [name for name in HEAVY if name in loaded] == []
