"""Every command that a document tells a reader to type -> what executes it, or why nothing does.

tests/test_commands.py fails where a document has a command that is not here, and where there is one here that no
document has. Commands of blocks behind `<!-- not run: REASON -->` have their reason there.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """Executed by tests/test_commands.py in a temporary folder.

    Args:
        expects (`str`): regular expression that the output must match.
        smaller (`str`): what is added to the command, so that it takes seconds; says nothing else about it.
        files (`tuple[str, ...]`): that it must leave.
        needs (`tuple[str, ...]`): packages without which it is skipped.
        needs_cli (`bool`): skipped in a checkout without `trl_mise/cli.py`.
        after (`str`, *optional*): another `Run` of the table, which is executed before it in the same folder.
        slow (`bool`): not in the default run.
    """

    expects: str = ""
    smaller: str = ""
    files: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    needs_cli: bool = False
    after: str | None = None
    slow: bool = False


@dataclass(frozen=True)
class Tested:
    """Executed by another test, which must exist: `file::function` or `file::Class::function`, under tests/."""

    test: str


@dataclass(frozen=True)
class Continuous:
    """A line of .ci/run, which must be there."""


@dataclass(frozen=True)
class Make:
    """A target that is tried with `make -n`.

    Args:
        would (`str`): the command that it would execute; itself in this table, or its beginning.
    """

    would: str


@dataclass(frozen=True)
class NotRun:
    """Not executed, for this reason."""

    reason: str


Entry = Run | Tested | Continuous | Make | NotRun

EXPERT_WINS = r"(?m)^success +1\.000 "
NAMED = NotRun("only named here; written out, with its arguments, in another place")
INSTALLS = NotRun("an installation from an index; the names of package and extras are checked")
KITCHEN_RUN = "trl-mise train --env kitchen --output_dir runs/kitchen"
BUTTONS = Tested("test_quickstart.py::test_the_commands_run")
BENCHMARKS = "test_benchmarks.py::test_runs_and_writes_its_table"


def quick(name: str, more: str = "") -> Run:
    """A benchmark at toy size."""
    return Run(
        r"device ", f"--quick --threads 1 --device cpu {more}".strip(), (f"benchmarks/results/{name}.json",), slow=True
    )


COMMANDS: Mapping[str, Entry] = {
    "make demo": Make("python examples/webshop.py --output_dir runs/demo"),
    "make demo SEED=0": Make("python examples/webshop.py --output_dir runs/demo --seed 0"),
    "make demo SEED=1": Make("python examples/webshop.py --output_dir runs/demo --seed 1"),
    "make check": Continuous(),
    "make docs": Continuous(),
    "make hooks": Make("pre-commit install"),
    "make release-check": Make("tests/distribution/check_dist.py dist --torch 'torch==2.13.0' --release"),
    "make setup": Make("python -m pip install"),
    "make test": Continuous(),
    "make test-dist": Continuous(),
    "make test-slow": Make("python -m pytest -m slow"),
    "make test-ppo": Continuous(),
    "pip install": NAMED,
    'pip install "trl-mise[calibration]"': INSTALLS,
    'pip install "trl-mise[quantization]"': INSTALLS,
    'pip install "trl-mise[scienceworld]"': INSTALLS,
    'pip install "trl-mise[textworld]"': INSTALLS,
    'pip install "trl-mise[trackers]"': INSTALLS,
    'pip install -q "trl-mise[examples,quantization]"': INSTALLS,
    'pip install "trl-mise[webshop]"': INSTALLS,
    # examples
    "python examples/evaluate.py": NAMED,
    "python examples/evaluate.py --env webshop --agent expert --episodes 20": Run(r"(?m)^success +(1\.000|0\.9\d\d) "),
    "python examples/evaluate.py --env textworld --agent expert --episodes 20": Run(
        EXPERT_WINS, needs=("textworld",), slow=True
    ),
    "python examples/evaluate.py --env scienceworld --agent expert --episodes 10": Run(
        EXPERT_WINS, needs=("scienceworld",), slow=True
    ),
    "python examples/scienceworld.py --output_dir runs/scienceworld": Tested(
        "test_game_recipes.py::test_the_example_learns"
    ),
    "python examples/textworld.py --output_dir runs/textworld": Tested(
        "test_game_recipes.py::test_the_example_learns"
    ),
    "python examples/webshop.py --output_dir runs/webshop": Run(
        '"success_after"',
        "--total_episodes 192 --eval_episodes 8",
        ("runs/webshop/summary.json", "runs/webshop/trajectories.jsonl"),
        slow=True,
    ),
    "python buttons.py": Tested("test_quickstart.py::test_the_file_runs_as_it_stands"),
    "accelerate launch": NAMED,
    "accelerate launch -m trl_mise.cli train ...": Tested("test_cli.py::TestTrain::test_accelerate_launches_it"),
    "accelerate launch --config_file examples/accelerate/…": Tested(
        "test_accelerate_configs.py::test_it_starts_on_a_cpu"
    ),
    "trl vllm-serve": NotRun("needs vLLM and a GPU; the client is tested in test_vllm_backend.py"),
    # benchmarks
    "python -m benchmarks.attacks": Tested(BENCHMARKS),
    "python -m benchmarks.attacks --json benchmarks/results/attacks.json": quick("attacks"),
    "python -m benchmarks.environments": Tested(
        "test_registry.py::test_the_benchmark_has_a_row_for_every_environment"
    ),
    "python -m benchmarks.environments --json benchmarks/results/environments.json": quick("environments"),
    "python -m benchmarks.import_time --json benchmarks/results/import_time.json": quick("import_time"),
    "python -m benchmarks.learning --suite ci": Continuous(),
    "python -m benchmarks.learning --suite full": NotRun("hours; its cells and its report are tested one by one"),
    "python -m benchmarks.learning.report": Tested("test_benchmarks.py::test_the_results_page_shows_the_runs"),
    "python -m benchmarks.rollout --json benchmarks/results/rollout.json": quick("rollout"),
    "python -m benchmarks.scaling": Tested("test_scaling.py::test_the_page_shows_the_tables"),
    "python -m benchmarks.scoring --json benchmarks/results/scoring_tiny.json": quick("scoring_tiny"),
    "python -m benchmarks.scoring --question 48 --shared 32 --json benchmarks/results/scoring_tiny_shared.json": quick(
        "scoring_tiny_shared"
    ),
    "python -m benchmarks.scoring --dtype bfloat16 --json benchmarks/results/scoring_tiny_bf16.json": quick(
        "scoring_tiny_bf16"
    ),
    "python -m benchmarks.scoring --shape qwen2.5-0.5b --repeats 2 --json benchmarks/results/scoring_0.5b.json": quick(
        "scoring_0.5b", "--shape tiny"
    ),
    "python -m benchmarks.soak --json benchmarks/results/soak.json": quick("soak"),
    "python -m benchmarks.tables": Tested("test_benchmarks.py::test_the_readmes_show_the_results"),
    "python -m benchmarks.update --json benchmarks/results/update.json": quick("update"),
    "python -m benchmarks.vs_ppo_trainer --json benchmarks/results/vs_ppo_trainer.json": Tested(BENCHMARKS),
    # the command line
    "python -m trl_mise.cli": NAMED,
    "trl-mise COMMAND --help": NAMED,
    "trl-mise check-env": NAMED,
    "trl-mise env": Run("python", needs_cli=True),
    "trl-mise eval": NAMED,
    "trl-mise play": NAMED,
    "trl-mise report": NAMED,
    "trl-mise rollout": NAMED,
    "trl-mise train": NAMED,
    "trl-mise train --help": Run("(?s)--hindsight_coef.*--help_all", needs_cli=True),
    "trl-mise envs": Run("(?s)kitchen.*scienceworld", needs_cli=True),
    "trl-mise check-env --env kitchen": Run("keeps the contract", needs_cli=True),
    "trl-mise eval --env kitchen --agent random --episodes 20": Run(r"(?m)^success +0\.", needs_cli=True),
    "trl-mise eval --env kitchen --agent expert --episodes 20": Run(EXPERT_WINS, needs_cli=True),
    "trl-mise rollout --env webshop --agent expert --episodes 1": Run("buy now", needs_cli=True),
    "trl-mise train --env kitchen --output_dir runs/kitchen": Run(
        "saved to runs/kitchen",
        "--total_episodes 64 --eval_tasks 4",
        ("runs/kitchen/run.yaml", "runs/kitchen/trajectories.jsonl"),
        needs_cli=True,
        slow=True,
    ),
    "trl-mise eval --model_name_or_path runs/kitchen --episodes 50": Run(
        r"(?m)^kitchen, test split, model agent", after=KITCHEN_RUN, needs_cli=True, slow=True
    ),
    "trl-mise rollout --model_name_or_path runs/kitchen --episodes 1": Run(
        "episode 1 of 1", after=KITCHEN_RUN, needs_cli=True, slow=True
    ),
    "trl-mise report runs/kitchen": Run(
        "report.html", files=("runs/kitchen/report.html",), after=KITCHEN_RUN, needs_cli=True, slow=True
    ),
    "trl-mise eval --env textworld --agent expert --episodes 20": Run(
        EXPERT_WINS, needs=("textworld",), needs_cli=True, slow=True
    ),
    "trl-mise eval --env lift --agent expert": Tested(
        "test_contributing.py::test_the_new_environment_can_be_named_and_trained_on"
    ),
    "trl-mise play --env webshop": Tested("test_cli.py::TestPlay::test_a_shop"),
    "trl-mise train --env my_module:DiverEnv --model_name_or_path ... --output_dir ...": Tested(
        "test_cli.py::TestTrain::test_a_model_and_an_environment_of_ones_own"
    ),
    "trl-mise check-env --env buttons:Buttons": BUTTONS,
    (
        "trl-mise train --env buttons:Buttons --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct --use_peft "
        "--output_dir runs/buttons-cli --total_episodes 1152 --learning_rate 1e-4 --max_new_tokens 8"
    ): BUTTONS,
    "trl-mise eval --model_name_or_path runs/buttons-cli --episodes 100": BUTTONS,
    "trl-mise report runs/buttons-cli --output buttons.html": BUTTONS,
}


def _learning_cells(command: str) -> None:
    from benchmarks.learning.__main__ import _arguments

    _arguments().parse_args(command.split()[3:])


PATTERNS: Mapping[re.Pattern[str], Callable[[str], None]] = {
    # A cell takes half a minute to a minute; tests/test_learning_benchmarks.py runs some of them at toy size.
    re.compile(r"python -m benchmarks\.learning --tasks .+ --arms .+ --seeds [\d ]+"): _learning_cells,
}
"""Commands that generated pages have many of: their arguments must be understood."""

BLOCKS: Mapping[tuple[str, str], str] = {
    ("README.md", "swap"): "test_docs.py::test_the_swap_example_runs",
    ("README.md", "environment"): "test_docs.py::test_the_environment_example_runs",
    ("README.md", "grpo"): "test_docs.py::test_the_grpo_example_runs",
    ("CONTRIBUTING.md", "environment"): "test_contributing.py::test_the_tests_of_the_new_environment_pass",
    ("CONTRIBUTING.md", "environment_tests"): "test_contributing.py::test_the_tests_of_the_new_environment_pass",
    (
        "CONTRIBUTING.md",
        "environment_entry",
    ): "test_contributing.py::test_the_new_environment_can_be_named_and_trained_on",
    ("CONTRIBUTING.md", "judge"): "test_contributing.py::test_the_judge_is_listened_to",
    ("docs/quickstart.md", "quickstart"): "test_quickstart.py::test_the_file_runs_as_it_stands",
    ("docs/environments.md", "contract"): "test_docs_code.py::test_the_environment_page",
    ("docs/environments.md", "agents"): "test_docs_code.py::test_the_environment_page",
    ("docs/environments.md", "gymnasium"): "test_docs_code.py::test_the_adapters",
    ("docs/environments.md", "trl_tools"): "test_docs_code.py::test_the_adapters",
    ("docs/environments.md", "openenv"): "test_docs_code.py::test_the_adapters",
    ("docs/environments.md", "registry"): "test_docs_code.py::test_the_registry",
    ("docs/migrating-ppo.md", "ppo_environment"): "test_docs_code.py::test_from_ppo_to_an_environment",
    ("docs/migrating-grpo.md", "grpo_swap"): "test_docs_code.py::test_from_grpo",
}
"""(Document, NAME of `<!-- test: NAME -->`) of every Python block -> the test that executes it as it stands."""
