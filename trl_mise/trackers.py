"""Sample episodes with the score of every step, and plots of the judge, for TensorBoard, W&B and Trackio."""

import re
import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from .judge_plots import draw_judge, step_scores
from .markdown import table
from .types import HindsightScores, Trajectory

EPISODES = "episodes/sample"
PLOTS = "judge/plots"
SCORES_WON, SCORES_LOST = "judge/scores_won", "judge/scores_lost"

COLUMNS = (*("update", "task", "step", "observation", "action", "score", "verdicts", "reward", "return", "success"),)
EVERY = 10
"""Updates from one table to the next; the first and the last update have one too."""
LONGEST = 300
"""Characters of a text in a table."""
REMEMBERED = 512
"""Episodes that the plots are about."""


@dataclass(frozen=True)
class Sample:
    """What a tracker is given about an update.

    Args:
        step (`int`): of the trainer.
        rows (`list[list]`): one per step of some episodes, by [`COLUMNS`].
        scores (`dict[str, np.ndarray]`): of the steps of all episodes won, and lost, of late.
        plots (`np.ndarray`, *optional*): `(H, W, 3)` picture of the judge.
    """

    step: int
    rows: list[list[Any]]
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    plots: np.ndarray | None = None


class Tracker(Protocol):
    """Where samples go."""

    name: str

    def log(self, sample: Sample) -> None:
        """Takes a sample; does nothing where the tracker is not running."""


class TensorBoard:
    """A text, histograms and an image.

    Args:
        callback (`TensorBoardCallback`): transformers', whose writer is used.
    """

    name = "tensorboard"

    def __init__(self, callback: TensorBoardCallback) -> None:
        self.callback = callback

    def log(self, sample: Sample) -> None:
        writer = self.callback.tb_writer
        if writer is None:
            return
        writer.add_text(EPISODES, markdown_table(COLUMNS, sample.rows), sample.step)
        for name, values in sample.scores.items():
            writer.add_histogram(name, values, sample.step)
        if sample.plots is not None:
            writer.add_image(PLOTS, sample.plots, sample.step, dataformats="HWC")
        writer.flush()


class Wandb:
    """A table, histograms and an image, in a row of the run's history.

    Args:
        callback (`WandbCallback`): transformers', whose module is used.
    """

    name = "wandb"

    def __init__(self, callback: WandbCallback) -> None:
        self.callback = callback

    def log(self, sample: Sample) -> None:
        wandb = self.callback._wandb
        if wandb is None or wandb.run is None:
            return
        row = {
            EPISODES: wandb.Table(columns=list(COLUMNS), data=sample.rows, allow_mixed_types=True),
            **{name: wandb.Histogram(values) for name, values in sample.scores.items()},
        }
        if sample.plots is not None:
            row[PLOTS] = wandb.Image(sample.plots)
        wandb.log({**row, "train/global_step": sample.step})


class Trackio:
    """A table and an image; histograms where this version has them.

    Args:
        callback (`TrackioCallback`): transformers', whose module is used.
    """

    name = "trackio"

    def __init__(self, callback: TrackioCallback) -> None:
        self.callback = callback

    def log(self, sample: Sample) -> None:
        if not self.callback._initialized:
            return
        import pandas

        trackio = self.callback._trackio
        # It takes texts for Markdown.
        rows = [[markdown_text(cell) if isinstance(cell, str) else cell for cell in row] for row in sample.rows]
        row: dict[str, Any] = {EPISODES: trackio.Table(dataframe=pandas.DataFrame(rows, columns=list(COLUMNS)))}
        if hasattr(trackio, "Histogram"):
            row.update({name: trackio.Histogram(values) for name, values in sample.scores.items()})
        if sample.plots is not None:
            row[PLOTS] = trackio.Image(sample.plots)
        trackio.log({**row, "train/global_step": sample.step})


class SampleEpisodesCallback(TrainerCallback):
    """Shows some episodes of some updates with the score of every step, half of them won where there are such.

    Episodes of the main process only, and of this update as it was played: the trackers see what the judge said
    before calibration. What a tracker cannot take is told once, and never ends a run.

    Args:
        trackers (`Sequence[Tracker]`): that get them.
        num_episodes (`int`): in a table.
        seed (`int`): of the choice.
        every (`int`): updates from one table to the next.
    """

    def __init__(
        self, trackers: Sequence[Tracker], num_episodes: int = 4, *, seed: int = 0, every: int = EVERY
    ) -> None:
        if num_episodes < 1 or every < 1:
            raise ValueError(f"num_episodes={num_episodes} and every={every} must be at least 1")
        self.trackers = trackers
        self.num_episodes = num_episodes
        self.seed = seed
        self.every = every
        self._judged: deque[tuple[np.ndarray, bool]] = deque(maxlen=REMEMBERED)
        self._failed: set[str] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._judged.clear()

    def on_step_end(self, args: Any, state: Any, control: Any, update: Any = None, **kwargs: Any) -> None:
        if update is None or not state.is_world_process_zero:
            return
        if update.scores is not None:
            won = [trajectory.success for trajectory in update.trajectories]
            self._judged.extend(zip(update.scores.split(), won, strict=True))
        is_last = state.global_step >= state.max_steps
        if update.number == 1 or update.number % self.every == 0 or is_last:
            self._log(update, state.global_step)

    def _log(self, update: Any, step: int) -> None:
        chosen = choose(update.trajectories, self.num_episodes, (self.seed, update.number))
        verdicts = () if update.hindsight is None else update.hindsight.verdicts
        rows = episode_rows(update.number, update.trajectories, update.scores, verdicts, chosen)
        judged = list(self._judged)
        scores = {name: step_scores(judged, won) for name, won in ((SCORES_WON, True), (SCORES_LOST, False))}
        scores = {name: values for name, values in scores.items() if len(values)}
        sample = Sample(step, rows, scores, draw_judge(judged) if scores else None)
        for tracker in self.trackers:
            try:
                tracker.log(sample)
            except Exception as error:  # of somebody else's program and network
                self._tell_once(tracker.name, update.number, error)

    def _tell_once(self, name: str, update: int, error: Exception) -> None:
        if name not in self._failed:
            self._failed.add(name)
            warnings.warn(
                f"{name} did not take the sample episodes of update {update} ({type(error).__name__}: {error}). "
                "Training goes on, and this is not told again; log_sample_episodes=0 leaves them out",
                RuntimeWarning,
                stacklevel=2,
            )


def choose(trajectories: Sequence[Trajectory], count: int, seed: Sequence[int]) -> list[int]:
    """Indices of some episodes, won ones first: half of each kind, or more of one where the other has too few."""
    rng = np.random.default_rng(list(seed))
    order = [int(i) for i in rng.permutation(len(trajectories))]
    won = [i for i in order if trajectories[i].success]
    lost = [i for i in order if not trajectories[i].success]
    num_lost = min(len(lost), max(count // 2, count - len(won)))
    return [*won[: count - num_lost], *lost[:num_lost]]


def episode_rows(
    update: int,
    trajectories: Sequence[Trajectory],
    scores: HindsightScores | None,
    verdicts: Sequence[str],
    chosen: Sequence[int],
) -> list[list[Any]]:
    """A row for every step of the chosen episodes, by [`COLUMNS`]; what was not judged has no score."""
    of_steps = None if scores is None else scores.split()
    probs = None if scores is None else scores.split(scores.verdict_probs)
    rows: list[list[Any]] = []
    for i in chosen:
        trajectory = trajectories[i]
        task = _short(", ".join(f"{name}={value}" for name, value in trajectory.task.items()))
        for step, turn in enumerate(trajectory.turns):
            score, said = None, ""
            if of_steps is not None and probs is not None and np.isfinite(of_steps[i][step]):
                score = round(float(of_steps[i][step]), 4)
                said = ", ".join(f"{word} {p:.2f}" for word, p in zip(verdicts, probs[i][step], strict=True))
            texts = (_short(turn.observation), _short(turn.action))
            outcome = (float(turn.reward), trajectory.episode_return, trajectory.success)
            rows.append([update, task, step, *texts, score, said, *outcome])
    return rows


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def markdown_text(text: str) -> str:
    """Shown as it is: whatever Markdown or HTML would make something of is written by its number."""
    return re.sub(r"[\\`*_{}\[\]<>&|~$#]", lambda match: f"&#{ord(match[0])};", text)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table whose cells show their texts as they are."""
    return "\n".join(
        table(columns, ([markdown_text("" if cell is None else str(cell)) for cell in row] for row in rows))
    )


def track_episodes(trainer: Any) -> None:
    """Adds sample episodes to the trackers that `report_to` named, if there are any that can show them."""
    kinds: tuple[tuple[Any, Any], ...] = (
        (TensorBoardCallback, TensorBoard),
        (WandbCallback, Wandb),
        (TrackioCallback, Trackio),
    )
    callbacks = trainer.callback_handler.callbacks
    trackers = [of(callback) for kind, of in kinds for callback in callbacks if isinstance(callback, kind)]
    if trackers and trainer.args.log_sample_episodes:
        args = trainer.args
        trainer.add_callback(SampleEpisodesCallback(trackers, args.log_sample_episodes, seed=args.seed))
