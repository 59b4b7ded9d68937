"""Evaluation: intervals against published values, agents, environments that fail, and the example's command line."""

import json
import math
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import WORDS, CountingEnv, word_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from trl_mise.agents import ExpertAgent, RandomAgent
from trl_mise.envs import kitchen
from trl_mise.envs.base import EnvironmentFailure
from trl_mise.envs.registry import environment_spec
from trl_mise.evaluation import EpisodeResult, EvaluationResult, bootstrap_interval, evaluate, wilson_interval
from trl_mise.model_agent import ModelAgent
from trl_mise.tiny import build_policy
from trl_mise.types import StopReason

ROOT = Path(__file__).parents[1]


class TestWilson:
    @pytest.mark.parametrize(
        "successes, trials, low, high",
        # R. G. Newcombe, Statistics in Medicine 17 (1998), 857-872, table I, method 3.
        [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
    )
    def test_published_values(self, successes: int, trials: int, low: float, high: float) -> None:
        assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)

    @given(st.integers(1, 500), st.data())
    def test_holds_the_rate_and_mirrors(self, trials: int, data: st.DataObject) -> None:
        successes = data.draw(st.integers(0, trials))
        low, high = wilson_interval(successes, trials)
        assert 0 <= low <= successes / trials <= high <= 1 and low < high
        assert wilson_interval(trials - successes, trials) == pytest.approx((1 - high, 1 - low), abs=1e-12)

    @given(st.integers(1, 500), st.data())
    def test_is_where_the_score_test_turns(self, trials: int, data: st.DataObject) -> None:
        """Its ends are the rates p with |k/n - p| = z sqrt(p (1 - p) / n)."""
        successes = data.draw(st.integers(0, trials))
        for end in wilson_interval(successes, trials):
            expected = 1.959963984540054 * math.sqrt(end * (1 - end) / trials)
            assert abs(successes / trials - end) == pytest.approx(expected, abs=1e-9)

    def test_narrows_with_trials_and_widens_with_confidence(self) -> None:
        def width(successes: int, trials: int, **kwargs: float) -> float:
            low, high = wilson_interval(successes, trials, **kwargs)
            return high - low

        assert width(50, 100) < width(5, 10) and width(5, 10) < width(5, 10, confidence=0.99)

    @pytest.mark.parametrize("successes, trials", [(0, 0), (3, 2), (-1, 2)])
    def test_refuses_what_is_no_proportion(self, successes: int, trials: int) -> None:
        with pytest.raises(ValueError, match=f"{successes} of {trials}"):
            wilson_interval(successes, trials)

    def test_refuses_a_confidence_of_one(self) -> None:
        with pytest.raises(ValueError, match="confidence"):
            wilson_interval(1, 2, confidence=1.0)


class TestBootstrap:
    def test_is_the_normal_interval_for_many_values(self) -> None:
        rng = random.Random(0)
        values = [rng.random() for _ in range(400)]
        low, high = bootstrap_interval(values)
        half = 1.96 * math.sqrt(1 / 12 / 400)
        mean = sum(values) / 400
        assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.005)

    def test_is_the_same_for_the_same_seed(self) -> None:
        values = [1 / (n + 1) for n in range(30)]
        assert bootstrap_interval(values) == bootstrap_interval(values) != bootstrap_interval(values, seed=1)

    def test_has_no_width_without_spread(self) -> None:
        assert bootstrap_interval([0.5] * 7) == (0.5, 0.5)

    def test_refuses_nothing(self) -> None:
        with pytest.raises(ValueError, match="empty"):
            bootstrap_interval([])


class TestSums:
    EPISODES = (
        EpisodeResult({"seed": 1}, 1.0, True, steps=4, invalid_actions=1),
        EpisodeResult({"seed": 2}, 0.5, False, steps=6, invalid_actions=2),
        EpisodeResult({"seed": 3}, steps=5, stop_reason=StopReason.ENV_ERROR, error="step 6: broken"),
    )

    def test_golden(self) -> None:
        result = EvaluationResult.of(self.EPISODES, seconds=3.0)
        assert result.success == (0.5, *wilson_interval(1, 2))
        assert result.mean_return is not None and result.mean_return.value == 0.75
        assert (result.mean_steps, result.invalid_action_rate, result.num_errors) == (5.0, 0.3, 1)
        assert result.stop_reasons == {"terminated": 2, "env_error": 1}
        assert result.steps_per_second == 5.0 and result.errors == [self.EPISODES[2].error]

    def test_nothing_but_errors(self) -> None:
        result = EvaluationResult.of(self.EPISODES[2:], seconds=1.0)
        assert (result.success, result.mean_return, result.mean_steps, result.invalid_action_rate) == (None,) * 4
        assert result.num_errors == 1 and "errors" in result.table()

    def test_table_and_json(self) -> None:
        result = EvaluationResult.of(self.EPISODES, seconds=3.0)
        rows = {line[:22].strip(): line[22:].split() for line in result.table().splitlines()}
        assert rows["success"] == ["0.500", "0.095", "to", "0.905"]
        assert rows["episodes"] == ["2"] and rows["errors"] == ["1"] and rows["invalid actions"] == ["30.0%"]
        read = json.loads(json.dumps(result.as_dict()))
        assert read["success"] == pytest.approx({"value": 0.5, "low": 0.0945, "high": 0.9055}, abs=1e-4)
        assert [episode["task"]["seed"] for episode in read["episodes"]] == [1, 2, 3]

    def test_an_interval_without_spread_is_not_shown(self) -> None:
        table = EvaluationResult.of([EpisodeResult({}, 1.0, True, steps=1)] * 5, seconds=1.0).table()
        (line,) = [line for line in table.splitlines() if line.startswith("return")]
        assert line.split() == ["return", "1.000"]


class TestAgents:
    @pytest.mark.parametrize("name", ["kitchen", "webshop"])
    def test_the_expert_wins_and_chance_does_not(self, name: str) -> None:
        spec = environment_spec(name)
        tasks = spec.make_tasks("test", 20)
        won = evaluate(ExpertAgent(spec.expert_action()), spec.factory(), tasks, max_steps=spec.max_steps)
        assert won.success is not None and won.success.value == 1.0 and won.success.low > 0.83
        assert won.num_errors == 0 and won.invalid_action_rate == 0.0
        lost = evaluate(RandomAgent(), spec.factory(), tasks, max_steps=spec.max_steps)
        assert lost.success is not None and lost.success.value < 0.3 and lost.num_errors == 0

    def test_chance_is_seeded(self) -> None:
        spec = environment_spec("webshop")
        tasks = spec.make_tasks("test", 8)

        def play(seed: int) -> tuple[EpisodeResult, ...]:
            return evaluate(RandomAgent(seed), spec.factory(), tasks, max_steps=30).episodes

        assert play(0) == play(0) != play(1)

    def test_an_episode_does_not_depend_on_the_others_length(self) -> None:
        spec = environment_spec("webshop")
        tasks = spec.make_tasks("test", 3)
        with_long, with_short = (
            evaluate(RandomAgent(), spec.factory(max_steps=None), [tasks[0], tasks[1]], max_steps=steps).episodes[1]
            for steps in (30, 29)
        )
        assert with_long.steps <= 29, "choose another seed: this episode must be short"
        assert with_long == with_short

    def test_chance_has_words_of_its_own(self) -> None:
        """CountingEnv lists no actions; only `go` is valid."""
        result = evaluate(RandomAgent(actions=["go"]), CountingEnv, [{"seed": 0}])
        assert result.success is not None and result.success.value == 1.0
        result = evaluate(RandomAgent(), CountingEnv, [{"seed": 0}], max_steps=7)
        assert (result.mean_steps, result.invalid_action_rate) == (7.0, 1.0)

    def test_why_episodes_end(self) -> None:
        ends = {2: "terminated", 1: "max_turns"}
        for max_steps, reason in ends.items():
            result = evaluate(RandomAgent(actions=["go"]), CountingEnv, [{"seed": 0}], max_steps=max_steps)
            assert result.stop_reasons == {reason: 1}
        result = evaluate(RandomAgent(), lambda: CountingEnv(step_limit=3), [{"seed": 0}], max_steps=9)
        assert result.stop_reasons == {"env_truncated": 1} and result.mean_steps == 3.0

    def test_won_comes_before_the_return(self) -> None:
        assert one_episode(FaultyEnv(reward=1.0, won=False)) == (1.0, False)
        assert one_episode(FaultyEnv(reward=0.2, won=True)) == (0.2, True)
        assert one_episode(FaultyEnv(reward=1.0, won=None)) == (1.0, True)
        assert one_episode(FaultyEnv(reward=0.9, won=None)) == (0.9, False)

    def test_progress_is_told(self) -> None:
        told: list[tuple[int, int]] = []
        tasks = [{"seed": seed} for seed in range(3)]
        evaluate(RandomAgent(), CountingEnv, tasks, max_steps=1, on_progress=lambda *now: told.append(now))
        assert told == [(1, 3), (2, 3), (3, 3)]

    @pytest.mark.parametrize("kwargs, message", [({"tasks": []}, "tasks is empty"), ({"max_steps": 0}, "max_steps")])
    def test_bad_arguments(self, kwargs: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            evaluate(RandomAgent(), CountingEnv, **{"tasks": [{}], **kwargs})


class FaultyEnv:
    """Ends after two steps; in the episodes whose task says so it does what breaks the contract."""

    made = 0
    closed = 0

    def __init__(self, reward: Any = 1.0, won: bool | None = None) -> None:
        self.reward, self.won = reward, won
        type(self).made += 1

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> Any:
        self.fault, self.steps = (options or {}).get("fault"), 0
        if self.fault == "reset":
            raise RuntimeError("no start")
        return "begin", {"admissible_actions": ["go"]}

    def step(self, action: str) -> Any:
        self.steps += 1
        last = self.steps == 2
        faults: dict[str, Callable[[], Any]] = {
            "raise": lambda: 1 / 0,
            "four": lambda: ("seen", 0.0, last, {}),
            "nan": lambda: ("seen", math.nan, last, False, {}),
            "bytes": lambda: (b"seen", 0.0, last, False, {}),
        }
        if last and self.fault in faults:
            return faults[self.fault]()
        info = {} if self.won is None or not last else {"won": self.won}
        return "seen", self.reward if last else 0.0, last, False, {"admissible_actions": ["go"], **info}

    def close(self) -> None:
        type(self).closed += 1
        if self.fault is not None:
            raise RuntimeError("cannot close either")

    fault: str | None = None


def one_episode(env: FaultyEnv) -> tuple[float, bool]:
    (episode,) = evaluate(RandomAgent(), lambda: env, [{}]).episodes
    return episode.episode_return, episode.success


class TestFailures:
    @pytest.mark.parametrize(
        "fault, message",
        [
            ("reset", "reset: RuntimeError: no start"),
            ("raise", "step 2, action 'go': ZeroDivisionError"),
            ("four", "step 2, .* must return"),
            ("nan", "step 2, .*finite"),
            ("bytes", "step 2, .*must be a str"),
        ],
    )
    def test_cost_an_episode_and_not_the_others(self, fault: str, message: str) -> None:
        FaultyEnv.made = FaultyEnv.closed = 0
        tasks = [{"seed": 0}, {"seed": 1, "fault": fault}, {"seed": 2}, {"seed": 3, "fault": fault}]
        result = evaluate(RandomAgent(), FaultyEnv, tasks)
        assert [episode.error is not None for episode in result.episodes] == [False, True, False, True]
        assert result.success is not None and result.success.value == 1.0 and result.num_errors == 2
        assert FaultyEnv.made == FaultyEnv.closed == 2, "another takes the place of the one that failed"
        assert re.search(message, result.errors[0])
        assert "'seed': 1" in result.errors[0], "the message names the task"

    def test_of_the_plan_are_told_apart(self) -> None:
        def lost(env: Any) -> str:
            raise RuntimeError("no plan")

        result = evaluate(ExpertAgent(lost), CountingEnv, [{"seed": 0}])
        assert result.success is None and "choosing action 1: RuntimeError: no plan" in result.errors[0]

    def test_an_environment_that_cannot_be_made(self) -> None:
        def factory() -> Any:
            raise OSError("no such file")

        with pytest.raises(EnvironmentFailure, match="cannot be made: OSError: no such file"):
            evaluate(RandomAgent(), factory, [{}])


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved policy with random weights, which can read and say everything in a small kitchen."""
    tokenizer = word_tokenizer([*kitchen.vocabulary(2, 2), *WORDS])
    folder = tmp_path_factory.mktemp("policy")
    build_policy(tokenizer, num_layers=1, hidden_size=16, num_heads=2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


SMALL_KITCHEN = environment_spec("kitchen").factory(stations=2, values=2)


class TestModelAgent:
    def play(self, folder: Path, tasks: int = 6, **options: Any) -> EvaluationResult:
        agent = ModelAgent.from_pretrained(str(folder), device="cpu", max_new_tokens=3, **options)
        return evaluate(agent, SMALL_KITCHEN, kitchen.make_tasks("test", tasks), max_steps=5)

    def test_plays_from_a_folder(self, policy_folder: Path) -> None:
        result = self.play(policy_folder, num_envs=4)
        assert result.num_errors == 0 and result.mean_steps == 2.0
        assert result.stop_reasons == {"terminated": 6}
        assert [e.task["seed"] for e in result.episodes] == [t["seed"] for t in kitchen.make_tasks("test", 6)]

    def test_is_greedy_however_many_play_side_by_side(self, policy_folder: Path) -> None:
        one, four = (self.play(policy_folder, num_envs=n).episodes for n in (1, 4))
        assert one == four

    def test_sampling_is_seeded(self, policy_folder: Path) -> None:
        def said(seed: int) -> list[str]:
            env = CountingEnv()
            agent = ModelAgent.from_pretrained(
                str(policy_folder), device="cpu", max_new_tokens=4, temperature=1.0, seed=seed
            )
            evaluate(agent, lambda: env, [{"seed": 0}], max_steps=5)
            return env.actions[0]

        assert said(0) == said(0) != said(1)

    @pytest.mark.parametrize("system_prompt", [None, "order now"])
    def test_says_what_the_model_generates(self, policy_folder: Path, system_prompt: str | None) -> None:
        """Against `generate` itself, on a prompt rendered by the tokenizer's own template."""
        env = CountingEnv()
        agent = ModelAgent.from_pretrained(
            str(policy_folder), device="cpu", max_new_tokens=4, system_prompt=system_prompt
        )
        evaluate(agent, lambda: env, [{"seed": 0}], max_steps=1)
        system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
        messages = [*system, {"role": "user", "content": "reach 2\n\ntask 0 count 0"}]
        text = agent.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt = agent.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        answered = agent.model.generate(prompt, do_sample=False, max_new_tokens=4)
        assert env.actions == [[agent.tokenizer.decode(answered[0, prompt.shape[1] :], skip_special_tokens=True)]]

    def test_an_episode_that_outgrows_the_budget_says_so(self, policy_folder: Path) -> None:
        result = self.play(policy_folder, max_episode_tokens=18)
        assert result.stop_reasons == {"token_budget": 6} and result.num_errors == 0
        assert "ended by token_budget" in result.table()

    def test_a_system_prompt_is_read(self, policy_folder: Path) -> None:
        def said(system_prompt: str | None) -> list[str]:
            env = CountingEnv()
            agent = ModelAgent.from_pretrained(
                str(policy_folder), device="cpu", max_new_tokens=8, temperature=1.0, system_prompt=system_prompt
            )
            evaluate(agent, lambda: env, [{"seed": 0}], max_steps=3)
            return env.actions[0]

        assert said(None) == said(None) != said("order now")

    def test_a_prompt_that_does_not_fit_is_an_error(self, policy_folder: Path) -> None:
        result = self.play(policy_folder, max_episode_tokens=4)
        assert result.num_errors == 6 and "max_episode_tokens=4" in result.errors[0]

    def test_a_failing_environment_is_counted(self, policy_folder: Path) -> None:
        agent = ModelAgent.from_pretrained(str(policy_folder), device="cpu", max_new_tokens=2)
        tasks = [{"seed": 0}, {"seed": 1, "fault": "raise"}, {"seed": 2}]
        result = evaluate(agent, FaultyEnv, tasks)
        assert [episode.error is not None for episode in result.episodes] == [False, True, False]

    def test_a_lora_adapter(self, policy_folder: Path, tmp_path: Path) -> None:
        from peft import LoraConfig, get_peft_model

        agent = ModelAgent.from_pretrained(str(policy_folder), device="cpu")
        agent.tokenizer.save_pretrained(tmp_path)
        lora = get_peft_model(agent.model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
        for name, parameter in lora.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.5)
        lora.save_pretrained(tmp_path)
        loaded = ModelAgent.from_pretrained(str(tmp_path), device="cpu")
        ids = torch.arange(8)[None]
        with torch.no_grad():
            plain = ModelAgent.from_pretrained(str(policy_folder), device="cpu").model(ids).logits
            torch.testing.assert_close(loaded.model(ids).logits, lora.eval()(ids).logits)
            assert (loaded.model(ids).logits - plain).abs().max() > 0.01
        assert self.play(tmp_path).num_errors == 0


def run_example(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "examples" / "evaluate.py"), *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}  # this checkout, whichever is installed
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=env, stdin=subprocess.DEVNULL, timeout=120
    )


class TestExample:
    def test_the_expert_of_the_kitchen(self, tmp_path: Path) -> None:
        output = tmp_path / "new" / "result.json"
        done = run_example("--env", "kitchen", "--agent", "expert", "--episodes", "7", "--output", str(output))
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("kitchen, test split, expert agent, seed 0\n") and "success" in done.stdout
        written = json.loads(output.read_text(encoding="utf-8"))
        assert written["num_episodes"] == 7 and written["success"]["value"] == 1.0
        assert written["options"]["agent"] == "expert"

    @pytest.mark.parametrize("name", ["textworld", "scienceworld"])
    def test_the_experts_of_the_installed_games(self, name: str) -> None:
        """In the same folder are a textworld.py and a scienceworld.py, which must not be taken for the packages."""
        pytest.importorskip(name, reason=f'needs pip install "trl-mise[{name}]"')
        done = run_example("--env", name, "--agent", "expert", "--episodes", "2")
        assert done.returncode == 0, done.stderr
        assert re.search(r"^success +1\.000 ", done.stdout, re.MULTILINE)

    def test_arguments_of_the_environment_and_of_its_tasks(self, tmp_path: Path) -> None:
        output = tmp_path / "result.json"
        arguments = ("--env", "kitchen", "--env_kwargs", '{"stations": 3}', "--split", "train", "--seed", "5")
        assert run_example(*arguments, "--output", str(output), "--episodes", "2").returncode == 0
        written = json.loads(output.read_text(encoding="utf-8"))
        assert [episode["steps"] for episode in written["episodes"]] == [3, 3]
        assert [episode["task"] for episode in written["episodes"]] == kitchen.make_tasks("train", 2, seed=5)

    @pytest.mark.parametrize(
        "arguments, message",
        [
            (["--env", "nowhere"], "trl-mise eval: error: environment 'nowhere' is unknown; choose one of kitchen,"),
            (["--env", "kitchen", "--env_kwargs", '{"rooms": 1}'], "cannot be made: TypeError.*rooms"),
            (["--env", "kitchen", "--split", "dev"], "split must be one of"),
            (["--env", "kitchen", "--agent", "model"], "--agent model needs --model_name_or_path"),
            (["--env", "kitchen", "--episodes", "0"], "tasks is empty"),
            (["--env", "kitchen", "--config", "no.yaml"], "No such file.*no.yaml"),
        ],
    )
    def test_errors_are_short(self, arguments: list[str], message: str) -> None:
        done = run_example(*arguments)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        (line,) = done.stderr.strip().splitlines()
        assert re.search(message, line)

    def test_an_environment_of_ones_own_that_always_fails(self, tmp_path: Path) -> None:
        (tmp_path / "own_env.py").write_text(
            "class Env:\n"
            "    def reset(self, *, seed=None, options=None): raise RuntimeError('out of order')\n"
            "    def step(self, action): ...\n"
            "    def close(self): ...\n",
            encoding="utf-8",
        )
        done = run_example("--env", "own_env:Env", "--episodes", "2", cwd=tmp_path)
        assert done.returncode == 1 and "out of order" in done.stdout, done.stderr

    def test_a_model_with_a_runs_configuration(self, policy_folder: Path, tmp_path: Path) -> None:
        config, output = tmp_path / "run.yaml", tmp_path / "result.json"
        config.write_text(
            f"model_name_or_path: {policy_folder}\nmax_new_tokens: 3\nmax_turns: 1\ntemperature: 5.0\n"
            "learning_rate: 1.0\nmax_episode_tokens: 200\n",
            encoding="utf-8",
        )
        arguments = ("--env", "kitchen", "--env_kwargs", '{"stations": 2, "values": 2}', "--agent", "model")
        done = run_example(
            *arguments, "--config", str(config), "--output", str(output), "--device", "cpu", "--max_new_tokens", "2"
        )
        assert done.returncode == 0, done.stderr
        options = json.loads(output.read_text(encoding="utf-8"))["options"]
        assert options["max_steps"] == 1 and options["max_episode_tokens"] == 200 and options["temperature"] is None
        assert options["max_new_tokens"] == 2, "an option that is given comes before the file"
