"""A run directory, read into frozen records, whatever is missing in it. No torch.

What a run leaves behind is written by many hands: other versions, killed processes, environments that say anything.
Nothing here raises because of what a file says; what could not be read is counted and told in [`RunData.notes`].
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .trajectory_log import EPISODES_NAME, EVALUATIONS_NAME
from .types import StopReason

RUN_NAME, METRICS_NAME, EVENTS_NAME = "run.json", "metrics.jsonl", "events.jsonl"
RUN_FILES = {
    RUN_NAME: "what was run",
    METRICS_NAME: "what was logged",
    EPISODES_NAME: "the training episodes",
    EVALUATIONS_NAME: "the evaluation episodes",
    EVENTS_NAME: "warnings",
}
TRAINER_STATE = "trainer_state.json"

Kind = Literal["training", "evaluation"]


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One turn of an episode as it was written.

    Args:
        observation, action (`str`): what the policy read, and what it wrote.
        reward (`float`): the environment's.
        action_valid (`bool`): the environment understood the action.
        score (`float`, *optional*): h_t in [0, 1]; `None` where there is none.
        verdict_probs (`tuple[float, ...]`): `(K,)`, or empty.
        evaluation (`str`, *optional*): what the judge wrote, in generate mode.
        shaping (`float`, *optional*): what hindsight added to the step's advantage or reward.
        advantage (`float`, *optional*): of the step in the end.
    """

    observation: str
    action: str
    reward: float
    action_valid: bool
    score: float | None
    verdict_probs: tuple[float, ...]
    evaluation: str | None
    shaping: float | None
    advantage: float | None


@dataclass(frozen=True, slots=True)
class EpisodeRecord:
    """One line of trajectories.jsonl (`"training"`) or of evaluations.jsonl (`"evaluation"`).

    `split` names the evaluation's dataset where there are several, as in its metrics' prefix.
    """

    kind: Kind
    split: str
    update: int
    task: Mapping[str, Any]
    seed: int | None
    instruction: str
    steps: tuple[StepRecord, ...]
    final_observation: str
    episode_return: float
    success: bool
    stop_reason: str
    error: str | None

    @property
    def failed(self) -> bool:
        """The environment failed: the episode counts in no measure but the rate of errors."""
        return self.stop_reason == StopReason.ENV_ERROR.value

    @property
    def scores(self) -> np.ndarray:
        """`(T,)` scores, NaN where a step has none."""
        return np.array([math.nan if step.score is None else step.score for step in self.steps], dtype=np.float64)

    @property
    def mean_score(self) -> float | None:
        """Mean of the scores that there are, the episode's score in `hindsight/auroc` and its like."""
        known = [step.score for step in self.steps if step.score is not None]
        return sum(known) / len(known) if known else None

    @property
    def task_key(self) -> str:
        """Equal for episodes of the same task; where a row of the dataset held a prompt alone, of the same prompt."""
        told = "" if self.task or self.seed is not None else self.instruction
        return json.dumps([self.task, self.seed, told], sort_keys=True, default=str)


@dataclass(frozen=True, slots=True)
class EventRecord:
    """One line of events.jsonl."""

    update: int | None
    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class RunData:
    """All that is known of a run.

    Args:
        name (`str`): of the directory.
        info (`Mapping[str, Any]`): run.json; empty where there is none.
        log (`tuple[Mapping[str, float], ...]`): entries with a `"step"`, finite numbers only.
        log_source (`str`, *optional*): the file that they are of.
        training, evaluation (`tuple[EpisodeRecord, ...]`): episodes in the order of the file.
        events (`tuple[EventRecord, ...]`): warnings.
        notes (`tuple[str, ...]`): what could not be read.
        files (`tuple[str, ...]`): what was found.
    """

    name: str
    info: Mapping[str, Any] = field(default_factory=dict)
    log: tuple[Mapping[str, float], ...] = ()
    log_source: str | None = None
    training: tuple[EpisodeRecord, ...] = ()
    evaluation: tuple[EpisodeRecord, ...] = ()
    events: tuple[EventRecord, ...] = ()
    notes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    def option(self, name: str) -> Any:
        """An option of the run; `None` where it is not known."""
        options = self.info.get("options")
        return options.get(name) if isinstance(options, Mapping) else None

    @property
    def verdicts(self) -> tuple[str, ...]:
        """The judge's words, as many as there are probabilities; numbered where the run does not name them."""
        most = max((len(step.verdict_probs) for e in self.training for step in e.steps), default=0)
        named = self.option("hindsight_verdicts")
        if isinstance(named, list) and len(named) >= most:
            return tuple(str(word) for word in named)
        return ("good", "bad") if most == 2 else tuple(f"verdict {k + 1}" for k in range(most))

    @property
    def utilities(self) -> tuple[float, ...] | None:
        """Of each verdict, as many as there are words; `None` where they are not known."""
        named = self.option("hindsight_utilities")
        if isinstance(named, list) and len(named) == len(self.verdicts) and all(_number(u) is not None for u in named):
            return tuple(float(u) for u in named)
        return (1.0, 0.0) if self.verdicts == ("good", "bad") else None


def read_run(run_dir: str | os.PathLike[str]) -> RunData:
    """Reads a run directory.

    Args:
        run_dir (`str` or `os.PathLike`): `output_dir` of the run.

    Raises:
        ValueError: there is no such directory, or none of a run's files is in it.
    """
    folder = Path(run_dir)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ValueError(f"run_dir={str(run_dir)!r} {what}; give the directory that was the run's output_dir")
    states = _trainer_states(folder)
    files = [name for name in RUN_FILES if (folder / name).is_file()]
    if not files and not states:
        holds = ", ".join(f"{name} ({what})" for name, what in RUN_FILES.items())
        raise ValueError(
            f"run_dir={str(run_dir)!r} holds no run; a run directory has {holds} or checkpoint-*/{TRAINER_STATE}: "
            "give the output_dir of a training run"
        )
    notes: list[str] = []
    texts: dict[str, str] = {}  # pages come again and again: one copy of each is kept
    log, source = _read_log(folder, states, notes)
    return RunData(
        name=folder.resolve().name,
        info=read_object(folder / RUN_NAME, notes),
        log=log,
        log_source=source,
        training=tuple(_episodes(folder / EPISODES_NAME, "training", notes, texts)),
        evaluation=tuple(_episodes(folder / EVALUATIONS_NAME, "evaluation", notes, texts)),
        events=tuple(_event(line) for line in read_lines(folder / EVENTS_NAME, notes)),
        notes=tuple(notes),
        files=(*files, *([source] if source not in files and source is not None else [])),
    )


def _trainer_states(folder: Path) -> list[Path]:
    """Of all checkpoints, the newest first."""
    found = [(re.fullmatch(r"checkpoint-(\d+)", path.parent.name), path) for path in folder.glob(f"*/{TRAINER_STATE}")]
    numbered = [(int(match[1]), path) for match, path in found if match]
    return [path for _, path in sorted(numbered, reverse=True)]


def _read_log(
    folder: Path, states: Sequence[Path], notes: list[str]
) -> tuple[tuple[Mapping[str, float], ...], str | None]:
    """metrics.jsonl, or, of a run that wrote none, the history in its newest readable checkpoint."""
    path = folder / METRICS_NAME
    if path.is_file():
        entries, source = list(read_lines(path, notes)), path.name
    else:
        for state in states:
            history = read_object(state, notes).get("log_history")
            if isinstance(history, list):
                entries, source = history, f"{state.parent.name}/{state.name}"
                break
        else:
            return (), None
    known = (_log_entry(entry) for entry in entries)
    return tuple(entry for entry in known if entry is not None), source


def _log_entry(entry: Any) -> Mapping[str, float] | None:
    if not isinstance(entry, Mapping):
        return None
    numbers = {str(name): _number(value) for name, value in entry.items() if not isinstance(value, bool)}
    finite = {name: value for name, value in numbers.items() if value is not None}
    return finite if "step" in finite else None


def read_object(path: Path, notes: list[str]) -> Mapping[str, Any]:
    """The object of a JSON file; empty, and told, where it is none, and empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes().decode("utf-8", "replace"))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        notes.append(f"{path.name} could not be read as a JSON object and was left out.")
        return {}
    return value


def read_lines(path: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    """The objects of a JSON lines file; other lines are left out and told.

    A run that was killed while it wrote leaves a torn last line, which is no fault of the file.
    """
    if not path.is_file():
        return
    bad: list[int] = []
    number, ends = 0, True
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            ends = line.endswith(b"\n")
            if not line.strip():
                continue
            try:
                value = json.loads(line.decode("utf-8", "replace"))
            except (ValueError, RecursionError):
                value = None
            if isinstance(value, dict):
                yield value
            else:
                bad.append(number)
    if bad and bad[-1] == number and not ends:
        bad.pop()
        notes.append(f"The last line of {path.name} is torn (the run was stopped while writing it) and was left out.")
    if bad:
        notes.append(f"{len(bad)} of {number} lines of {path.name} could not be read, the first is line {bad[0]}.")


def _episodes(path: Path, kind: Kind, notes: list[str], texts: dict[str, str]) -> Iterator[EpisodeRecord]:
    outside = 0
    for line in read_lines(path, notes):
        raw_turns = line.get("turns")
        turns = [turn for turn in raw_turns if isinstance(turn, Mapping)] if isinstance(raw_turns, list) else []
        outside += sum(not _in_unit_interval(turn.get("score")) for turn in turns)
        task = line.get("task")
        seed = _number(line.get("seed"))
        yield EpisodeRecord(
            kind=kind,
            split=_text(line.get("split"), texts),
            update=int(_number(line.get("update")) or 0),
            task=task if isinstance(task, Mapping) else {},
            seed=None if seed is None else int(seed),
            instruction=_text(line.get("instruction"), texts),
            steps=tuple(_step(turn, texts) for turn in turns),
            final_observation=_text(line.get("final_observation"), texts),
            episode_return=_number(line.get("return")) or 0.0,
            success=bool(line.get("success")),
            stop_reason=_text(line.get("stop_reason"), texts) or "unknown",
            error=None if line.get("error") is None else _text(line.get("error"), texts),
        )
    if outside:
        notes.append(f"{outside} scores of {path.name} are no numbers in [0, 1] and count as missing.")


def _step(turn: Mapping[str, Any], texts: dict[str, str]) -> StepRecord:
    score = _number(turn.get("score"))
    evaluation = turn.get("evaluation")
    return StepRecord(
        observation=_text(turn.get("observation"), texts),
        action=_text(turn.get("action"), texts),
        reward=_number(turn.get("reward")) or 0.0,
        action_valid=turn.get("action_valid") is not False,
        score=min(max(score, 0.0), 1.0) if score is not None and _in_unit_interval(score) else None,
        verdict_probs=_probabilities(turn.get("verdict_probs")),
        evaluation=None if evaluation is None else _text(evaluation, texts),
        shaping=_number(turn.get("shaping")),
        advantage=_number(turn.get("advantage")),
    )


def _probabilities(value: Any) -> tuple[float, ...]:
    """Of the K verdicts, K >= 2; empty where these are none."""
    numbers = [_number(p) for p in value] if isinstance(value, list) else []
    probs = tuple(p for p in numbers if p is not None and p >= 0)
    # bfloat16 probabilities are off by 4e-3.
    return probs if len(probs) == len(numbers) >= 2 and abs(sum(probs) - 1) < 1e-2 else ()


def _event(line: Mapping[str, Any]) -> EventRecord:
    update = _number(line.get("update"))
    return EventRecord(
        None if update is None else int(update), str(line.get("kind", "event")), _text(line.get("message"))
    )


def _number(value: Any) -> float | None:
    """A number that can be added up, or nothing: JSON as Python writes it has NaN and Infinity."""
    if not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if abs(number) < 1e100 else None  # NaN is not less either


def _in_unit_interval(value: Any, tolerance: float = 1e-6) -> bool:
    """Also where there is none: NaN is how some write that."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    number = _number(value)
    return number is not None and -tolerance <= number <= 1 + tolerance


def _text(value: Any, texts: dict[str, str] | None = None) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if texts is None else texts.setdefault(text, text)
