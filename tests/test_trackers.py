"""Sample episodes in the trackers: which ones, what of them, and that no tracker ends a run."""

import json
import sys
import warnings
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tensorboard import plugin_util
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_grpo import config as grpo_config
from test_grpo import make as make_grpo
from trainer_fakes import CoinEnv, make_trainer

from trl_mise import MISEGRPOTrainer
from trl_mise.judge_plots import draw_judge, reliability, scores_by_step
from trl_mise.trackers import (
    COLUMNS,
    LONGEST,
    Sample,
    SampleEpisodesCallback,
    TensorBoard,
    Trackio,
    Wandb,
    choose,
    episode_rows,
    markdown_table,
    step_scores,
)
from trl_mise.types import HindsightScores, StopReason, Trajectory, Turn

HOSTILE = [
    "a | b |\n| --- | --- |\n| new | row",
    "<script>alert(1)</script> <b>bold</b> &amp; &#124;",
    "[link](https://example.org) ![image](x.png) **bold** _it_ ~~no~~ `code` \\| \\",
    "# heading $x^2$ {curly}",
    "1. one",
    "   ",
    "ünïcode 你好 🎉",
]


def episode(won: bool, actions: Sequence[str] = ("take lamp", "go"), observation: str = "a room") -> Trajectory:
    turns = [
        Turn(observation, action, float(won and i == len(actions) - 1), (i, i + 1), result_end=i + 1)
        for i, action in enumerate(actions)
    ]
    return Trajectory((0,) * len(actions), tuple(turns), StopReason.TERMINATED, task={"seed": 7, "split": "train"})


def scores_of(trajectories: Sequence[Trajectory], value: float = 0.75) -> HindsightScores:
    counts = tuple(t.num_steps for t in trajectories)
    scores = np.full(sum(counts), value)
    return HindsightScores(scores, np.stack([scores, 1 - scores], axis=1), counts)


# Which episodes


@pytest.mark.parametrize(
    ("won", "lost", "count", "expected"),
    [(8, 8, 4, (2, 2)), (8, 8, 5, (3, 2)), (1, 9, 4, (1, 3)), (9, 0, 4, (4, 0)), (0, 2, 4, (0, 2)), (8, 8, 1, (1, 0))],
)
def test_half_of_them_won_where_there_are_such(won: int, lost: int, count: int, expected: tuple[int, int]) -> None:
    episodes = [episode(True)] * won + [episode(False)] * lost
    chosen = choose(episodes, count, (0, 1))
    outcomes = [episodes[i].success for i in chosen]
    assert (sum(outcomes), len(outcomes) - sum(outcomes)) == expected
    assert len(set(chosen)) == len(chosen) and outcomes == sorted(outcomes, reverse=True)


def test_the_choice_comes_from_the_seed_and_the_update() -> None:
    episodes = [episode(i % 2 == 0) for i in range(64)]
    assert choose(episodes, 6, (3, 1)) == choose(episodes, 6, (3, 1))
    assert choose(episodes, 6, (3, 1)) != choose(episodes, 6, (3, 2)) != choose(episodes, 6, (4, 2))


# What of them


def test_a_row_for_every_step() -> None:
    trajectories = [episode(False), episode(True, ["look", "take\n\nlamp"])]
    scores = scores_of(trajectories)
    scores.scores[2:] = 0.25, np.nan
    scores.verdict_probs[2] = 0.25, 0.75
    rows = episode_rows(5, trajectories, scores, ("good", "bad"), [1])
    task = "seed=7, split=train"
    assert rows == [
        [5, task, 0, "a room", "look", 0.25, "good 0.25, bad 0.75", 0.0, 1.0, True],
        [5, task, 1, "a room", "take lamp", None, "", 1.0, 1.0, True],
    ]
    assert all(len(row) == len(COLUMNS) for row in rows)


def test_without_a_judge_there_are_no_scores() -> None:
    rows = episode_rows(1, [episode(True)], None, (), [0])
    assert [row[5:7] for row in rows] == [[None, ""]] * 2


def test_long_texts_are_shortened() -> None:
    (row,) = episode_rows(1, [episode(True, ["go"], "word " * 1000)], None, (), [0])
    assert len(row[3]) == LONGEST and row[3].endswith("…")


class Cells(HTMLParser):
    """What a browser makes of a page: its cells, and everything that is no part of a table."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.others: set[str] = set()
        self._open = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._open = True
        elif tag not in ("table", "thead", "tbody"):
            self.others.add(tag)

    def handle_endtag(self, tag: str) -> None:
        self._open = self._open and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._open:
            self.rows[-1][-1] += data


def test_texts_stay_in_their_cells() -> None:
    """As TensorBoard itself renders it: no text opens a cell, a link or an element."""
    trajectories = [episode(True, [text], f"{text} seen") for text in HOSTILE]
    rows = episode_rows(1, trajectories, None, (), range(len(HOSTILE)))
    shown = Cells(plugin_util.markdown_to_safe_html(markdown_table(COLUMNS, rows)))
    assert shown.others == set()
    assert shown.rows[0] == list(COLUMNS) and len(shown.rows) == 1 + len(HOSTILE)
    for cells, text in zip(shown.rows[1:], HOSTILE, strict=True):
        flat = " ".join(text.split())
        assert len(cells) == len(COLUMNS)
        assert cells[4] == flat and cells[3] == f"{flat} seen".strip()


# Plots


def judged() -> list[tuple[np.ndarray, bool]]:
    return [(np.array([0.9, 0.7]), True), (np.array([0.7, np.nan, 0.1]), True), (np.array([0.2]), False)]


def test_scores_by_step_are_means_over_those_who_got_so_far() -> None:
    steps, means = scores_by_step(judged(), True)
    assert steps.tolist() == [0, 1, 2] and means == pytest.approx([0.8, 0.7, 0.1])
    assert [values.tolist() for values in scores_by_step(judged(), False)] == [[0], [0.2]]
    assert [len(values) for values in scores_by_step([], True)] == [0, 0]
    unread = [(np.array([np.nan, 0.5]), True)]
    assert [values.tolist() for values in scores_by_step(unread, True)] == [[1], [0.5]]


def test_reliability_by_bins_of_equal_width() -> None:
    episodes = [
        (np.array([0.82]), True),
        (np.array([0.88]), False),
        (np.array([1.0]), True),
        (np.array([0.05]), False),
    ]
    means, shares, counts = reliability([*episodes, (np.array([np.nan]), True)])
    assert means == pytest.approx([0.05, 0.85, 1.0])
    assert shares.tolist() == [0.0, 0.5, 1.0] and counts.tolist() == [1, 2, 1]


def test_scores_of_steps_are_the_readable_ones() -> None:
    assert step_scores(judged(), True).tolist() == [0.9, 0.7, 0.7, 0.1]
    assert step_scores([], True).tolist() == []


@pytest.mark.parametrize("episodes", [judged(), judged()[:1], [(np.array([np.nan]), True)], []])
def test_a_picture_of_whatever_there_is(episodes: Any) -> None:
    picture = draw_judge(episodes)
    assert picture is not None and picture.dtype == np.uint8 and picture.shape[2] == 3
    assert 0 < (picture < 128).mean() < 0.5, "something is drawn on white"


def test_without_matplotlib_there_is_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert draw_judge(judged()) is None


# The callback


class Kept:
    """A tracker that keeps what it is given, or fails."""

    def __init__(self, name: str = "kept", fails: bool = False) -> None:
        self.name, self.fails = name, fails
        self.samples: list[Sample] = []

    def log(self, sample: Sample) -> None:
        self.samples.append(sample)
        if self.fails:
            raise ConnectionError("the network is down")


def run_updates(callback: SampleEpisodesCallback, updates: int, *, main: bool = True, judge: bool = True) -> None:
    state = SimpleNamespace(is_world_process_zero=main, max_steps=updates, global_step=0)
    callback.on_train_begin(None, state, None)
    for number in range(1, updates + 1):
        state.global_step = number
        trajectories = [episode(i % 2 == 0) for i in range(8)]
        record = SimpleNamespace(
            number=number,
            trajectories=trajectories,
            scores=scores_of(trajectories, number / 100) if judge else None,
            hindsight=SimpleNamespace(verdicts=("good", "bad")) if judge else None,
        )
        callback.on_step_end(None, state, None, update=record)
        callback.on_step_end(None, state, None)  # GRPO's optimizer steps within a batch


def test_the_first_every_tenth_and_the_last_update() -> None:
    kept = Kept()
    run_updates(SampleEpisodesCallback([kept], 4), 25)
    assert [sample.step for sample in kept.samples] == [1, 10, 20, 25]
    assert [len(sample.rows) for sample in kept.samples] == [8] * 4
    of_all = kept.samples[1].scores
    assert {name: len(values) for name, values in of_all.items()} == {"judge/scores_won": 80, "judge/scores_lost": 80}
    assert set(np.round(of_all["judge/scores_won"], 2)) == {n / 100 for n in range(1, 11)}
    assert all(sample.plots is not None for sample in kept.samples)


def test_episodes_without_a_judge_have_no_plots() -> None:
    kept = Kept()
    run_updates(SampleEpisodesCallback([kept], 2), 1, judge=False)
    assert kept.samples[0].scores == {} and kept.samples[0].plots is None and len(kept.samples[0].rows) == 4


def test_other_processes_log_nothing() -> None:
    kept = Kept()
    run_updates(SampleEpisodesCallback([kept], 4), 3, main=False)
    assert kept.samples == []


def test_a_tracker_that_fails_is_told_once_and_the_others_go_on() -> None:
    broken, kept = Kept("broken", fails=True), Kept()
    with pytest.warns(RuntimeWarning, match="broken did not take.*update 1 .ConnectionError: the network") as told:
        run_updates(SampleEpisodesCallback([broken, kept], 4), 21)
    assert len([w for w in told if "did not take" in str(w.message)]) == 1
    assert len(broken.samples) == len(kept.samples) == 4


@pytest.mark.parametrize("arguments", [{"num_episodes": 0}, {"every": 0}])
def test_arguments_that_mean_nothing(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        SampleEpisodesCallback([], **arguments)


# Trackers, by stand-ins of their modules


def sample(plots: bool = True) -> Sample:
    rows = episode_rows(3, [episode(True, ["a|b"])], scores_of([episode(True, ["a|b"])]), ("good", "bad"), [0])
    picture = np.zeros((4, 4, 3), np.uint8) if plots else None
    return Sample(3, rows, {"judge/scores_won": np.array([0.75])}, picture)


class Module(SimpleNamespace):
    """wandb or trackio: its types write down what they are made of."""

    def __init__(self, names: Sequence[str], **attributes: Any) -> None:
        def kind(name: str) -> Any:
            return lambda *args, **kwargs: (name, args, kwargs)

        self.logged: list[dict[str, Any]] = []
        super().__init__(**{name: kind(name) for name in names}, **attributes)

    def log(self, row: dict[str, Any]) -> None:
        self.logged.append(row)


def test_wandb_gets_one_row() -> None:
    module = Module(["Table", "Histogram", "Image"], run=object())
    Wandb(SimpleNamespace(_wandb=module)).log(sample())
    (row,) = module.logged
    assert set(row) == {"episodes/sample", "judge/scores_won", "judge/plots", "train/global_step"}
    assert row["train/global_step"] == 3
    name, _, table = row["episodes/sample"]
    assert name == "Table" and table["columns"] == list(COLUMNS) and table["data"] == sample().rows
    module.run = None
    Wandb(SimpleNamespace(_wandb=module)).log(sample())
    Wandb(SimpleNamespace(_wandb=None)).log(sample())
    assert len(module.logged) == 1, "where no run is open there is none to log to"


def test_trackio_gets_one_row_of_texts_that_are_no_markdown() -> None:
    module = Module(["Table", "Image"])
    Trackio(SimpleNamespace(_trackio=module, _initialized=True)).log(sample(plots=False))
    (row,) = module.logged
    assert set(row) == {"episodes/sample", "train/global_step"}, "this version has no histograms"
    frame = row["episodes/sample"][2]["dataframe"]
    assert list(frame.columns) == list(COLUMNS)
    assert frame["action"][0] == "a&#124;b" and frame["score"][0] == 0.75
    Trackio(SimpleNamespace(_trackio=module, _initialized=False)).log(sample())
    assert len(module.logged) == 1


def test_tensorboard_without_a_writer() -> None:
    TensorBoard(SimpleNamespace(tb_writer=None)).log(sample())


# In the trainers, for real


def kinds(trainer: Any) -> list[type]:
    return [type(callback) for callback in trainer.callback_handler.callbacks]


def test_they_are_added_where_a_tracker_is(tmp_path: Path) -> None:
    assert SampleEpisodesCallback not in kinds(make_trainer(tmp_path))
    assert SampleEpisodesCallback not in kinds(
        make_trainer(tmp_path, report_to=["tensorboard"], log_sample_episodes=0)
    )
    trainer = make_trainer(tmp_path, report_to=["tensorboard"], log_sample_episodes=6, seed=5)
    (callback,) = [c for c in trainer.callback_handler.callbacks if isinstance(c, SampleEpisodesCallback)]
    assert (callback.num_episodes, callback.seed, [t.name for t in callback.trackers]) == (6, 5, ["tensorboard"])
    with pytest.raises(ValueError, match="log_sample_episodes must be a finite number of at least 0, got -1"):
        make_trainer(tmp_path, log_sample_episodes=-1)


def written_by(folder: Path) -> EventAccumulator:
    (run,) = (folder / "runs").iterdir()
    events = EventAccumulator(str(run), size_guidance={"tensors": 0, "images": 0, "histograms": 0})
    return events.Reload()


def text_of(events: EventAccumulator) -> list[tuple[int, str]]:
    values = events.Tensors("episodes/sample/text_summary")
    return [(value.step, value.tensor_proto.string_val[0].decode()) for value in values]


def test_tensorboard_has_it_all(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, report_to=["tensorboard"], environment_factory=CoinEnv, total_episodes=88)
    trainer.train()
    events = written_by(tmp_path)
    texts = text_of(events)
    assert [step for step, _ in texts] == [1, 10, 11]
    # The very episodes that were played, with the very scores.
    played = [json.loads(line) for line in (tmp_path / "trajectories.jsonl").read_text().splitlines()]
    of_first = {f"seed={e['seed']}": e for e in played if e["update"] == 1}
    rows = Cells(plugin_util.markdown_to_safe_html(texts[0][1])).rows[1:]
    assert len(rows) == 4 * 3
    for update, task, step, observation, action, score, verdicts, reward, total, success in rows:
        turn = of_first[task]["turns"][int(step)]
        assert (update, observation, action) == ("1", turn["observation"], " ".join(turn["action"].split()))
        assert float(score) == pytest.approx(turn["score"], abs=1e-4)
        assert verdicts.startswith(f"good {turn['verdict_probs'][0]:.2f}, bad ")
        assert (float(reward), float(total)) == (turn["reward"], of_first[task]["return"])
        assert (success == "True") == of_first[task]["success"]
    assert [row[9] for row in rows[::3]] == ["True", "True", "False", "False"]
    tags = events.Tags()
    assert set(tags["histograms"]) == {"judge/scores_won", "judge/scores_lost"} and tags["images"] == ["judge/plots"]
    assert {"train/env/success", "train/hindsight/auroc", "train/mise/mutual_information"} <= set(tags["scalars"])


def test_batches_of_completions_too(tmp_path: Path) -> None:
    make_grpo(MISEGRPOTrainer, grpo_config(tmp_path, report_to=["tensorboard"])).train()
    texts = text_of(written_by(tmp_path))
    # The first batch of completions ends with the second optimizer step.
    assert [step for step, _ in texts] == [2, 6]
    assert [row[0] for row in Cells(plugin_util.markdown_to_safe_html(texts[1][1])).rows[1:]][0] == "3"


def test_a_tracker_cannot_change_or_end_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    histories = []
    for broken in (False, True):
        folder = tmp_path / str(broken)
        trainer = make_trainer(folder, report_to=["tensorboard"])
        if broken:
            monkeypatch.setattr(TensorBoard, "log", lambda self, sample: 1 / 0)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            trainer.train()
        assert any("tensorboard did not take" in str(w.message) for w in told) == broken
        histories.append([{k: v for k, v in e.items() if "time/" not in k} for e in trainer.state.log_history])
    assert histories[0] == histories[1]


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="extra trackers is not installed")
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true", "CONSOLE": "off"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    trainer = make_trainer(tmp_path, report_to=["wandb"], environment_factory=CoinEnv)
    trainer.train()
    wandb.finish()
    tables = sorted(tmp_path.glob("wandb/offline-run-*/files/media/table/episodes/*.table.json"))
    contents = [json.loads(path.read_text()) for path in tables]
    assert sorted(content["data"][0][0] for content in contents) == [1, 2]
    assert all(content["columns"] == list(COLUMNS) and len(content["data"]) == 12 for content in contents)
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/images/judge/*.png"))) == 2


def test_trackio_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio", reason="extra trackers is not installed")
    import sqlite3

    for name, module in list(sys.modules.items()):  # each has a copy, made when TRL imported it
        for folder, where in {"TRACKIO_DIR": tmp_path / "trackio", "MEDIA_DIR": tmp_path / "trackio/media"}.items():
            if name.startswith("trackio") and folder in vars(module):
                monkeypatch.setattr(module, folder, where)
    trainer = make_trainer(tmp_path, report_to=["trackio"], environment_factory=CoinEnv, project="here")
    trainer.train()
    (path,) = (tmp_path / "trackio").glob("here*.db")
    with sqlite3.connect(path) as database:
        logged = [json.loads(row[0]) for row in database.execute("SELECT metrics FROM metrics ORDER BY id")]
    tables = [row["episodes/sample"]["_value"] for row in logged if "episodes/sample" in row]
    assert [table[0]["update"] for table in tables] == [1, 2] and all(len(table) == 12 for table in tables)
