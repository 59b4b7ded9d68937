"""Reading a run directory, in whatever state it was left."""

import json
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import write_lines, write_run

from trl_mise.run_data import read_run

TURN = {"observation": "a door", "action": "open it", "reward": 0.5, "action_valid": False, "score": 0.25}
EPISODE = {
    "update": 3,
    "task": {"goal": "lamp"},
    "seed": 7,
    "instruction": "find it",
    "turns": [{**TURN, "verdict_probs": [0.25, 0.75], "shaping": -0.1, "advantage": 1.5, "evaluation": "so: bad"}],
    "final_observation": "the end",
    "return": 0.5,
    "success": False,
    "stop_reason": "terminated",
}


def write_episodes(folder: Path, *episodes: Any, name: str = "trajectories.jsonl") -> Path:
    write_lines(folder / name, list(episodes))
    return folder


def test_a_whole_episode(tmp_path: Path) -> None:
    (episode,) = read_run(write_episodes(tmp_path, EPISODE)).training
    assert (episode.kind, episode.update, episode.task, episode.seed) == ("training", 3, {"goal": "lamp"}, 7)
    assert (episode.episode_return, episode.success, episode.stop_reason) == (0.5, False, "terminated")
    (step,) = episode.steps
    assert (step.observation, step.action, step.reward, step.action_valid) == ("a door", "open it", 0.5, False)
    assert (step.score, step.verdict_probs, step.shaping, step.advantage) == (0.25, (0.25, 0.75), -0.1, 1.5)
    assert step.evaluation == "so: bad" and episode.mean_score == 0.25 and not episode.failed


def test_a_whole_run(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "shop", updates=4, batch=3, turns=5, evaluations=(0, 4), eval_tasks=2))
    assert run.name == "shop" and run.notes == () and run.log_source == "metrics.jsonl"
    assert len(run.training) == 12 and len(run.evaluation) == 4 and len(run.events) == 2
    assert [entry["step"] for entry in run.log] == [0, 1, 2, 3, 4, 4]
    assert run.verdicts == ("good", "bad") and run.utilities == (1.0, 0.0)
    assert run.evaluation[0].mean_score is None
    assert run.evaluation[0].task_key == run.evaluation[2].task_key != run.evaluation[1].task_key


def test_what_is_the_same_task(tmp_path: Path) -> None:
    prompt = {**EPISODE, "task": {}, "seed": None}
    changes = [{}, {"update": 9}, {"seed": 8}, {"task": {"goal": "mug"}}, {"instruction": "other words"}]
    lines = [{**EPISODE, **change} for change in changes] + [prompt, prompt, {**prompt, "instruction": "other words"}]
    keys = [episode.task_key for episode in read_run(write_episodes(tmp_path, *lines)).training]
    assert keys[0] == keys[1] == keys[4] and len({keys[0], keys[2], keys[3], keys[5]}) == 4
    assert keys[5] == keys[6] != keys[7]


def test_no_such_folder_a_file_and_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere' does not exist; give the directory"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(ValueError, match="is a file"):
        read_run(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no run; a run directory has run\.json \(what was run\).*checkpoint"):
        read_run(tmp_path / "empty")


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "trajectories.jsonl", "evaluations.jsonl"])
def test_any_one_file_is_a_run(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}" if name == "run.json" else "", encoding="utf-8")
    run = read_run(tmp_path)
    assert run.files == (name,) and run.notes == ()
    assert (run.training, run.evaluation, run.log, run.events) == ((), (), (), ())


def test_the_torn_last_line_of_a_killed_run(tmp_path: Path) -> None:
    write_episodes(tmp_path, EPISODE, EPISODE)
    content = (tmp_path / "trajectories.jsonl").read_bytes()
    (tmp_path / "trajectories.jsonl").write_bytes(content[:-40])
    run = read_run(tmp_path)
    assert len(run.training) == 1
    (note,) = run.notes
    assert "last line of trajectories.jsonl is torn" in note


def test_a_torn_letter_is_no_more_than_a_torn_line(tmp_path: Path) -> None:
    lines = [json.dumps({**EPISODE, "instruction": "猫"}, ensure_ascii=False).encode()] * 2
    torn = lines[1][: lines[1].index("猫".encode()) + 1]
    (tmp_path / "trajectories.jsonl").write_bytes(lines[0] + b"\n" + torn)
    run = read_run(tmp_path)
    assert [e.instruction for e in run.training] == ["猫"] and "torn" in run.notes[0]


def test_a_last_line_without_its_end_that_is_whole_counts(tmp_path: Path) -> None:
    (tmp_path / "trajectories.jsonl").write_text(json.dumps(EPISODE), encoding="utf-8")
    run = read_run(tmp_path)
    assert len(run.training) == 1 and run.notes == ()


def test_lines_that_are_no_objects_are_counted_and_named(tmp_path: Path) -> None:
    text = "\n".join([json.dumps(EPISODE), "{", "", "[1, 2]", json.dumps(EPISODE), ""])
    (tmp_path / "trajectories.jsonl").write_text(text, encoding="utf-8")
    run = read_run(tmp_path)
    assert len(run.training) == 2
    assert run.notes == ("2 of 5 lines of trajectories.jsonl could not be read, the first is line 2.",)


def test_a_nest_of_brackets_is_only_a_bad_line(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text("[" * 100_000 + "\n", encoding="utf-8")
    assert "1 of 1 lines of events.jsonl" in read_run(tmp_path).notes[0]


def test_numbers_that_are_none(tmp_path: Path) -> None:
    turns = [{**TURN, "score": score} for score in (float("nan"), None, 1.5, "good", -0.2, True, 1 + 1e-9)]
    huge = int("9" * 400)
    turns[0] |= {"reward": float("inf"), "shaping": float("nan"), "advantage": "x", "verdict_probs": [0.5, None]}
    turns[1] |= {"reward": huge, "verdict_probs": [0.9, 0.9]}
    run = read_run(write_episodes(tmp_path, {**EPISODE, "turns": turns, "return": float("nan"), "seed": huge}))
    (episode,) = run.training
    assert [step.score for step in episode.steps] == [None, None, None, None, None, 1.0, 1.0]
    assert [step.reward for step in episode.steps] == [0.0, 0.0] + [0.5] * 5
    assert episode.steps[0].shaping is None and episode.steps[0].advantage is None
    assert all(step.verdict_probs == () for step in episode.steps)
    assert episode.episode_return == 0.0 and episode.seed is None
    assert run.notes == ("3 scores of trajectories.jsonl are no numbers in [0, 1] and count as missing.",)


def test_records_of_another_shape(tmp_path: Path) -> None:
    odd = [{}, {"turns": "none", "task": [1], "update": "x"}, {"turns": [1, {"action": 5, "observation": {"a": 1}}]}]
    run = read_run(write_episodes(tmp_path, *odd, {**EPISODE, "more": {"than": "known"}}))
    assert [len(e.steps) for e in run.training] == [0, 0, 1, 1]
    assert (run.training[2].steps[0].action, run.training[2].steps[0].observation) == ("5", '{"a": 1}')
    assert run.training[1].task == {} and run.training[0].stop_reason == "unknown"


def test_run_json_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    write_episodes(tmp_path, EPISODE)
    for broken in ("{", "[]", ""):
        (tmp_path / "run.json").write_text(broken, encoding="utf-8")
        run = read_run(tmp_path)
        assert run.info == {} and "run.json could not be read" in run.notes[0] and run.option("seed") is None


def test_without_metrics_the_newest_readable_checkpoint_tells(tmp_path: Path) -> None:
    write_episodes(tmp_path, EPISODE)
    for step, text in ((9, None), (10, None), (200, "{torn")):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        history = {"log_history": [{"step": step, "env/success": 0.5}, {"loss": 1.0}, "odd"]}
        (folder / "trainer_state.json").write_text(text or json.dumps(history), encoding="utf-8")
    run = read_run(tmp_path)
    assert run.log == ({"step": 10.0, "env/success": 0.5},) and run.log_source == "checkpoint-10/trainer_state.json"
    assert run.files == ("trajectories.jsonl", "checkpoint-10/trainer_state.json")
    write_lines(
        tmp_path / "metrics.jsonl", [{"step": 1, "env/success": 0.1, "ok": True, "lr": float("nan"), "a": "b"}]
    )
    assert read_run(tmp_path).log == ({"step": 1.0, "env/success": 0.1},)


@pytest.mark.parametrize(
    ("options", "probs", "verdicts", "utilities"),
    [
        ({}, [0.4, 0.6], ("good", "bad"), (1.0, 0.0)),
        ({}, [0.2, 0.3, 0.5], ("verdict 1", "verdict 2", "verdict 3"), None),
        ({"hindsight_verdicts": ["yes", "no"]}, [0.4, 0.6], ("yes", "no"), None),
        ({"hindsight_verdicts": ["yes"]}, [0.4, 0.6], ("good", "bad"), (1.0, 0.0)),
        (
            {"hindsight_verdicts": ["a", "b", "c"], "hindsight_utilities": [1, 0.5, 0]},
            [0.2, 0.3, 0.5],
            ("a", "b", "c"),
            (1.0, 0.5, 0.0),
        ),
        ({"hindsight_verdicts": ["a", "b"], "hindsight_utilities": [1, "x"]}, [0.4, 0.6], ("a", "b"), None),
    ],
)
def test_the_judges_words(tmp_path: Path, options: Any, probs: Any, verdicts: Any, utilities: Any) -> None:
    write_episodes(tmp_path, {**EPISODE, "turns": [{**TURN, "verdict_probs": probs}]})
    (tmp_path / "run.json").write_text(json.dumps({"options": options}), encoding="utf-8")
    run = read_run(tmp_path)
    assert run.verdicts == verdicts and run.utilities == utilities
