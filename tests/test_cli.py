"""The command line: what a person types, sees, and gets told."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from trl_mise import cli
from trl_mise.commands.common import known_of_run
from trl_mise.commands.transcript import Transcripts, print_episode, printable
from trl_mise.envs.kitchen import KitchenEnv, expert_action
from trl_mise.envs.registry import ENVIRONMENTS

ROOT = Path(__file__).parents[1]

OWN_ENV = '''
"""An environment of one's own."""


class MyEnv:
    """Say the colour."""

    def __init__(self, colours=("red", "blue")):
        self.colours = colours

    def reset(self, *, seed=None, options=None):
        self.wanted = self.colours[(seed or 0) % len(self.colours)]
        return f"say {self.wanted}", {"instruction": "repeat", "admissible_actions": list(self.colours)}

    def step(self, action):
        won = action.strip() == self.wanted
        return "the end", float(won), True, False, {"won": won, "action_valid": action.strip() in self.colours}

    def close(self):
        pass


class Broken(MyEnv):
    def step(self, action):
        return "the end", "1", True, False, {}


def make_tasks(split, n, seed=0):
    return [{"seed": i, "split": split} for i in range(n)]


def expert_action(env):
    return env.wanted
'''


@pytest.fixture()
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with somebody's environment, and the shell in it."""
    (tmp_path / "own_world.py").write_text(OWN_ENV, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_world", raising=False)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """(exit status, standard output, standard error) of a command in this process."""
    try:
        status = cli.main(argv)
    except SystemExit as stop:
        status = int(stop.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def shell(*arguments: str, cwd: Path, module: str = "trl_mise.cli", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )


class TestMain:
    @pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
    def test_help_lists_the_commands(self, argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        status, out, err = run(capsys, *argv)
        assert (status, err) == (0, "")
        for name, command in cli.COMMANDS.items():
            assert re.search(rf"^  {name} +{re.escape(command.summary)}$", out, re.MULTILINE)

    @pytest.mark.parametrize("name", sorted(cli.COMMANDS))
    def test_every_command_explains_itself(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        status, out, err = run(capsys, name, "--help")
        assert (status, err) == (0, "") and out.startswith(f"usage: trl-mise {name} ")
        assert max(map(len, out.splitlines())) < 125

    def test_the_version_is_the_package_s(self, capsys: pytest.CaptureFixture[str]) -> None:
        import trl_mise

        assert run(capsys, "--version") == (0, f"trl-mise {trl_mise.__version__}\n", "")

    @pytest.mark.parametrize(
        "argv, message",
        [
            (["evel"], "trl-mise: error: 'evel' is no command; did you mean 'eval'?; run trl-mise --help"),
            (
                ["eval", "--episods", "3"],
                "trl-mise eval: error: unrecognized arguments: --episods 3; run trl-mise eval",
            ),
            (["eval", "--env", "kitchen", "--env_kwargs", "[1]"], "'[1]' is no JSON object"),
            (["eval", "--env", "kitchen", "--env_kwargs", "{1"], "'{1' is no JSON"),
            (["eval"], "trl-mise eval: error: --env is required"),
            (["rollout", "--env", "nowhere"], "environment 'nowhere' is unknown"),
            (["play"], "the following arguments are required: --env"),
            (["report", "no/such/run"], "trl-mise report: error: "),
            (["train"], "trl-mise train: error: --env is required"),
            (["train", "--env", "tasting"], "--model_name_or_path is required for tasting"),
            (["train", "--env", "kitchen", "--env_kwargs", '{"stations": 2}'], "leave it out, or give a model"),
            (["train", "--env", "kitchen", "--learning_rat", "1"], "did you mean --learning_rate?"),
            (["train", "--env", "kitchen", "--hindsight_coef", "-1"], "hindsight_coef must be a finite number"),
            (["train", "--env", "kitchen", "--config"], "--config needs a path"),
            (["train", "--env", "kitchen", "--config", "no.yaml"], "No such file or directory: 'no.yaml'"),
        ],
    )
    def test_bad_input_gets_one_line(self, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
        status, out, err = run(capsys, *argv)
        assert status == 2 and out == ""
        (line,) = [line for line in err.splitlines() if not line.startswith("Failed to load CPU")]
        assert message in line

    def test_a_traceback_only_when_it_is_asked_for(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from trl_mise.commands import envs

        def fail(argv: Any) -> int:
            raise ZeroDivisionError("of\nour own making")

        monkeypatch.setattr(envs, "main", fail)
        message = "trl-mise envs: error: ZeroDivisionError: of our own making (--debug shows where)\n"
        assert run(capsys, "envs") == (1, "", message)
        with pytest.raises(ZeroDivisionError):
            cli.main(["envs", "--debug"])

    def test_ctrl_c(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        from trl_mise.commands import envs

        def interrupt(argv: Any) -> int:
            raise KeyboardInterrupt

        monkeypatch.setattr(envs, "main", interrupt)
        assert run(capsys, "envs") == (130, "", "trl-mise envs: error: interrupted\n")

    def test_a_reader_that_has_seen_enough(self, tmp_path: Path) -> None:
        command = f"{sys.executable} -m trl_mise.cli rollout --env kitchen --agent expert --episodes 200 | head -n 1"
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, shell=True, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=120)
        assert done.stdout.startswith("episode 1 of 200") and done.stderr == ""

    def test_it_starts_without_torch(self, tmp_path: Path) -> None:
        script = "import sys; from trl_mise.cli import main; main(['envs']); print('torch' in sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert done.stdout.splitlines()[-1] == "False", done.stderr


class TestEnvs:
    def test_all_of_them(self, capsys: pytest.CaptureFixture[str]) -> None:
        status, out, _ = run(capsys, "envs")
        assert status == 0
        for name, spec in ENVIRONMENTS.items():
            assert re.search(rf"^{name} +(ready|missing) +{re.escape(spec.description)}$", out, re.MULTILINE)

    def test_what_is_missing_comes_with_its_command(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        _, out, _ = run(capsys, "envs")
        assert 'textworld needs textworld:\n  pip install "trl-mise[textworld]"' in out
        assert re.search(r"^scienceworld +missing", out, re.MULTILINE)
        assert re.search(r"^kitchen +ready", out, re.MULTILINE)

    def test_for_programs(self, capsys: pytest.CaptureFixture[str]) -> None:
        entries = json.loads(run(capsys, "envs", "--json")[1])
        assert [entry["name"] for entry in entries] == list(ENVIRONMENTS)
        assert all(entry["expert"] for entry in entries)


def test_env_lists_versions(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    status, out, _ = run(capsys, "env")
    assert status == 0 and re.search(rf"^trl +{re.escape(version('trl'))}$", out, re.MULTILINE)
    assert re.search(r"^environments +kitchen, ", out, re.MULTILINE)


class TestCheckEnv:
    def test_one_that_keeps_the_contract(self, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
        status, out, _ = run(capsys, "check-env", "--env", "own_world:MyEnv", "--task", '{"seed": 1}')
        assert status == 0 and out.startswith("own_world:MyEnv keeps the contract.")
        assert "say blue" in out and re.search(r"(won|lost), return", out)

    def test_one_that_breaks_it(self, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
        status, out, err = run(capsys, "check-env", "--env", "own_world:Broken")
        assert (status, err) == (1, "")
        assert out.startswith("own_world:Broken: the contract is broken.\n") and "reward" in out

    def test_its_arguments(self, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ("--env", "own_world:MyEnv", "--env_kwargs", '{"colours": ["green"]}')
        status, out, _ = run(capsys, "check-env", *arguments)
        assert status == 0 and "> green" in out


class TestEval:
    def test_an_environment_of_ones_own_with_its_tasks_and_its_expert(
        self, own: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ("--env", "own_world:MyEnv", "--agent", "expert", "--episodes", "4", "--output", "result.json")
        status, out, err = run(capsys, "eval", *arguments)
        assert status == 0, err
        assert out.startswith("own_world:MyEnv, test split, expert agent, seed 0\n")
        written = json.loads((own / "result.json").read_text(encoding="utf-8"))
        assert written["success"]["value"] == 1.0
        assert [e["task"] for e in written["episodes"]] == [{"seed": i, "split": "test"} for i in range(4)]


class TestPlay:
    def play(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], typed: str, *argv: str
    ) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        return run(capsys, "play", "--env", "own_world:MyEnv", *argv)

    def test_to_the_end(self, own: Path, monkeypatch: Any, capsys: Any) -> None:
        status, out, err = self.play(monkeypatch, capsys, "?\nblue\nnever read\n", "--task", '{"seed": 1}')
        assert (status, err) == (0, "")
        assert "repeat" in out and "say blue" in out and "red\nblue" in out
        assert out.endswith("the end\n\nwon after 1 steps, return 1.000\n")

    def test_what_is_not_understood(self, own: Path, monkeypatch: Any, capsys: Any) -> None:
        _, out, _ = self.play(monkeypatch, capsys, "\nfly\n")
        assert "(not understood; " in out and "lost after 1 steps, return 0.000" in out

    def test_a_shop(self, monkeypatch: Any, capsys: Any) -> None:
        from trl_mise.envs.webshop import WebShopEnv, make_tasks
        from trl_mise.envs.webshop_policies import expert_action as buys

        env, (task,) = WebShopEnv(), make_tasks("train", 1, seed=0)
        env.reset(seed=task["seed"], options=task)
        actions: list[str] = []
        while not actions or actions[-1] != "click[buy now]":
            actions.append(buys(env))
            env.step(actions[-1])
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(["?", *actions]) + "\n"))
        status, out, err = run(capsys, "play", "--env", "webshop")
        assert (status, err) == (0, "") and "search[" in out
        assert out.endswith(f"won after {len(actions)} steps, return 1.000\n")

    @pytest.mark.parametrize("typed", ["", "q\n", "quit\n"])
    def test_enough_of_it(self, own: Path, monkeypatch: Any, capsys: Any, typed: str) -> None:
        status, out, _ = self.play(monkeypatch, capsys, typed)
        assert status == 0 and out.endswith("\nbye\n")


class TestRollout:
    def test_an_expert(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        output = tmp_path / "new" / "episodes.jsonl"
        arguments = ("--env", "kitchen", "--agent", "expert", "--episodes", "2", "--output", str(output))
        status, out, _ = run(capsys, "rollout", *arguments)
        assert status == 0 and out.count("won, return 1.000 (terminated)") == 2
        records = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
        assert [len(record["turns"]) for record in records] == [8, 8]
        env = KitchenEnv()
        observation, info = env.reset(seed=records[0]["seed"], options=records[0]["task"])
        for turn in records[0]["turns"]:
            assert turn["observation"] == observation and turn["action"] == expert_action(env)
            observation, reward, *_ = env.step(turn["action"])
            assert turn["reward"] == reward
        assert records[0]["final_observation"] == observation and info["instruction"] == records[0]["instruction"]

    def test_one_that_fails(self, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
        status, out, _ = run(capsys, "rollout", "--env", "own_world:Broken", "--episodes", "2")
        assert status == 1 and out.count("failed: ") == 2 and "reward" in out

    def test_no_more_steps_than_asked_for(self, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ("--env", "kitchen", "--agent", "expert", "--max_steps", "3", "--episodes", "1")
        _, out, _ = run(capsys, "rollout", *arguments)
        assert "lost, return 0.000 (max_turns)" in out and "  4 >" not in out


class TestTranscript:
    RECORD: Mapping[str, Any] = {
        "task": {"seed": 1},
        "instruction": "\x1b]0;owned\x07 buy",
        "turns": [
            {
                "observation": "page " * 400,
                "action": "click\x1b[2J[bold]x[/bold]",
                "reward": 0.5,
                "action_valid": False,
            }
        ],
        "final_observation": "bye",
        "return": 0.5,
        "success": False,
        "stop_reason": "terminated",
    }

    def test_texts_command_neither_the_terminal_nor_rich(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_episode(self.RECORD, width=100)
        out = capsys.readouterr().out
        assert "\x1b" not in out and "\x07" not in out
        assert r"click\x1b[2J[bold]x[/bold]" in out and r"\x1b]0;owned\x07 buy" in out

    def test_long_pages_are_shortened_unless_asked_for(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_episode(self.RECORD, width=100)
        short = capsys.readouterr().out
        assert "(1,400 more characters)" in short
        print_episode(self.RECORD, width=100, full=True)
        assert capsys.readouterr().out.count("page") == 400 > short.count("page")

    def test_rewards_and_verdicts(self, capsys: pytest.CaptureFixture[str]) -> None:
        turn = {"observation": "o", "action": "a", "reward": 0.25, "action_valid": True, "score": 0.75}
        print_episode({**self.RECORD, "turns": [{**turn, "evaluation": "well done"}], "success": True}, width=80)
        out = capsys.readouterr().out
        assert (
            re.search(r"1 > a  reward 0\.25  score +0\.75", out) and "well done" in out and "won, return 0.500" in out
        )

    def test_printable(self) -> None:
        assert printable("a\nb\tc\u202e\ud800é") == "a\nb\\tc\\u202e\\ud800é"

    def test_an_environment_keeps_what_else_it_has(self) -> None:
        transcripts = Transcripts(KitchenEnv)
        env = transcripts()
        env.reset(seed=3, options={"seed": 3})
        env.step(expert_action(env))  # which looks into it
        assert env.stations and len(transcripts.episodes[0]["turns"]) == 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of the embedded tiny policy, started as a person would."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "run.yaml").write_text(
        "env: kitchen\ntotal_episodes: 64\neval_tasks: 4\nlearning_rate: 1e-3\nper_device_train_batch_size: 16\n",
        encoding="utf-8",
    )
    done = shell("train", "--config", "run.yaml", "--learning_rate", "3e-4", "--output_dir", "out", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"^success \d\.\d\d before training, \d\.\d\d after \(4 held-out tasks, greedy\)$", done.stdout, re.M
    )
    assert "trl-mise report out" in done.stdout and "Traceback" not in done.stderr
    return folder / "out"


class TestTrain:
    def test_what_it_leaves(self, trained: Path) -> None:
        names = {path.name for path in trained.iterdir()}
        assert {"run.json", "run.yaml", "metrics.jsonl", "trajectories.jsonl", "evaluations.jsonl"} <= names
        assert {"model.safetensors", "tokenizer.json", "value_head.safetensors"} <= names
        assert len((trained / "trajectories.jsonl").read_text(encoding="utf-8").splitlines()) == 64
        record = json.loads((trained / "run.json").read_text(encoding="utf-8"))
        assert record["status"] == "finished" and record["total_updates"] == 2

    def test_the_command_line_comes_before_the_file_and_the_file_before_the_defaults(self, trained: Path) -> None:
        known = yaml.safe_load((trained / "run.yaml").read_text(encoding="utf-8"))
        assert known["learning_rate"] == 3e-4 and known["total_episodes"] == 64 and known["num_mini_batches"] == 2
        options = json.loads((trained / "run.json").read_text(encoding="utf-8"))["options"]
        assert options["learning_rate"] == 3e-4 and options["total_episodes"] == 64

    def test_its_file_does_the_same_again(self, trained: Path, tmp_path: Path) -> None:
        done = shell("train", "--config", str(trained / "run.yaml"), "--output_dir", "again", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        again = tmp_path / "again" / "trajectories.jsonl"
        assert again.read_bytes() == (trained / "trajectories.jsonl").read_bytes()

    def test_eval_and_rollout_know_the_run(
        self, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        arguments = ("--model_name_or_path", str(trained), "--episodes", "2", "--device", "cpu")
        status, out, err = run(capsys, "eval", *arguments, "--output", "result.json")
        assert status == 0, err
        options = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))["options"]
        assert (options["env"], options["agent"], options["max_steps"]) == ("kitchen", "model", 8)
        assert options["max_new_tokens"] == 3 and options["temperature"] is None

        sampled = ("--temperature", "1", "--output", "episodes.jsonl")
        status, out, err = run(capsys, "rollout", *arguments, *sampled)
        assert status == 0, err
        assert len(re.findall(r"score +\d\.\d\d", out)) == 16
        records = [json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text("utf-8").splitlines()]
        scores = [turn["score"] for record in records for turn in record["turns"]]
        # With the question that it was trained with it tells steps apart.
        assert max(scores) - min(scores) > 0.3
        status, out, _ = run(capsys, "rollout", *arguments, "--no_scores")
        assert status == 0 and "score" not in out

    def test_a_checkpoint_knows_the_run_above_it(self, trained: Path, tmp_path: Path) -> None:
        assert known_of_run(str(trained / "checkpoint-2"))["env"] == "kitchen"
        assert known_of_run(str(tmp_path)) == {}

    def test_variables_of_trl_s_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from trl_mise._trl import TrlParser
        from trl_mise.commands.train_options import Given, TaskArguments

        path = tmp_path / "run.yaml"
        path.write_text("env:\n  TRL_MISE_TEST: 5\ntrain_tasks: 3\n", encoding="utf-8")
        monkeypatch.setenv("TRL_MISE_TEST", "0")
        given = Given(TrlParser((TaskArguments,), allow_abbrev=False), ["--env", "kitchen", f"--config={path}"])
        assert os.environ["TRL_MISE_TEST"] == "5"
        assert (
            given.value("env") == "kitchen" and given.value("train_tasks") == 3 and given.value("eval_tasks") is None
        )
        (task,) = given.instances(given.over({"eval_tasks": 9, "train_tasks": 1}))
        assert (task.train_tasks, task.eval_tasks, task.train_split) == (3, 9, "train")

    @pytest.mark.parametrize(
        "text, message",
        [("learnin_rate: 1\n", "'learnin_rate' is no option; did you mean learning_rate?"), ("- 1\n", "a mapping")],
    )
    def test_a_bad_file(self, text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
        status, _, err = run(capsys, "train", "--env", "kitchen", "--config", str(tmp_path / "run.yaml"))
        assert status == 2 and message in err

    def test_all_options(self, capsys: pytest.CaptureFixture[str]) -> None:
        _, out, _ = run(capsys, "train", "--help_all")
        assert {"--hindsight_ema", "--lora_modules_to_save", "--adam_beta1"} <= set(re.findall(r"--\w+", out))

    def test_a_model_and_an_environment_of_ones_own(self, own: Path, trained: Path) -> None:
        """With an adapter; the words of the tiny model do not cover the environment, which is all the same here."""
        done = shell(
            *("train", "--env", "own_world:MyEnv", "--model_name_or_path", str(trained), "--use_peft"),
            *("--output_dir", "mine", "--total_episodes", "8", "--per_device_train_batch_size", "2"),
            *("--gradient_accumulation_steps", "2", "--num_mini_batches", "1", "--max_new_tokens", "2"),
            *("--eval_tasks", "2", "--train_tasks", "8", "--max_episode_tokens", "100", "--use_cpu"),
            cwd=own,
        )
        assert done.returncode == 0, done.stderr
        assert (own / "mine" / "adapter_model.safetensors").exists()
        lines = (own / "mine" / "trajectories.jsonl").read_text(encoding="utf-8").splitlines()
        assert {json.loads(line)["task"]["split"] for line in lines} == {"train"} and len(lines) == 8
        done = shell("eval", "--model_name_or_path", "mine", "--episodes", "2", cwd=own)
        assert done.returncode == 0 and done.stdout.startswith("own_world:MyEnv, test split, model agent"), done.stderr

    def test_a_model_without_a_chat_template(self, trained: Path, own: Path, capsys: Any) -> None:
        import shutil

        shutil.copytree(trained, own / "base")
        (own / "base" / "chat_template.jinja").unlink()
        status, _, err = run(capsys, "train", "--env", "own_world:MyEnv", "--model_name_or_path", str(own / "base"))
        assert status == 2 and "has no chat template" in err

    def test_accelerate_launches_it(self, tmp_path: Path) -> None:
        done = shell(
            *("launch", "--cpu", "--num_processes", "1", "-m", "trl_mise.cli", "train", "--env", "kitchen"),
            *("--total_episodes", "32", "--eval_tasks", "0", "--output_dir", "out"),
            cwd=tmp_path,
            module="accelerate.commands.accelerate_cli",
        )
        assert done.returncode == 0, done.stderr
        assert "saved to out" in done.stdout and (tmp_path / "out" / "run.json").exists()
