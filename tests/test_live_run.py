"""What is known of a run while it goes on, and how it looks at any width."""

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from trl_mise.live_frame import Frame
from trl_mise.live_run import Event, RunProgress, duration, evaluation_line, pace, plain_line, sparkline, trend


class Clock:
    """Time that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def run_of(updates: int = 12, total: int = 60) -> tuple[RunProgress, Clock]:
    """`updates` of 2 seconds each, the last just over."""
    clock = Clock()
    run = RunProgress(clock)
    run.begin(0, total)
    for update in range(1, updates + 1):
        clock.now += 2.0
        run.advance(update)
        run.measure({"env/success": update / 20, "env/return": 0.35, "hindsight/auroc": 0.823, "episode": 32 * update})
    return run, clock


# What is known


def test_the_rest_takes_as_long_as_the_last_updates_did() -> None:
    run, clock = run_of(20)
    assert run.seconds_per_update == 2.0 and run.eta == 80.0
    for update in range(21, 31):  # ten slow ones, and the fast ones are forgotten
        clock.now += 5.0
        run.advance(update)
    assert run.seconds_per_update == 5.0 and run.eta == 150.0
    clock.now += 4.0
    assert run.eta == 146.0, "while an update goes on, its share of the time passes"
    clock.now += 1000.0
    assert run.eta == 0.0
    assert run.elapsed == 20 * 2 + 10 * 5 + 4 + 1000


def test_before_the_first_update_is_over_nothing_is_foretold() -> None:
    run, clock = run_of(0)
    clock.now += 3.0
    assert run.eta is None and run.seconds_per_update is None and run.elapsed == 3.0


def test_a_resumed_run_counts_only_its_own_time() -> None:
    clock = Clock()
    run = RunProgress(clock)
    run.begin(50, 60)
    clock.now += 3.0
    run.advance(51)
    assert run.eta == 27.0


def test_several_steps_at_once() -> None:
    run, clock = run_of(0)
    clock.now += 8.0
    run.advance(4)
    run.advance(4)  # told twice
    assert run.done == 4 and run.seconds_per_update == 2.0


def test_the_clock_stops_at_the_end() -> None:
    run, clock = run_of(12)
    run.end()
    clock.now += 100.0
    assert run.elapsed == 24.0 and not run.is_training


def test_a_line_about_a_run() -> None:
    run, _ = run_of(12)
    run.evaluate({"eval_success": 0.4, "eval_return": 0.42, "eval_episodes": 128.0})
    assert plain_line(run) == (
        "update 12/60 · 384 episodes · success 0.60 · return 0.35 · auroc 0.82 · eval success 0.40 · 2.0 s/update · "
        "ETA 1:36"
    )
    run.measure({"hindsight/auroc": float("nan")})
    assert "auroc 0.82" in plain_line(run), "what could not be measured leaves what was"


def test_a_line_about_an_evaluation() -> None:
    run, _ = run_of(12)
    found = run.evaluate({"eval_success": 0.4, "eval_return": 0.42, "eval_invalid_action_rate": 0.1, "epoch": 1.0})
    assert evaluation_line(run, "eval", found["eval"]) == "eval after update 12 · success 0.40 · return 0.42"
    before = RunProgress()
    assert evaluation_line(before, "eval", {"success": 0.4, "episodes": 8.0}) == "eval · success 0.40 · 8 episodes"


def test_which_numbers_are_of_evaluations() -> None:
    run = RunProgress()
    of_training = {
        "env/success": 0.5,
        "env/return": 0.5,
        "rewards/letters/mean": 1.0,
        "reward": 1.0,
        "reward_std": 1.0,
    }
    assert run.evaluate(of_training) == {}
    assert run.evaluate({"eval_easy_success": 0.5, "eval_hard_success": 0.0, "eval_reward": 1.0}) == {
        "eval_easy": {"success": 0.5},
        "eval_hard": {"success": 0.0},
        "eval": {"reward": 1.0},
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0:00"), (59.9, "0:59"), (102, "1:42"), (7384, "2:03:04"), (3 * 86400 + 7384, "3d 2:03:04")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0213, "0.021 s"), (0.3, "0.30 s"), (2.11, "2.1 s"), (215.4, "215 s")]
)
def test_paces(seconds: float, text: str) -> None:
    assert pace(seconds) == text


@pytest.mark.parametrize(
    ("values", "way"),
    [
        ([], 0),
        ([0.5], 0),
        ([0.1, 0.2], 1),
        ([0.5, 0.5, 0.51], 0),
        ([0.9, 0.1, 0.1, 0.1, 0.3, 0.3, 0.3], 1),
        ([0.0, 0.6, 0.6, 0.6, 0.6, 0.6, 0.3, 0.7, 0.7, 0.3, 0.9], 0),
        ([0.0, 0.6, 0.6, 0.6, 0.6, 0.6, 0.3, 0.7, 0.5, 0.3, 0.7], -1),
    ],
)
def test_which_way_it_goes(values: list[float], way: int) -> None:
    assert trend(values) == way


def test_bars_of_a_fixed_scale() -> None:
    assert sparkline([0.0, 0.13, 0.5, 1.0], 16) == "▁▂▅█"
    assert sparkline([0.0] * 50 + [1.0] * 50, 4) == "▁▁██"
    assert sparkline([-3.0, 7.0], 4) == "▁█"
    assert len(sparkline([0.5] * 17, 16)) == 16


# How it looks


def drawn(run: RunProgress, width: int, encoding: str = "utf-8") -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    console = Console(file=file, width=width, height=30, force_terminal=True, color_system=None)
    console.print(Frame(run, "MISE"), end="")
    file.flush()
    return file.buffer.getvalue().decode(encoding).splitlines()  # type: ignore[attr-defined]


def busy_run() -> RunProgress:
    run, _ = run_of(12)
    run.phase, run.detail = "rollout", "37/96 episodes"
    run.measure({"hindsight/gate": 1.0, "objective/kl": 0.021})
    run.evaluate({"eval_success": 0.4})
    run.events = [Event(n, "health", "collapsed verdicts: " + "the same of every step " * 12) for n in (3, 5, 7, 9)]
    return run


def test_a_frame() -> None:
    run = busy_run()
    run.events = run.events[:1]
    assert drawn(run, 80) == [
        "╭─ MISE ───────────────────────────────────────────────────────────────────────╮",
        "│ ━━━━━━━━━╸                                        12/60  20%  0:24  ETA 1:36 │",
        "│ rollout 37/96 episodes                            384 episodes  2.0 s/update │",
        "│ success 0.60 ↑ ▁▁▂▂▃▃▃▄▄▅▅▅   return 0.35   eval success 0.40                │",
        "│ auroc 0.82   gate 1.00   kl 0.02                                             │",
        "│ ! update 3: collapsed verdicts: the same of every step the same of every     │",
        "│   step the same of every step the same of every step the same of every …     │",
        "╰──────────────────────────────────────────────────────────────────────────────╯",
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("width", [*range(36, 64, 3), 40, 80, 100, 200])
def test_it_fits(width: int, encoding: str) -> None:
    lines = drawn(busy_run(), width, encoding)
    assert max(map(cell_len, lines)) <= min(width, 100)
    text = " ".join(lines)
    for part in ("12/60", "ETA 1:36", "rollout", "success", "0.60", "auroc", "update 9"):
        assert part in text
    assert "update 3:" not in text, "the last three events"
    assert len(lines) <= 13
    corners = "╭" in text or "+-" in text
    assert corners == (width >= 60)


def test_an_evaluation_outside_of_a_run_is_one_line() -> None:
    run = RunProgress()
    run.phase, run.detail = "evaluation", "3/16 episodes"
    assert drawn(run, 40) == ["evaluation 3/16 episodes"]
