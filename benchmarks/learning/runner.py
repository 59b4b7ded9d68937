"""Runs cells (task, arm, seed), each in one thread, several at a time; a finished one is kept and never run again."""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback

from benchmarks._common import machine
from benchmarks.learning.arms import ARMS, Arm
from benchmarks.learning.estimators import area
from benchmarks.learning.rivals import RIVALS, ShuffledReturns
from benchmarks.learning.tasks import TASKS, LearningTask
from trl_mise import MISEConfig, MISETrainer
from trl_mise.callback import CalibrationCallback
from trl_mise.chat import ChatFormat
from trl_mise.hindsight_config import HindsightConfig
from trl_mise.judges import OracleJudge, judge_for
from trl_mise.ppo import PPOConfig
from trl_mise.tiny import cache_path, cached

RESULTS = Path(__file__).parents[1] / "results" / "learning"

CURVES = (
    *("env/success", "env/return", "env/episode_length", "env/invalid_action_rate"),
    *("hindsight/auroc", "hindsight/brier", "hindsight/ece", "hindsight/score_gap", "hindsight/within_episode_spread"),
    *("hindsight/verdict_entropy", "hindsight/score_mean", "hindsight/shaping_share", "hindsight/gate"),
    *("hindsight/unreadable_rate", "mise/mutual_information", "mise/kl_to_proxy", "calibration/loss"),
)
"""What is kept of a run, a number per update."""
PPO_SETTINGS = (
    *("learning_rate", "lr_scheduler_type", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("num_mini_batches", "num_ppo_epochs", "total_episodes", "gamma", "lam", "temperature", "kl_coef", "vf_coef"),
    *("cliprange", "cliprange_value", "max_grad_norm", "whiten_rewards"),
)


@dataclass(frozen=True)
class Cell:
    """One run.

    Args:
        task, arm (`str`): names in `TASKS` and `ARMS`.
        seed (`int`): of everything.
        variant (`Mapping`): options over the arm's, for a search; its runs are kept apart.
    """

    task: str
    arm: str
    seed: int
    variant: Mapping[str, Any] = field(default_factory=dict)

    @property
    def arm_name(self) -> str:
        return self.arm + "".join(f" {name}={value}" for name, value in sorted(self.variant.items()))

    @property
    def recipe(self) -> Any:
        """Of the policy that it starts from."""
        return TASKS[self.task].recipe_for(self.seed, writes=ARMS[self.arm].writes)

    @property
    def key(self) -> tuple[str, str, int]:
        return self.task, self.arm_name, self.seed


def options_of(cell: Cell) -> dict[str, Any]:
    """All options that a cell sets."""
    task, arm = TASKS[cell.task], ARMS[cell.arm]
    return {**cell.recipe.training_defaults(), **task.options, **arm.options, **cell.variant}


def settings_of(cell: Cell) -> dict[str, Any]:
    """What decides a cell's result, defaults included: a stored result with other settings is stale."""
    arm = ARMS[cell.arm]
    about = {"recipe": asdict(cell.recipe), "judge": arm.judge, "shuffled_returns": arm.shuffled_returns}
    options = options_of(cell)
    if arm.trainer != "mise":
        of_judge = asdict(HindsightConfig()) if arm.trainer == "mise-grpo" else {}
        return json.loads(json.dumps({**about, **of_judge, "trainer": arm.trainer, **options}))
    config = MISEConfig(**options, output_dir="unused")
    inherited = {f.name for f in fields(PPOConfig)}
    names = [f.name for f in fields(MISEConfig) if f.name not in inherited] + list(PPO_SETTINGS)
    return json.loads(json.dumps({**about, **{name: getattr(config, name) for name in names}}, default=str))


class ResultStore:
    """One line of JSON per run, a file per task."""

    def __init__(self, folder: Path = RESULTS) -> None:
        self.folder = folder

    def runs(self, task: str) -> list[dict[str, Any]]:
        path = self.folder / f"{task}.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def find(self, cell: Cell) -> dict[str, Any] | None:
        """The cell's result, unless it is missing or was made with other settings."""
        settings = settings_of(cell)
        for run in self.runs(cell.task):
            if (run["task"], run["arm"], run["seed"]) == cell.key:
                # A setting that did not exist then cannot have mattered; one that has gone neither.
                known = {name: value for name, value in settings.items() if name in run["settings"]}
                return run if all(run["settings"][name] == value for name, value in known.items()) else None
        return None

    def add(self, run: dict[str, Any]) -> None:
        """Keeps a run, in place of an older one of the same cell; in a fixed order, so that diffs are small."""
        key = (run["task"], run["arm"], run["seed"])
        kept = [r for r in self.runs(run["task"]) if (r["task"], r["arm"], r["seed"]) != key]
        lines = [json.dumps(r) for r in sorted([*kept, run], key=lambda r: (r["arm"], r["seed"]))]
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{run['task']}.jsonl"
        staged = path.with_suffix(".new")
        staged.write_text("\n".join(lines) + "\n", encoding="utf-8")
        staged.replace(path)


def run_cell(cell: Cell) -> dict[str, Any]:
    """Trains once; the result is what [`ResultStore`] keeps."""
    torch.set_num_threads(1)
    task, arm, start = TASKS[cell.task], ARMS[cell.arm], time.time()
    recipe = cell.recipe
    model, tokenizer = cached(recipe)
    rows = list(task.rows(recipe, cell.seed))
    options = options_of(cell)
    with tempfile.TemporaryDirectory() as output_dir:
        reliability = Reliability()
        if arm.trainer != "mise":
            from benchmarks.learning.grpo import train_grpo

            own = {**arm.options, **cell.variant}
            judge = None if arm.trainer == "grpo" else lambda args: _judge(task, arm, recipe, tokenizer, args)
            history = train_grpo(model, tokenizer, recipe, rows, options, own, output_dir, cell.seed, judge)
        else:
            trainer = make_trainer(
                model,
                tokenizer,
                recipe,
                rows,
                judge=lambda args: _judge(task, arm, recipe, tokenizer, args),
                calibration=ShuffledReturns if arm.shuffled_returns else None,
                callbacks=[reliability],
                **{**options, "output_dir": output_dir, "seed": cell.seed, "check_environment": False},
            )
            trainer.train()
            history = [entry for entry in trainer.state.log_history if "env/success" in entry]
    curves = {name: [_short(entry[name]) if name in entry else None for entry in history] for name in CURVES}
    profiles = [entry for entry in history if "hindsight/by_step/0" in entry]
    return {
        "task": cell.task,
        "arm": cell.arm_name,
        "seed": cell.seed,
        "seconds": round(time.time() - start, 1),
        "machine": machine("cpu", 1)["device"],
        "settings": settings_of(cell),
        "curves": {name: curve for name, curve in curves.items() if any(value is not None for value in curve)},
        "by_step": _by_step(profiles[-1]) if profiles else [],
        "reliability": reliability.bins(),
    }


class Reliability(TrainerCallback):
    """Scores and outcomes of a run's episodes, as the judge saw them before it was calibrated on them."""

    def __init__(self) -> None:
        self.judged: list[tuple[float, bool]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, update: Any = None, **kwargs: Any) -> None:
        if update is not None and update.scores is not None:
            scores = update.scores.episode_scores.tolist()
            pairs = zip(scores, update.trajectories, strict=True)
            self.judged.extend((score, t.success) for score, t in pairs if np.isfinite(score))

    def bins(self, number: int = 10) -> list[list[float]]:
        """`[episodes, mean score, share won]` of each filled bin of scores, over the whole run."""
        groups: dict[int, list[tuple[float, bool]]] = {}
        for score, won in self.judged:
            groups.setdefault(min(int(score * number), number - 1), []).append((score, won))
        return [
            [len(group), *(_short(float(np.mean(column))) for column in zip(*group, strict=True))]
            for _, group in sorted(groups.items())
        ]


def make_trainer(
    model: Any,
    tokenizer: Any,
    recipe: Any,
    rows: Sequence[Mapping[str, Any]],
    *,
    judge: Callable[[MISEConfig], Any],
    calibration: type[CalibrationCallback] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    **options: Any,
) -> MISETrainer:
    """A trainer of a recipe's policy that keeps quiet: of many runs at a time nobody reads every update.

    Args:
        model, tokenizer, recipe: the policy, and what it was made by.
        rows: tasks to train on.
        judge: makes the reward wrapper; not asked where `hindsight_coef` is 0.
        calibration: in place of the default calibration.
        callbacks: to add.
        **options: of `MISEConfig`.
    """
    args = MISEConfig(**{"log_trajectories": False, "disable_tqdm": True, **options})
    trainer = MISETrainer(
        args=args,
        processing_class=tokenizer,
        model=model,
        train_dataset=Dataset.from_list([dict(row) for row in rows]),
        environment_factory=recipe.environment_factory(),
        hindsight=judge(args) if args.hindsight_coef else False,
        callbacks=[*callbacks, *([] if calibration is None else [calibration.from_config(args)])],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _judge(task: LearningTask, arm: Arm, recipe: Any, tokenizer: Any, args: MISEConfig) -> Any:
    chat = ChatFormat(tokenizer)
    if arm.judge in RIVALS:
        return RIVALS[arm.judge].from_config(chat, args)
    if arm.judge == "oracle":
        if task.truth is None:
            raise ValueError(f"task {task.name!r} has no oracle; leave the arm out")
        oracle = OracleJudge.from_config(chat, args)
        assert isinstance(oracle, OracleJudge)
        return oracle.knowing(recipe.environment_factory(), task.truth)
    return judge_for(arm.judge, tokenizer, args)  # type: ignore[arg-type]


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _by_step(entry: Mapping[str, float]) -> list[float]:
    prefix = "hindsight/by_step/"
    steps = sorted(int(name.removeprefix(prefix)) for name in entry if name.startswith(prefix))
    return [_short(entry[f"{prefix}{step}"]) for step in steps]


def run_cells(
    cells: Iterable[Cell], store: ResultStore, *, jobs: int | None = None, say: Any = print
) -> list[dict[str, Any]]:
    """The results of all cells; those that are missing are run, `jobs` at a time.

    A run that fails is reported, and raised when all others are done: no result is lost.
    """
    wanted = _unique(cells)
    missing = [cell for cell in wanted if store.find(cell) is None]
    say(f"{len(wanted)} runs, {len(wanted) - len(missing)} of them finished before", flush=True)
    failed: list[tuple[Cell, Exception]] = []
    for done, (cell, outcome) in enumerate(_in_parallel(missing, jobs or os.cpu_count() or 1), start=1):
        said = f"[{done}/{len(missing)}] {cell.task} | {cell.arm_name} | seed {cell.seed}"
        if isinstance(outcome, Exception):
            failed.append((cell, outcome))
            say(f"{said}: {outcome!r}", flush=True)
            continue
        store.add(outcome)
        say(f"{said}: AUC {area(outcome['curves']['env/success']):.3f}, {outcome['seconds']:.0f} s", flush=True)
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(missing)} runs failed, the first: {failed[0][0]}") from failed[0][1]
    return [run for cell in wanted if (run := store.find(cell)) is not None]


def _in_parallel(cells: Sequence[Cell], jobs: int) -> Iterator[tuple[Cell, dict[str, Any] | Exception]]:
    """Runs the cells in their order, as far as possible, and gives each with its result when it has one.

    Cells that start from the same policy wait for the first of them, which may have to make it.
    """
    waiting, running = [(cell, repr(cell.recipe)) for cell in cells], dict[Future[dict[str, Any]], tuple[Cell, str]]()
    made = {policy for cell, policy in waiting if cache_path(cell.recipe).is_dir()}
    # Processes are replaced now and then: what runs leave behind (caches, memory) does not pile up.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), max_tasks_per_child=8) as pool:
        while waiting or running:
            making = {policy for _, policy in running.values()} - made
            ready = next((entry for entry in waiting if entry[1] not in making), None)
            if ready is not None and len(running) < jobs:
                waiting.remove(ready)
                running[pool.submit(run_cell, ready[0])] = ready
                continue
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                cell, policy = running.pop(future)
                made.add(policy)
                error = future.exception()
                yield cell, error if isinstance(error, Exception) else future.result()


def _unique(cells: Iterable[Cell]) -> list[Cell]:
    return list({cell.key: cell for cell in cells}.values())
