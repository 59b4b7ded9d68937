"""What a run leaves in its `output_dir` beside weights and episodes: what it was, its logs, its events, its timings.

    run.json        what was trained with what, and how it ended
    metrics.jsonl   a line per log, as in the trainer's `state.log_history`
    events.jsonl    a line per health warning and skipped step

Written line by line, so that a run that dies leaves what it has seen; a run that goes on from a checkpoint first takes
back what came after that. The episodes are [`TrajectoryLog`]'s; `trl-mise report` reads all of it.
"""

import functools
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from . import versions
from .callback import UpdateRecord
from .card_facts import count_parameters, num_rows
from .notices import warn_once
from .run_data import EVENTS_NAME, METRICS_NAME, RUN_NAME, read_lines, read_object

SCHEMA = 1


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run before it starts.

    Args:
        trainer (`str`): name of the trainer's class.
        model (`str`): name or path of the policy that the run began with.
        num_parameters, num_trainable_parameters (`int`): of the policy.
        device (`str`): what computes.
        num_processes (`int`): of the run.
        environment (`str`, *optional*): what makes the environments.
        train_tasks (`int`): rows of the training dataset.
        eval_tasks (`int`, *optional*): rows of the evaluation dataset(s).
        batch_size (`int`): episodes of an update.
        options (`Mapping`): the configuration.
    """

    trainer: str
    model: str
    num_parameters: int
    num_trainable_parameters: int
    device: str
    num_processes: int
    environment: str | None
    train_tasks: int
    eval_tasks: int | None
    batch_size: int
    options: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, trainer: Any, policy: Any, environment: Any, batch_size: int) -> "RunFacts":
        """Asks a trainer for them.

        Args:
            trainer (`Trainer`): the trainer.
            policy (`nn.Module`): the policy.
            environment (`Callable`, *optional*): makes the environments.
            batch_size (`int`): episodes of an update.
        """
        num_trainable, num_all = count_parameters(policy)
        return cls(
            trainer=type(trainer).__name__,
            model=str(getattr(policy.config, "_name_or_path", "") or type(policy).__name__),
            num_parameters=num_all,
            num_trainable_parameters=num_trainable,
            device=_device_name(trainer.accelerator.device),
            num_processes=trainer.accelerator.num_processes,
            environment=None if environment is None else described(environment),
            train_tasks=num_rows(trainer.train_dataset) or 0,
            eval_tasks=num_rows(trainer.eval_dataset),
            batch_size=batch_size,
            options=trainer.args.to_dict(),  # tokens are masked in it
        )


def described(factory: Any) -> str:
    """`WebShopEnv(split='train')` of what makes environments: a class, a function, a partial of one."""
    if isinstance(factory, functools.partial):
        given = [repr(value) for value in factory.args] + [f"{name}={v!r}" for name, v in factory.keywords.items()]
        return f"{described(factory.func)}({', '.join(given)})"
    if isinstance(factory, Mapping):  # several, by the name that a row asks for
        return ", ".join(f"{name}: {described(one)}" for name, one in factory.items())
    return str(getattr(factory, "__name__", type(factory).__name__))


def _device_name(device: Any) -> str:
    if device.type != "cuda":
        return str(device.type)
    import torch

    return torch.cuda.get_device_name(device)


class RunRecorder(TrainerCallback):
    """Keeps `run.json`, `metrics.jsonl` and `events.jsonl`, on the main process.

    Nothing is written before training begins: a trainer that is made to evaluate only leaves the record of an earlier
    run alone.

    Args:
        facts ([`RunFacts`]): what is known before.
        now (`Callable`, *optional*): gives the time, for tests.
    """

    def __init__(self, facts: RunFacts, now: Callable[[], datetime] | None = None) -> None:
        self.facts = facts
        self._now = now or functools.partial(datetime.now, timezone.utc)
        self._folder: Path | None = None
        self._record: dict[str, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the record, or takes that of the interrupted run up again."""
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        known = read_object(folder / RUN_NAME, []) if state.global_step else {}
        self._record = {
            "schema": SCHEMA,
            "status": "running",
            "started": known.get("started") or self._time(),
            "ended": None,
            "error": None,
            **{name: getattr(self.facts, name) for name in self.facts.__dataclass_fields__},
            "total_updates": state.max_steps,
            "versions": versions.report(),
            "resumed": [*known.get("resumed", []), *self._resumption(state)],
        }
        self._folder = folder
        self._write_record()
        so_far = [entry for entry in state.log_history if entry.get("step", 0) <= state.global_step]
        _write_lines(folder / METRICS_NAME, so_far)
        events = read_lines(folder / EVENTS_NAME, []) if state.global_step else ()
        _write_lines(folder / EVENTS_NAME, [event for event in events if event.get("update", 0) <= state.global_step])

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Adds what was logged."""
        if self._folder is not None and state.log_history:
            with _spared():
                _write_lines(self._folder / METRICS_NAME, state.log_history[-1:], mode="a")

    def on_event(self, kind: str, message: str, update: int) -> None:
        """Adds what happened: a health warning, a step that was not taken."""
        if self._folder is not None:
            event = {"update": update, "kind": kind, "message": message}
            with _spared():
                _write_lines(self._folder / EVENTS_NAME, [event], mode="a")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Says that the run came to its end, or was stopped before."""
        self._end("finished" if state.global_step >= state.max_steps else "stopped")

    def on_failure(self, error: BaseException) -> None:
        """Says what ended the run."""
        self._end("stopped" if isinstance(error, KeyboardInterrupt) else "failed", f"{type(error).__name__}: {error}")

    def _end(self, status: str, error: str | None = None) -> None:
        if self._folder is not None:
            self._record.update(status=status, ended=self._time(), error=error)
            with _spared():
                self._write_record()

    def _resumption(self, state: Any) -> list[dict[str, Any]]:
        return [{"update": state.global_step, "at": self._time()}] if state.global_step else []

    def _time(self) -> str:
        return self._now().isoformat(timespec="seconds")

    def _write_record(self) -> None:
        """Whole or not at all: a report may read it at any moment."""
        assert self._folder is not None
        path = self._folder / RUN_NAME
        aside = path.with_suffix(".tmp")
        text = json.dumps(finite(self._record), indent=1, ensure_ascii=False, default=str)
        aside.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        os.replace(aside, path)


class PhaseTimer(TrainerCallback):
    """Seconds that each phase of an update takes, as `time/<phase>` among its metrics.

    `time/other` is what lies between the phases: logging, saving, callbacks. What follows the end of an update, such
    as an evaluation (`time/evaluation`), is counted with the next one.

    Args:
        clock (`Callable`, *optional*): gives seconds, for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._phase, self._since = "other", clock()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts afresh."""
        self._seconds = {}
        self._phase, self._since = "other", self._clock()

    def on_phase(self, phase: str, detail: str = "") -> None:
        """Called by the trainer when a phase begins, and on its way."""
        if phase != self._phase:
            self._switch(phase)

    def on_step_end(
        self, args: Any, state: Any, control: Any, update: UpdateRecord | None = None, **kwargs: Any
    ) -> None:
        """Puts the seconds among the update's metrics."""
        self._switch("other")
        if update is not None:
            update.metrics.update({f"time/{phase}": seconds for phase, seconds in self._seconds.items()})
        self._seconds = {}

    def _switch(self, phase: str) -> None:
        now = self._clock()
        self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now


@contextmanager
def _spared() -> Iterator[None]:
    """A full disk is the checkpoints' business, which say what to do; a missing line is not worth a run."""
    try:
        yield
    except OSError as error:
        warn_once(f"the record of this run is incomplete: {error}")


def finite(value: Any) -> Any:
    """JSON values, with `None` for numbers that are none: browsers and other readers know no NaN."""
    if isinstance(value, Mapping):
        return {str(name): finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _write_lines(path: Path, entries: Iterable[Mapping[str, Any]], mode: str = "w") -> None:
    lines = [json.dumps(finite(entry), ensure_ascii=False, default=_plain) + "\n" for entry in entries]
    with open(path, mode, encoding="utf-8", errors="backslashreplace") as file:
        file.write("".join(lines))


def _plain(value: Any) -> Any:
    """NumPy's and torch's numbers stay numbers."""
    return finite(value.item()) if hasattr(value, "item") else str(value)
