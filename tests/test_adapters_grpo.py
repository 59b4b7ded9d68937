"""Our environments for GRPOTrainer: its tool schemas, its calls, and one real optimizer step of it."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import trl
from packaging.version import Version
from transformers.utils import get_json_schema

from trl_mise.envs.adapters import as_trl_environment, format_tool_call, from_trl_environment
from trl_mise.envs.check import check_env
from trl_mise.envs.kitchen import KitchenEnv, expert_action, make_tasks

OVER = "The episode is over. Answer without calling a tool."


class TinyKitchen(KitchenEnv):
    """Two stations, so that an episode is two calls."""

    def __init__(self) -> None:
        super().__init__(stations=2, values=3)
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def test_the_class_as_grpo_trainer_sees_it() -> None:
    cls = as_trl_environment(TinyKitchen)
    assert cls.__name__ == "TinyKitchen" and as_trl_environment(TinyKitchen, name="Desk").__name__ == "Desk"
    assert as_trl_environment(lambda: TinyKitchen()).__name__ == "TextEnvironment"
    assert as_trl_environment(TinyKitchen) is not cls  # rewards are told apart by class
    environment = cls()
    public = [name for name in dir(environment) if not name.startswith("_")]
    assert public == ["get_reward", "reset", "step"]
    schema = get_json_schema(environment.step)["function"]
    assert schema["name"] == "step" and schema["description"] == (
        "Takes one action in the environment and returns what comes of it."
    )
    assert schema["parameters"] == {
        "type": "object",
        "properties": {"action": {"type": "string", "description": "The action, as text."}},
        "required": ["action"],
    }


def test_a_whole_episode() -> None:
    environment = as_trl_environment(TinyKitchen)()
    with pytest.raises(ValueError, match="episode is over"):
        environment.step("grill rare")  # before the first reset
    (row,) = make_tasks("train", 1)
    text = environment.reset(**row)
    kitchen = environment._env
    assert text == f"{kitchen.reset(seed=row['seed'], options=row)[1]['instruction']}\n\nnow {kitchen.station}"
    environment.reset(**row)
    assert environment.step(expert_action(kitchen)).startswith("done . now ")
    assert environment.get_reward() == 0.0
    assert environment.step(expert_action(kitchen)) == f"served . all right\n\n{OVER}"
    assert environment.get_reward() == 1.0
    with pytest.raises(ValueError, match="episode is over"):
        environment.step("again")
    environment.reset(**row)
    with pytest.raises(TypeError, match="action must be a string, got int"):
        environment.step(3)
    assert environment.get_reward() == 0.0  # forgotten with the episode


def test_the_first_text_is_kept_apart_from_the_prompt() -> None:
    environment = as_trl_environment(TinyKitchen)()
    assert environment.reset(seed=1).startswith("order :")
    assert environment.reset(seed=1, prompt=[{"role": "user", "content": ""}]).startswith("order :")
    assert environment.reset(seed=1, prompt=[{"role": "user", "content": "Serve."}]).startswith("\n\norder :")


def test_environments_are_closed_with_the_object_that_holds_them() -> None:
    environment = as_trl_environment(TinyKitchen)()
    kitchen = environment._env
    del environment
    gc.collect()
    assert kitchen.closed == 1


def test_one_instance_cannot_be_played_twice_at_once() -> None:
    cls = as_trl_environment(TinyKitchen())
    cls().reset(seed=1)
    with pytest.raises(ValueError, match=r"a second TinyKitchen .* give it a factory"):
        cls()


def test_there_and_back_again() -> None:
    """Our environment as TRL's, and that as ours: the same rewards, and the contract holds."""
    factory = as_trl_environment(TinyKitchen)
    env = from_trl_environment(factory)
    (row,) = make_tasks("train", 1)
    env.reset(seed=row["seed"], options=row)
    kitchen = env.environment._env
    for _ in range(2):
        observation, reward, terminated, _, _ = env.step(format_tool_call("step", {"action": expert_action(kitchen)}))
        assert (reward, terminated) == (0.0, False)
    assert observation.endswith(OVER)
    assert OVER in env.step(format_tool_call("step", {"action": "more"}))[0]
    assert env.step("Served.")[1:3] == (1.0, True)
    check_env(lambda: from_trl_environment(factory), actions=[format_tool_call("step", {"action": "x"})] * 4)


# The real GRPOTrainer

CHAT_TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
    "{% for message in messages %}{% if message.role == 'assistant' %}<|assistant|>{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|end|>"
    "{% else %}<|user|>{{ message.name or '' }} {{ message.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>",
    "fields": {
        "tool_calls": {
            "open": "<tool_call>",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<\|end\|>\s*", "content": "text"},
    },
}


def byte_tokenizer() -> Any:
    """Bytes and a few special tokens; a chat template that knows tools."""
    from tokenizers import AddedToken, Tokenizer, decoders
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(BPE({char: index for index, char in enumerate(sorted(ByteLevel.alphabet()))}, []))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(t, special=True) for t in ("<|user|>", "<|assistant|>", "<|end|>", "<pad>")]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|end|>",
        pad_token="<pad>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.response_template = RESPONSE_TEMPLATE
    return tokenizer


@pytest.mark.skipif(
    Version(trl.__version__) < Version("1.12") or Version(transformers.__version__) < Version("5.13"),
    reason="environments that own their reward came with TRL 1.12, response templates with transformers 5.13",
)
def test_a_step_of_grpo_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is TRL's but the sampling: half of the rollouts play the expert's actions, half one wrong action."""
    from datasets import Dataset
    from trainer_fakes import largest_difference, make_policy, weights
    from trl import GRPOConfig, GRPOTrainer

    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    tokenizer = byte_tokenizer()
    rows = [{"prompt": [{"role": "user", "content": "Serve."}], **row} for row in make_tasks("train", 1)]
    trainer = GRPOTrainer(
        model=make_policy(tokenizer, max_position_embeddings=2048),
        args=GRPOConfig(
            output_dir=str(tmp_path),
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=1,
            max_steps=1,
            learning_rate=1e-2,
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=512,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        environment_factory=as_trl_environment(TinyKitchen),
    )
    prompts: list[str] = []

    def play(prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> tuple[list[list[int]], None]:
        answers = []
        for index, (ids, environment) in enumerate(zip(prompt_ids, trainer.environments, strict=True)):
            prompts.append(tokenizer.decode(ids))
            kitchen = environment._env
            if environment._over:
                answer = "Served."
            elif index < 2:
                answer = format_tool_call("step", {"action": expert_action(kitchen)})
            else:
                answer = format_tool_call("step", {"action": f"{kitchen.station} plain"})
            answers.append(tokenizer(f"{answer}<|end|>")["input_ids"])
        return answers, None

    monkeypatch.setattr(trainer, "_generate_single_turn", play)
    before = weights(trainer.model)
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["rewards/TinyKitchen/mean"] == 0.5 and log["reward_std"] > 0
    assert log["tools/call_frequency"] == 2.0 and log["tools/failure_frequency"] == 0.0
    assert largest_difference(before, weights(trainer.model)) > 1e-3
    assert len(prompts) == 4 * 3  # two calls and an answer each
    assert '"name": "step"' in prompts[0] and "Serve.\n\norder :" in prompts[0]
    assert "step done . now " in prompts[4]
    assert f"served . all right\n\n{OVER}" in prompts[8] and f"served . order wrong\n\n{OVER}" in prompts[11]
    assert torch.isfinite(torch.tensor(log["loss"]))
