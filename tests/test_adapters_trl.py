"""A class written for GRPOTrainer behind our contract, and a training step on one."""

import json
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from trl_mise.envs.adapters import format_tool_call, from_trl_environment
from trl_mise.envs.base import EnvironmentFailure, TextEnv
from trl_mise.envs.check import check_env

HOSTILE = (
    "", " ", "\n", "look\nguess", "guess. guess. quit", "save", "restore", "quit", "restart", "reset task",
    "x" * 10_000, "\x00\x1b[2J", "🤣", "<|im_end|>", "<tool_call>", "{" * 5_000, "<tool_call>{}</tool_call>",
    '<tool_call>{"name": "reset", "arguments": {}}</tool_call>', '{"name": "__init__", "arguments": {}}',
    '{"name": "get_reward", "arguments": {}}', '{"name": "_secret", "arguments": {}}',
    '{"name": "close", "arguments": {}}', '{"name": "guess", "arguments": {"self": 1, "number": 2}}',
)  # fmt: skip


class GuessEnv:
    """As TRL's documentation writes such classes: typed public methods with docstrings, `get_reward`."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.closed = 0

    def reset(self, secret: int = 3, **kwargs: Any) -> str:
        self.secret, self.kwargs = secret, kwargs
        self.found, self.guesses, self.done = False, 0, False
        return "I think of a number. "

    def guess(self, number: int) -> str:
        """Guesses the number.

        Args:
            number: Your guess.

        Returns:
            What the guess was like.
        """
        if self.done:
            raise ValueError("Game over.")
        self.guesses += 1
        self.log.append(number)
        self.found = number == self.secret
        self.done = self.found or self.guesses >= 3
        return "Right." if self.found else f"{number} is wrong."

    async def hint(self, loud: bool = False) -> dict[str, Any]:
        """Asks for a hint.

        Args:
            loud: Whether to shout.
        """
        self.log.append("hint")
        return {"odd": self.secret % 2 == 1, "loud": loud}

    def picture(self) -> list[dict[str, Any]]:
        """Looks at a picture."""
        return [{"type": "text", "text": "a picture \ud83d"}, {"type": "image", "image": object()}]

    def get_reward(self) -> float:
        return 1 if self.found else 0

    def _secret(self) -> int:
        return self.secret

    def close(self) -> None:
        self.closed += 1


def call(name: str, **arguments: Any) -> str:
    return format_tool_call(name, arguments)


def started(**kwargs: Any) -> Any:
    env = from_trl_environment(GuessEnv, **kwargs)
    env.reset(options={"secret": 3})
    return env


def test_a_whole_episode() -> None:
    env = from_trl_environment(GuessEnv)
    assert isinstance(env, TextEnv)
    row = {"prompt": [{"role": "system", "content": "Be quick."}, {"role": "user", "content": "Find it."}]}
    observation, info = env.reset(seed=5, options={**row, "secret": 4, "level": "easy"})
    assert observation == "I think of a number. "
    assert env.environment.kwargs == {**row, "level": "easy", "seed": 5}  # the whole row, as in TRL
    assert info["instruction"].startswith("Be quick.\n\nFind it.\n\nYou have these tools")
    assert '"name": "guess"' in info["instruction"] and '"name": "hint"' in info["instruction"]
    assert "get_reward" not in info["instruction"] and '"close"' not in info["instruction"]
    assert env.step(call("guess", number=3)) == ("3 is wrong.", 0.0, False, False, {"action_valid": True})
    assert env.step(f"Hm. {call('hint')}")[0] == "{'odd': False, 'loud': False}"  # a coroutine
    assert env.step(call("guess", number=4))[:3] == ("Right.", 0.0, False)
    observation, reward, terminated, truncated, info = env.step("It is 4.")
    assert observation == "The task has ended. Reward: 1"
    assert (reward, terminated, truncated, info) == (1.0, True, False, {"action_valid": True})
    assert type(reward) is float
    with pytest.raises(EnvironmentFailure, match="GuessEnv: step.. before reset"):
        env.step("again")
    env.reset(options={"secret": 1})
    assert env.step("I give up.")[1:3] == (0.0, True)
    env.close()
    env.close()
    assert env.environment.closed == 1


def test_several_calls_run_in_order() -> None:
    env = started()
    text = call("guess", number=1) + call("nothing") + call("hint", loud=True) + call("guess", number=2)
    observation, reward, terminated, _, info = env.step(text)
    assert observation == (
        "guess: 1 is wrong.\nnothing: {'error': 'Tool nothing not found.'}\n"
        "hint: {'odd': True, 'loud': True}\nguess: 2 is wrong."
    )
    assert env.environment.log == [1, "hint", 2]
    assert (reward, terminated, info["action_valid"]) == (0.0, False, False)


@pytest.mark.parametrize(
    ("action", "error"),
    [
        (call("look"), "Tool look not found."),
        (call("guess"), "missing 1 required positional argument: 'number'"),
        (call("guess", number=1, loud=True), "unexpected keyword argument 'loud'"),
        (call("guess", **{"a b": 1}), "unexpected keyword argument"),
        (call("hint", self=1), "multiple values for argument 'self'"),
        ('<tool_call>{"name": "guess"', "one JSON object"),
        ('{"name": "guess", "arguments": 3}', "must be a JSON object"),
    ],
)
def test_a_bad_call_becomes_an_observation(action: str, error: str) -> None:
    env = started()
    observation, reward, terminated, truncated, info = env.step(action)
    assert error in observation and "error" in observation
    assert (reward, terminated, truncated, info["action_valid"]) == (0.0, False, False, False)
    assert env.environment.log == []
    assert env.step(call("guess", number=3))[0] == "Right."


def test_an_exception_in_a_tool_reads_as_in_grpo_trainer() -> None:
    env = started()
    env.step(call("guess", number=3))
    assert env.step(call("guess", number=3))[0] == str({"error": "Game over."})


def test_content_blocks_become_text() -> None:
    assert started().step(call("picture"))[0] == "a picture ?\n[image]"


@pytest.mark.parametrize("action", HOSTILE)
def test_hostile_actions_change_nothing(action: str) -> None:
    env = started()
    env.step(call("guess", number=1))
    before = dict(vars(env.environment))
    observation, reward, terminated, truncated, info = env.step(action)
    assert {**vars(env.environment)} == before
    assert len(observation) < 10_000 and not truncated
    # What is no call ends the episode, as in TRL; what is meant to be one does not.
    assert terminated is not ("tool_call" in action or "name" in action)
    assert reward == 0.0


def test_is_done_ends_the_episode_at_once() -> None:
    env = started(is_done=lambda environment: environment.done)
    assert env.step(call("guess", number=1))[2] is False
    observation, reward, terminated, _, info = env.step(call("guess", number=3))
    assert observation == "Right.\n\nThe task has ended. Reward: 1"
    assert (reward, terminated, info["action_valid"]) == (1.0, True, True)


def test_after_the_last_iteration_calls_are_not_made() -> None:
    """As GRPOTrainer with `max_tool_calling_iterations=2`: two rounds of calls, one more answer, then the reward."""
    env = started(max_tool_calling_iterations=2)
    assert env.step(call("guess", number=1))[2] is False
    assert env.step(call("guess", number=3))[2] is False
    assert env.step(call("guess", number=2))[1:3] == (1.0, True)
    assert env.environment.log == [1, 3]
    env.reset(options={"secret": 1})  # counted anew
    assert env.step(call("guess", number=1))[2] is False


def test_reward_from_a_function() -> None:
    def reward_func(environments: list[Any], **kwargs: Any) -> list[float]:
        return [0.5 * environment.found for environment in environments]

    env = started(reward=lambda environment, answer: reward_func([environment])[0] + ("sure" in answer))
    env.step(call("guess", number=3))
    assert env.step("I am sure.")[1] == 1.5


def test_a_reward_that_is_no_number_is_a_failure() -> None:
    with pytest.raises(EnvironmentFailure, match="GuessEnv: the reward .* is None"):
        started(reward=lambda environment, answer: None).step("done")


def test_an_environment_may_say_that_it_is_broken() -> None:
    class Broken(GuessEnv):
        def guess(self, number: int) -> str:
            """Guesses.

            Args:
                number: A number.
            """
            raise EnvironmentFailure("the server is gone")

    env = from_trl_environment(Broken)
    env.reset()
    with pytest.raises(EnvironmentFailure, match="the server is gone"):
        env.step(call("guess", number=1))


def test_rows_and_signatures() -> None:
    class Strict:
        def reset(self, level: int) -> None:
            self.level = level

        def look(self) -> str:
            """Looks."""
            return "a room"

        def close(self, door: str) -> str:
            """Closes a door.

            Args:
                door: Which one.
            """
            return f"{door} closed"

        async def get_reward(self) -> float:
            return 0.25

    env = from_trl_environment(Strict, instruction="Tools: look.")
    # It knows neither of prompt nor of seed, which every row may have.
    observation, info = env.reset(seed=1, options={"level": 2, "prompt": "Go.", "seed": 1})
    assert observation == "" and info["instruction"] == "Go.\n\nTools: look." and env.environment.level == 2
    assert env.step('{"name": "look"}')[0] == "a room"
    assert env.step(call("close", door="red"))[0] == "red closed"  # takes an argument, so it is a tool
    assert env.step("done")[1] == 0.25
    env.close()
    with pytest.raises(TypeError, match="unexpected keyword argument 'size'"):
        env.reset(options={"level": 2, "size": 3})


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ({}, TypeError, "has no method reset"),
        ({"reset": lambda self: None, "get_reward": lambda self: 0.0}, ValueError, "no tool to call"),
        ({"reset": lambda self: None, "look": lambda self: ""}, ValueError, "no get_reward.*reward="),
    ],
)
def test_classes_that_cannot_be_played(body: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"Odd.*{message}"):
        from_trl_environment(type("Odd", (), body))


def test_wrong_limit() -> None:
    with pytest.raises(ValueError, match="max_tool_calling_iterations must be at least 1, got 0"):
        from_trl_environment(GuessEnv, max_tool_calling_iterations=0)


def test_the_contract() -> None:
    check_env(partial(from_trl_environment, GuessEnv), task={"secret": 2})
    actions = [call("guess", number=1), *HOSTILE[-8:], call("hint"), call("guess", number=3), "It is 3."]
    check_env(partial(from_trl_environment, GuessEnv), actions=actions)
    check_env(partial(from_trl_environment, GuessEnv, max_tool_calling_iterations=4), actions=HOSTILE[14:])


def test_the_factory_can_be_pickled() -> None:
    factory = pickle.loads(pickle.dumps(partial(from_trl_environment, GuessEnv, max_tool_calling_iterations=3)))
    one, other = factory(), factory()
    assert one.environment is not other.environment
    one.reset(options={"secret": 1})
    assert one.step(call("guess", number=1))[0] == "Right."


def test_a_training_step(tmp_path: Path) -> None:
    """The class of this file, unchanged, under the trainer: sampled calls are made, the reward comes at the end."""
    from datasets import Dataset
    from trainer_fakes import largest_difference, make_policy, make_trainer, weights

    guesses = [f'{{"name":"guess","arguments":{{"number":{number}}}}}' for number in range(4)]
    tokenizer = one_word_tokenizer([*guesses, "enough", "judge", "step", "good", "bad"])
    trainer = make_trainer(
        tmp_path,
        tokenizer=tokenizer,
        model=make_policy(tokenizer, max_position_embeddings=1024),
        environment_factory=partial(from_trl_environment, GuessEnv, tokenizer, max_tool_calling_iterations=3),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "x"}], "secret": 1}] * 16),
        max_episode_tokens=512,
        max_turns=5,
    )
    before = weights(trainer.actor_critic)
    trainer.train()
    assert largest_difference(before, weights(trainer.actor_critic)) > 1e-3
    lines = [json.loads(line) for line in (tmp_path / "trajectories.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) == 16
    for line in lines:
        assert line["stop_reason"] == "terminated" and "You have these tools" in line["instruction"]
        assert line["return"] == float(line["final_observation"].removeprefix("The task has ended. Reward: "))
        assert all(turn["reward"] == 0.0 for turn in line["turns"][:-1])
    observations = [turn["observation"] for line in lines for turn in line["turns"]]
    assert any("is wrong." in text for text in observations) and any("Right." in text for text in observations)
    assert {line["return"] for line in lines} == {0.0, 1.0}


def one_word_tokenizer(words: list[str]) -> Any:
    """A word-level tokenizer that splits at blanks only, so that a whole call can be one token."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    from trl_mise.tiny import ASSISTANT, CHAT_TEMPLATE, END, PAD, UNK, USER

    backend = Tokenizer(WordLevel({word: index for index, word in enumerate([UNK, *words])}, unk_token=UNK))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=UNK,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
    )
