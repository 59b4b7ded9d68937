"""The package as a whole: which way imports point, the lazy public names, the version."""

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from import_reach import imports, is_type_checking, reaches

import trl_mise

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(trl_mise.__file__).parents[1]
PACKAGE = ROOT / "trl_mise"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# The layers of the house, lowest first: (modules, what importing them must not load).
LAYERS = {
    "plain": (
        [
            "trl_mise",
            "written",
            "types",
            "chat",
            "history",
            "cache",
            "compression",
            "evaluation",
            "agents",
            "rollout",
            "agreement",
            "patience",
            "calibration",
            "health",
            "metrics",
            "packing",
            "theory",
            "notices",
            "display",
            "serialization",
            "tasks",
            "trajectory_log",
            "judge_plots",
            "live_run",
            "live_frame",
            "live_terminal",
            "checkpoints",
            "versions",
            "markdown",
            "card_facts",
            "card_texts",
            "model_card",
            "run_data",
            "report_statistics",
            "report_curves",
            "report_charts",
            "report_summary",
            "report_episodes",
            "report",
        ]
        + [f"envs.{path.stem}" for path in sorted((PACKAGE / "envs").glob("*.py")) if path.stem != "__init__"],
        ["torch", "transformers", "trl"],
    ),
    "torch": (
        [
            "advantages",
            "losses",
            "heads",
            "token_batch",
            "token_log_probs",
            "micro_batches",
            "architectures",
            "calibration_losses",
            "drift",
            "sharding",
        ],
        ["transformers", "trl"],
    ),
    "transformers": (
        [
            "kv_cache",
            "slot_cache",
            "scorers",
            "verification",
            "scoring",
            "actor_critic",
            "update",
            "targets",
            "generation",
            "completions",
            "group_advantages",
            "writing",
            "kept_generation",
            "model_agent",
            "export",
            "backends",
            "processes",
            "hindsight",
            "live",
            "trackers",
            "callback",
            "publishing",
            "run_record",
            "judges",
            "tiny",
            "tiny_world",
            "warm_start",
            "recipes",
            "tasting_recipe",
            "webshop_recipe",
            "game_recipe",
            "textworld_recipe",
            "scienceworld_recipe",
        ],
        ["trl"],
    ),
    "trl": (
        [
            "_trl",
            "own_ppo",
            "own_ppo_config",
            "hindsight_config",
            "ppo",
            "config",
            "checks",
            "ppo_base",
            "resume",
            "trainer",
            "grpo_config",
            "grpo",
        ],
        [],
    ),
}
RANK = {module: rank for rank, (modules, _) in enumerate(LAYERS.values()) for module in modules}

# Run in a fresh interpreter: imports the modules one by one, and prints the first that loaded something forbidden.
IMPORTER = """
import importlib, json, sys
modules, forbidden = json.loads(sys.argv[1])
for module in modules:
    importlib.import_module(module)
    loaded = [name for name in forbidden if name in sys.modules]
    if loaded:
        sys.exit(f"importing {module} loads {', '.join(loaded)}")
"""


def full_name(module: str) -> str:
    return module if module == "trl_mise" else f"trl_mise.{module}"


def exists(module: str) -> bool:
    return importlib.util.find_spec(full_name(module)) is not None


def module_of(path: Path) -> str:
    """`trl_mise/envs/base.py` -> `envs.base`; the package itself -> `trl_mise`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts) or "trl_mise"


def imports_of(path: Path) -> list[tuple[int, str]]:
    in_package = path.is_relative_to(PACKAGE)
    package = ".".join(["trl_mise", *path.parent.relative_to(PACKAGE).parts]) if in_package else "trl_mise"
    return list(imports(ast.parse(path.read_text(encoding="utf-8"), filename=str(path)), package))


def names_trl(path: Path) -> list[int]:
    return [line for line, module in imports_of(path) if module.split(".")[0] == "trl"]


@pytest.mark.parametrize("layer", [name for name, (_, forbidden) in LAYERS.items() if forbidden])
def test_a_layer_does_not_load_the_libraries_of_those_above(layer):
    modules, forbidden = LAYERS[layer]
    present = [full_name(module) for module in modules if exists(module)]
    if not present:
        pytest.skip(f"none of {modules} exists yet")
    arguments = [sys.executable, "-c", IMPORTER, json.dumps([present, forbidden])]
    result = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert result.returncode == 0, result.stderr


def test_the_command_line_waits_for_nothing_that_it_does_not_need():
    """Commands reach into all layers, but when they are asked to."""
    light = ["cli", *(f"commands.{path.stem}" for path in (PACKAGE / "commands").glob("*.py"))]
    forbidden = ["torch", "transformers", "trl", "datasets", "rich", "tqdm"]
    arguments = [sys.executable, "-c", IMPORTER, json.dumps([[full_name(module) for module in light], forbidden])]
    result = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_adapter_imports_trl(path):
    lines = names_trl(path)
    if path.name == "_trl.py":
        assert lines, "_trl.py is there to import TRL"
    else:
        assert not lines, f"lines {lines} of {path.name} import TRL; import the name from trl_mise._trl"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_within_the_package_point_down(path):
    """No module imports one of a higher layer, not even inside a function."""
    rank = RANK.get(module_of(path), len(LAYERS))
    upward = [
        f"line {line}: {module}"
        for line, module in imports_of(path)
        if RANK.get(module.removeprefix("trl_mise."), 0) > rank and module.startswith("trl_mise.")
    ]
    assert not upward, f"{path.name} imports from a higher layer: {upward}"


@pytest.mark.parametrize(
    "line, found",
    [
        ("import trl", True),
        ("import trl.trainer as t", True),
        ("from trl.experimental import ppo", True),
        ("def f():\n    from trl import PPOConfig", True),
        ("import importlib\nimportlib.import_module('trl.experimental.ppo')", True),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import trl", False),
        ("import trl_mise\nfrom trl_mise import types", False),
        ("from . import trl\nfrom ._trl import PPOConfig", False),
        ("text = 'import trl'  # import trl", False),
    ],
)
def test_the_import_finder_finds_what_it_should(tmp_path, line, found):
    path = tmp_path / "module.py"
    path.write_text(line, encoding="utf-8")
    assert bool(names_trl(path)) is found


@pytest.mark.parametrize(
    "name, is_reached",
    [
        ("test_theory", False),
        ("test_losses", False),
        ("test_advantages", True),  # `pytest.importorskip("trl...")`
        ("test_own_ppo", True),  # imports it
        ("test_trainer_loop", True),  # by way of another test file
        ("test_learning", True),  # by way of the benchmarks
        ("test_quickstart", True),  # may: it runs commands
        ("test_configs", True),  # may: `from trl_mise import ...` looks the name up
    ],
)
def test_what_trl_can_reach(name, is_reached):
    """What `make test-ppo` leaves out."""
    assert reaches(ROOT / "tests" / f"{name}.py", "trl_mise._trl") is is_reached


@pytest.mark.parametrize("name", sorted(trl_mise._MODULE_OF))
def test_a_lazy_name_is_the_object_that_its_module_defines(name):
    module = trl_mise._MODULE_OF[name]
    if not exists(module.removeprefix("trl_mise.")):
        pytest.skip(f"{module} does not exist yet")
    value = getattr(trl_mise, name)
    assert value is getattr(importlib.import_module(module), name)
    # One that TRL defines, where it does.
    if name != "PPOConfig":  # TRL's own, where TRL has one
        assert value.__module__ == module, f"{name} is defined in {value.__module__}, not in {module}"
    assert vars(trl_mise)[name] is value, "looked up once, then kept"


def test_the_three_lists_of_public_names_agree():
    """`__all__`, the table of lazy names, and the imports that type checkers read."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if is_type_checking(node)]
    typed = {alias.name: node.module for node in block.body for alias in node.names}
    assert typed == trl_mise._MODULE_OF
    assert sorted(trl_mise.__all__) == sorted([*trl_mise._MODULE_OF, "__version__"])


def test_dir_lists_the_lazy_names_before_they_are_used():
    assert set(trl_mise.__all__) <= set(dir(trl_mise))


def test_an_unknown_attribute_is_an_attribute_error_that_names_the_known_ones():
    with pytest.raises(AttributeError, match="no attribute 'MISETrainr'.*MISETrainer"):
        _ = trl_mise.MISETrainr
    assert not hasattr(trl_mise, "__wrapped__")
    with pytest.raises(ImportError):
        exec("from trl_mise import nothing_of_that_name")


def test_the_version_is_pyprojects():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"\nversion: {project['version']}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    if trl_mise.__version__ == "0+unknown":
        pytest.skip("trl-mise is not installed here: there is no version to compare")
    assert trl_mise.__version__ == project["version"]


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").is_file()
