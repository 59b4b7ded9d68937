"""Settings that every test runs under. The environment variables are set before any test imports a library."""

import os
import random
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may need the hub; reaching for it is an error at once, not a time-out
os.environ["MPLBACKEND"] = "Agg"

import hypothesis
import numpy as np
import pytest
from import_reach import reaches, source_of

try:
    import torch
except ImportError:  # the environments and the maths are tested without it
    torch = None

# The models are tiny: on busy cores the barrier between two threads costs far more than it saves.
NUM_THREADS = 1
if torch is not None:
    torch.set_num_threads(NUM_THREADS)

# Same examples on every run, and no deadline: tests do not read the clock.
hypothesis.settings.register_profile("trl-mise", deadline=None, derandomize=True)
hypothesis.settings.load_profile("trl-mise")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--reaching",
        metavar="MODULE",
        help="only the test files whose imports reach this module of ours, or that run what no import says",
    )


def pytest_configure(config: pytest.Config) -> None:
    target = config.getoption("--reaching")
    if target is not None and source_of(target) is None:
        raise pytest.UsageError(f"--reaching {target}: there is no such module here; one is trl_mise._trl")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    target = config.getoption("--reaching")
    is_test = collection_path.name.startswith("test_") and collection_path.suffix == ".py"
    return True if target is not None and is_test and not reaches(collection_path, target) else None


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same global random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    if torch is not None:
        torch.manual_seed(0)


def pytest_report_header() -> str:
    if torch is None:
        return "torch: not installed"

    def version_of(name: str) -> str:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            return f"{name} not installed"

    names = ("torch", "transformers", "trl", "accelerate", "peft", "bitsandbytes")
    return f"{', '.join(map(version_of, names))}; {torch.get_num_threads()} torch threads"
