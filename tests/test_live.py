"""The live view as a callback: a panel, lines or nothing, and in the trainers."""

import io
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers.trainer
from datasets import Dataset
from rich.console import Console
from terminal import Screen
from test_grpo import config as grpo_config
from test_grpo import make as make_grpo
from test_live_run import Clock
from test_live_streams import Tty
from trainer_fakes import CoinEnv, make_trainer, tasks
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from trl_mise import HindsightHealthWarning, MISEGRPOTrainer
from trl_mise.callback import PhaseProgressCallback
from trl_mise.live import LiveViewCallback, show_live

# A panel


class View:
    """A live view on a terminal of our own, and the trainer's side of it."""

    def __init__(self, width: int = 80, is_main: bool = True) -> None:
        self.file = io.StringIO()
        self.clock = Clock()
        console = Console(file=self.file, width=width, height=30, force_terminal=True, color_system=None)
        self.callback = LiveViewCallback(console=console, clock=self.clock, refresh_per_second=None)
        self.args = SimpleNamespace(num_total_batches=4)
        self.state = SimpleNamespace(is_world_process_zero=is_main, global_step=0, max_steps=4)

    def fire(self, event: str, **kwargs: Any) -> None:
        getattr(self.callback, event)(self.args, self.state, None, **kwargs)

    def update(self, **metrics: float) -> None:
        self.clock.now += 2.0
        self.state.global_step += 1
        record = SimpleNamespace(metrics=metrics, accelerator=SimpleNamespace(num_processes=1))
        self.fire("on_step_end", update=record)

    @property
    def screen(self) -> Screen:
        screen = Screen(self.callback.console.width)  # type: ignore[union-attr]
        screen.feed(self.file.getvalue().replace("\n", "\r\n"))  # as a terminal's driver does
        return screen


@pytest.fixture
def view() -> Iterator[View]:
    view = View()
    yield view
    view.callback.close()


def test_a_run_from_its_beginning_to_its_end(view: View) -> None:
    view.fire("on_train_begin")
    assert not view.screen.shows_cursor and "0/4" in view.screen.text
    view.callback.on_phase("rollout", " 3/8 episodes")
    assert "rollout 3/8 episodes" in view.screen.text
    view.callback.on_phase("evaluate")
    assert "log-probs" in view.screen.text and "rollout" not in view.screen.text
    view.update(**{"env/success": 0.25})
    assert "1/4" in view.screen.text and "ETA 0:06" in view.screen.text and "success 0.25" in view.screen.text
    view.callback.on_event("health", "collapsed verdicts: the same of every step", 1)
    assert "! update 1: collapsed verdicts" in view.screen.text
    view.fire("on_log", logs={"eval_success": 0.75})
    assert "eval success 0.75" in view.screen.text
    view.fire("on_train_end")
    screen = view.screen
    assert screen.shows_cursor and screen.unknown == set()
    assert screen.text.count("╭") == screen.text.count("╰") == 1, "drawn over and over, it is there once"
    assert re.search(r"│ done +", screen.text) and "ETA" not in screen.text


def test_a_run_that_fails_gives_the_terminal_back(view: View) -> None:
    view.fire("on_train_begin")
    view.update()
    view.callback.on_close()
    assert view.screen.shows_cursor and "stopped" in view.screen.text
    written = view.file.getvalue()
    view.callback.on_phase("rollout")
    view.callback.on_close()
    assert view.file.getvalue() == written, "nothing is drawn after the end"


def test_numbers_of_updates_are_shown_before_they_are_logged(view: View) -> None:
    view.fire("on_train_begin")
    view.update(**{"env/success": 0.25})
    view.update(**{"env/success": 0.75})
    view.fire("on_log", logs={"env/success": 0.5, "train_loss": 1.0})  # their mean, later
    assert "success 0.75" in view.screen.text and view.callback.run.history["success"] == [0.25, 0.75]


def test_with_several_processes_the_logs_know_better(view: View) -> None:
    view.fire("on_train_begin")
    view.state.global_step = 1
    record = SimpleNamespace(metrics={"env/success": 0.0}, accelerator=SimpleNamespace(num_processes=2))
    view.fire("on_step_end", update=record)
    view.fire("on_log", logs={"env/success": 0.5})
    assert view.callback.run.history["success"] == [0.5]


@pytest.mark.parametrize("width", [44, 100])
def test_the_width_is_looked_up_whenever_it_is_drawn(view: View, width: int) -> None:
    view.fire("on_train_begin")
    before = len(view.file.getvalue())
    view.callback.console.width = width  # type: ignore[union-attr]
    view.callback.on_phase("rollout")
    screen = Screen(200)
    screen.feed(view.file.getvalue()[before:].replace("\n", "\r\n"))
    lines = screen.text.splitlines()
    assert ("╭" in lines[0]) == (width == 100)
    assert max(map(len, lines)) == (100 if width == 100 else len("0/4  0%  0:00  ETA -"))


def test_an_evaluation_outside_of_a_run_leaves_one_line(view: View) -> None:
    view.callback.on_open()
    view.callback.on_phase("evaluation", " 3/8 episodes")
    assert "evaluation 3/8 episodes" in view.screen.text
    view.callback.on_close()
    view.fire("on_log", logs={"eval_success": 0.5, "eval_episodes": 8.0})
    assert view.screen.text.strip() == "eval · success 0.50 · 8 episodes" and view.screen.shows_cursor


def test_other_processes_show_nothing() -> None:
    view = View(is_main=False)
    view.fire("on_train_begin")
    view.callback.on_phase("rollout")
    view.update(**{"env/success": 0.25})
    view.callback.on_event("health", "ill", 1)
    view.fire("on_log", logs={"env/success": 0.25, "eval_success": 0.5})
    view.fire("on_train_end")
    view.callback.on_close()
    assert view.file.getvalue() == ""
    outside = LiveViewCallback(is_main_process=False, console=view.callback.console, refresh_per_second=None)
    outside.on_open()
    outside.on_phase("evaluation")
    outside.on_close()
    assert view.file.getvalue() == ""


def test_a_terminal_that_is_gone_does_not_end_a_run() -> None:
    class Gone(io.StringIO):
        is_gone = False

        def write(self, text: str) -> int:
            if self.is_gone:
                raise OSError(5, "Input/output error")
            return super().write(text)

    view = View()
    file = Gone()
    view.callback.console = Console(file=file, width=80, force_terminal=True)
    stdout, stderr = sys.stdout, sys.stderr
    view.fire("on_train_begin")
    file.is_gone = True
    view.callback.on_phase("rollout")
    view.update(**{"env/success": 0.5})
    view.fire("on_train_end")
    assert (sys.stdout, sys.stderr) == (stdout, stderr)


def test_what_is_said_of_the_judge_is_printed_without_our_line_of_code(view: View) -> None:
    original = warnings.formatwarning
    view.fire("on_train_begin")
    line = warnings.formatwarning("update 3: ill judge", HindsightHealthWarning, "callback.py", 7)
    other = warnings.formatwarning("other", UserWarning, "other.py", 7)
    assert line == "\x1b[33mHindsightHealthWarning: update 3: ill judge\x1b[0m\n"
    assert other == original("other", UserWarning, "other.py", 7)
    view.fire("on_train_end")
    assert warnings.formatwarning is original


# Which way it is shown


def use_tty(monkeypatch: pytest.MonkeyPatch) -> Tty:
    """A terminal as stderr; in the test itself, since pytest puts its own there before a test begins."""
    stream = Tty()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    return stream


def shown_by(callback: LiveViewCallback) -> None:
    """A run of one update."""
    args, state = SimpleNamespace(num_total_batches=1), SimpleNamespace(is_world_process_zero=True)
    state.global_step, state.max_steps = 0, 1
    callback.on_train_begin(args, state, None)
    state.global_step = 1
    callback.on_step_end(args, state, None)
    callback.on_log(args, state, None, logs={"env/success": 0.5})
    callback.on_train_end(args, state, None)
    callback.on_close()


def test_a_terminal_has_a_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = use_tty(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    shown_by(LiveViewCallback(refresh_per_second=None))
    assert " MISE " in terminal.getvalue() and "\x1b[3" not in terminal.getvalue()


def test_a_terminal_that_cannot_move_its_cursor_has_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = use_tty(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    shown_by(LiveViewCallback())
    assert "\x1b" not in terminal.getvalue() and "update 1/1" in terminal.getvalue()


def test_a_pipe_has_lines_whatever_is_said_about_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    shown_by(LiveViewCallback(clock=Clock()))
    # A StringIO says nothing of its encoding: no dots.
    assert stream.getvalue() == (
        "training: 1 updates\nupdate 1/1 | success 0.50 | 0.000 s/update | ETA 0:00\n"
        "training done: 1/1 updates in 0:00\n"
    )


def test_a_notebook_has_lines_that_do_not_look_like_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = use_tty(monkeypatch)
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    shown_by(LiveViewCallback())
    assert terminal.getvalue() == "" and "update 1/1" in capsys.readouterr().out


def test_ipython_in_a_terminal_is_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = use_tty(monkeypatch)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace()))
    shown_by(LiveViewCallback(refresh_per_second=None))
    assert " MISE " in terminal.getvalue()


def test_a_run_within_a_run_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = use_tty(monkeypatch)
    outer, inner = LiveViewCallback("OUTER", refresh_per_second=None), LiveViewCallback("INNER")
    state = SimpleNamespace(is_world_process_zero=True, global_step=0, max_steps=2)
    outer.on_train_begin(SimpleNamespace(num_total_batches=2), state, None)
    shown_by(inner)
    outer.on_train_end(None, state, None)
    assert "OUTER" in terminal.getvalue() and "INNER" not in terminal.getvalue()
    assert "update 1/1" not in terminal.getvalue()


# In the trainers


def kinds(trainer: Any) -> list[type]:
    return [type(callback) for callback in trainer.callback_handler.callbacks]


def test_it_takes_the_place_of_the_progress_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Users(ProgressCallback):
        """One of the user's own, who wants to keep it."""

    trainer = make_trainer(tmp_path, disable_tqdm=False, callbacks=[Users()])
    assert kinds(trainer).count(LiveViewCallback) == 1 and Users in kinds(trainer)
    assert ProgressCallback not in kinds(trainer) and PrinterCallback not in kinds(trainer)
    show_live(trainer)
    assert kinds(trainer).count(LiveViewCallback) == 1

    class NotebookProgress(TrainerCallback):
        pass

    monkeypatch.setattr(transformers.trainer, "DEFAULT_PROGRESS_CALLBACK", NotebookProgress)
    trainer = make_trainer(tmp_path, disable_tqdm=False)
    assert NotebookProgress not in kinds(trainer) and LiveViewCallback in kinds(trainer)


def test_it_can_be_left_out_taken_away_and_brought(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, disable_tqdm=True)
    assert LiveViewCallback not in kinds(trainer) and PrinterCallback in kinds(trainer)
    trainer = make_trainer(tmp_path, disable_tqdm=False)
    trainer.remove_callback(ProgressCallback)
    assert LiveViewCallback not in kinds(trainer)
    own = PhaseProgressCallback("my run")
    trainer = make_trainer(tmp_path, disable_tqdm=False, callbacks=[own])
    assert [c for c in trainer.callback_handler.callbacks if isinstance(c, LiveViewCallback)] == [own]


def lines_of(text: str) -> list[str]:
    assert "\r" not in text and "\x1b" not in text
    return [line for line in text.splitlines() if line.startswith(("training", "update", "step", "eval"))]


def test_plain_lines_of_a_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer(
        tmp_path,
        disable_tqdm=False,
        environment_factory=CoinEnv,
        eval_dataset=tasks(4),
        eval_strategy="steps",
        eval_steps=2,
        total_episodes=32,
        logging_steps=2,
    )
    trainer.evaluate()
    trainer.train()
    captured = capfd.readouterr()
    lines = lines_of(captured.err)
    number = r"\d+\.\d+"
    patterns = [
        r"eval · success 0\.50 · return 0\.50 · 4 episodes",
        r"training: 4 updates",
        rf"update 2/4 · 16 episodes · success 0\.50 · return 0\.50 · auroc {number} · {number} s/update · ETA \d:\d\d",
        r"eval after update 2 · success 0\.50 · return 0\.50 · 4 episodes",
        rf"update 4/4 · 32 episodes · success 0\.50 .* · eval success 0\.50 · {number} s/update · ETA 0:00",
        r"eval after update 4 · success 0\.50 · return 0\.50 · 4 episodes",
        r"training done: 4/4 updates in \d:\d\d",
    ]
    assert len(lines) == len(patterns)
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line), line
    assert captured.out == "", "no dictionary beside it"


class Fails(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            raise ValueError("the environment is on strike")


def test_plain_lines_of_a_run_that_fails(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer(tmp_path, disable_tqdm=False, callbacks=[Fails()])
    with pytest.raises(ValueError, match="on strike"):
        trainer.train()
    assert lines_of(capfd.readouterr().err)[-1].startswith("training stopped: 1/2 updates in ")


class Complains(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, update: Any = None, **kwargs: Any) -> None:
        if state.global_step == 1:
            update.warnings.append("ill judge")
            warnings.warn("update 1: ill judge", HindsightHealthWarning, stacklevel=1)


def test_a_health_warning_is_one_plain_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer(tmp_path, disable_tqdm=False, callbacks=[Complains()])
    with warnings.catch_warnings():  # pytest's own would keep it from being printed
        warnings.simplefilter("always", HindsightHealthWarning)
        warnings.showwarning = lambda *args: sys.stderr.write(warnings.formatwarning(*args[:4]))
        trainer.train()
    told = [line for line in capfd.readouterr().err.splitlines() if "ill judge" in line]
    assert told == ["HindsightHealthWarning: update 1: ill judge"]


def test_steps_of_grpo(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trainer = make_grpo(MISEGRPOTrainer, grpo_config(tmp_path, disable_tqdm=False, logging_steps=2))
    phases: list[str] = []
    view = next(c for c in trainer.callback_handler.callbacks if isinstance(c, LiveViewCallback))
    inner = view.on_phase
    view.on_phase = lambda phase, detail="": (phases.append(phase), inner(phase, detail))  # type: ignore[assignment]
    trainer.train()
    lines = lines_of(capfd.readouterr().err)
    assert lines[0] == "training: 6 steps" and lines[-1].startswith("training done: 6/6 steps in ")
    assert [line.split(" · ")[0] for line in lines[1:-1]] == ["step 2/6", "step 4/6", "step 6/6"]
    assert all(" · success " in line and " s/step · ETA " in line for line in lines[1:-1])
    assert phases == ["rollout", "scoring", "update", "calibrate"] * 3


def test_an_evaluation_of_grpo_outside_of_a_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    prompts = Dataset.from_dict({"prompt": ["say 1", "say 2"]})
    config = grpo_config(tmp_path, disable_tqdm=False, per_device_eval_batch_size=4)
    make_grpo(MISEGRPOTrainer, config, eval_dataset=prompts).evaluate()
    (line,) = lines_of(capfd.readouterr().err)
    assert re.fullmatch(r"eval · reward \d\.\d\d", line)
