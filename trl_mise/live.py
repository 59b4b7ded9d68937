"""The live view of a run: a panel in a terminal, plain lines everywhere else."""

import contextlib
import sys
import time
import warnings
from typing import Any, Literal, TextIO

import transformers.trainer
from rich.console import Console
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import has_length

from .health import HindsightHealthWarning
from .live_frame import Frame
from .live_run import Clock, Event, RunProgress, duration, evaluation_line, plain_line
from .live_terminal import AboveThePanel, Panel, is_terminal

Mode = Literal["panel", "lines", "none"]


class LiveViewCallback(ProgressCallback):
    """Shows how a run is doing, on the main process only.

    In a terminal: a panel of a few lines with progress, ETA, the phase, success, the judge's numbers and what was said
    of it; what others print scrolls above. Elsewhere (a file, a pipe, a notebook): a line per log. It takes the place
    of transformers' progress bar and goes where that goes: `disable_tqdm=True` leaves it out, and
    `trainer.remove_callback(ProgressCallback)` removes it.

    Args:
        title (`str`): of the panel.
        is_main_process (`bool`): of an evaluation outside of a run; within one the trainer's state says it.
        console (`Console`, *optional*): a terminal in place of stderr.
        clock (`Callable[[], float]`): seconds of a clock that never goes back.
        refresh_per_second (`float`, *optional*): of the panel; `None` draws it only when something happens.
    """

    def __init__(
        self,
        title: str = "MISE",
        *,
        is_main_process: bool = True,
        console: Console | None = None,
        clock: Clock = time.monotonic,
        refresh_per_second: float | None = 4,
    ) -> None:
        super().__init__()
        self.title = title
        self.is_main_process = is_main_process
        self.console = console
        self.refresh_per_second = refresh_per_second
        self.run = RunProgress(clock)
        self._mode: Mode = "none"
        self._panel: Panel | None = None
        self._measures_updates = False
        self._num_batches = 0
        self._others_format: Any = None

    # What the trainer says

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()
        self.is_main_process = bool(state.is_world_process_zero)
        # TRL's GRPO counts optimizer steps.
        unit = "update" if hasattr(args, "num_total_batches") else "step"
        self.run.begin(state.global_step, state.max_steps, unit)
        self._measures_updates = False
        self._choose_mode()
        if self._mode == "none":
            return
        self._format_warnings()
        if self._mode == "panel":
            self._open(stays=True)
        else:
            goes_on = f", going on after {unit} {self.run.done}" if self.run.done else ""
            self._print(f"training: {self.run.total} {unit}s{goes_on}")

    def on_open(self) -> None:
        """Called by the trainer when an evaluation outside of a run begins."""
        self._choose_mode()
        if self._mode == "panel":
            self._open(stays=False)

    def on_phase(self, phase: str, detail: str = "") -> None:
        """Called by the trainer when a part of an update begins, and as it gets on."""
        self.run.phase, self.run.detail = phase, detail.strip()
        self._refresh()

    def on_event(self, kind: str, message: str, update: int) -> None:
        """Called by the trainer when there is something to be told; as a warning it is printed anyway."""
        self.run.events = [*self.run.events, Event(update, kind, message)]
        self._refresh()

    def on_step_end(self, args: Any, state: Any, control: Any, update: Any = None, **kwargs: Any) -> None:
        self.run.advance(state.global_step)
        if update is not None and self._mode == "panel" and update.accelerator.num_processes == 1:
            # Earlier than they are logged, which may be every tenth update only.
            self._measures_updates = True
            self.run.measure(update.metrics)
        self._refresh()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        numbers = {name: value for name, value in (logs or {}).items() if isinstance(value, int | float)}
        evaluated = self.run.evaluate(numbers)
        for split, measured in evaluated.items():
            if self._mode == "lines" or not self.run.is_training:
                self._print(evaluation_line(self.run, split, measured, self._dot))
        if numbers and not evaluated and "train_runtime" not in numbers:
            if not self._measures_updates:
                self.run.measure(numbers)
            if self._mode == "lines":
                self._print(plain_line(self.run, self._dot))
        self._refresh()

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._mode == "none" and not self.run.is_training:
            self._choose_mode()  # of GRPO outside of a run: no panel, since nobody would close it after an error
        self._num_batches += 1
        dataloader: Any = kwargs.get("eval_dataloader")
        total = f"/{len(dataloader)}" if has_length(dataloader) else ""
        self.on_phase("evaluation", f"{self._num_batches}{total} batches")

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._num_batches = 0

    def on_predict(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._num_batches = 0

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._end("done")

    def on_close(self) -> None:
        """Called by the trainer when a run or an evaluation is over, however it ended."""
        if self.run.is_training:
            self._end("stopped")
        self.close()

    # How it is shown

    def close(self) -> None:
        """Gives the terminal back."""
        panel, self._panel = self._panel, None
        if self._others_format is not None:
            if warnings.formatwarning == self._formatted:
                warnings.formatwarning = self._others_format
            self._others_format = None
        if panel is not None:
            panel.stop()

    def _end(self, how: str) -> None:
        self.run.end()
        self.run.phase, self.run.detail = how, ""
        if self._mode == "lines":
            of = f"{self.run.done}/{self.run.total} {self.run.unit}s"
            self._print(f"training {how}: {of} in {duration(self.run.elapsed)}")
        self.close()

    def _choose_mode(self) -> None:
        is_shown_already = isinstance(sys.stderr, AboveThePanel)  # another run, which this one is a part of
        if not self.is_main_process or is_shown_already:
            self._mode = "none"
        elif self.console is not None or (is_terminal(sys.stderr) and not in_notebook()):
            self._mode = "panel"
        else:
            self._mode = "lines"

    def _open(self, *, stays: bool) -> None:
        console = self.console or Console(file=sys.stderr)
        frame = Frame(self.run, self.title)
        self._panel = Panel(console, frame, stays=stays, refresh_per_second=self.refresh_per_second)
        self._panel.start()

    def _refresh(self) -> None:
        if self._panel is not None and self.refresh_per_second is None:
            self._panel.refresh()

    def _print(self, line: str) -> None:
        """A line that stays."""
        if self._mode == "none":
            return
        if self._panel is not None:
            self._panel.show(line)
        elif self.console is not None:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            with contextlib.suppress(OSError, ValueError):  # a log that nobody reads any more must not end a run
                print(line, file=self._stream, flush=True)

    @property
    def _stream(self) -> TextIO:
        # What a notebook shows of stderr looks like an error.
        return sys.stdout if in_notebook() else sys.stderr

    @property
    def _dot(self) -> str:
        encoding = getattr(self._stream, "encoding", None) or ""
        return "·" if encoding.lower().startswith("utf") else "|"

    def _format_warnings(self) -> None:
        """What is said of the judge is for the user: without the line of ours that says it."""
        self._others_format, warnings.formatwarning = warnings.formatwarning, self._formatted

    def _formatted(self, message: Any, category: Any, filename: str, lineno: int, line: str | None = None) -> str:
        if not issubclass(category, HindsightHealthWarning):
            text: str = self._others_format(message, category, filename, lineno, line)
            return text
        said = f"{category.__name__}: {message}"
        return f"\x1b[33m{said}\x1b[0m\n" if self._panel is not None else f"{said}\n"


def in_notebook() -> bool:
    """Whether a kernel runs this, whose output a browser shows: Jupyter, Colab."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


def show_live(trainer: Any) -> None:
    """Puts the live view in the place of transformers' progress bar, if that is shown at all."""
    if trainer.args.disable_tqdm:
        return
    callbacks = trainer.callback_handler.callbacks
    for callback in [c for c in callbacks if type(c) is transformers.trainer.DEFAULT_PROGRESS_CALLBACK]:
        trainer.remove_callback(callback)
    if not any(isinstance(callback, LiveViewCallback) for callback in callbacks):
        trainer.add_callback(LiveViewCallback(trainer._name, is_main_process=trainer.is_world_process_zero()))
