"""Scripted fakes: tokenizers that speak the known chat dialects, a policy and environments that follow a script."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from trl_mise.tiny import build_tokenizer

WORDS = ("go", "wait", "count", "task", "reach", "done", "red", "blue", "0", "1", "2", "3", "4")


def word_tokenizer(words: Iterable[str] = WORDS, *, pad_is_eos: bool = False) -> PreTrainedTokenizerFast:
    """The tiny policy's own tokenizer: a word is a token, `<|end|>` ends a turn."""
    tokenizer = build_tokenizer(list(words))
    if pad_is_eos:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@dataclass(frozen=True)
class Dialect:
    """How a family of models writes a conversation down.

    Args:
        template (`str`): Jinja chat template.
        special (`tuple[str, ...]`): special tokens. As in published tokenizers, most have no name like eos or pad.
        eos (`str`): the one that has.
        turn_end (`str`): what the policy samples to end its answer.
    """

    template: str
    special: tuple[str, ...]
    eos: str
    turn_end: str


_GENERATION = "{%% if add_generation_prompt %%}%s{%% endif %%}"
_CHATML_MESSAGE = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
_LLAMA_HEADER = "<|start_header_id|>%s<|end_header_id|>\n\n"

DIALECTS = {
    # A default system prompt, and a line break after the token that ends a turn.
    "chatml": Dialect(
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
        "{% for m in messages %}" + _CHATML_MESSAGE + "{% endfor %}" + _GENERATION % "<|im_start|>assistant\n",
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
        turn_end="<|im_end|>",
    ),
    # The token that ends a turn is not the eos token, and has no name.
    "llama3": Dialect(
        "{{ '<|begin|>' }}{% for m in messages %}"
        + _LLAMA_HEADER % "{{ m.role }}"
        + "{{ m.content | trim }}<|eot|>{% endfor %}"
        + _GENERATION % (_LLAMA_HEADER % "assistant"),
        ("<|begin|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot|>", "<|end_of_text|>"),
        eos="<|end_of_text|>",
        turn_end="<|eot|>",
    ),
    # No generation prompt of its own, and a space in front of the token that ends a turn.
    "llama2": Dialect(
        "{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }} </s>"
        "{% else %}<s>[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}",
        ("<s>", "</s>"),
        eos="</s>",
        turn_end="</s>",
    ),
    # Nothing ends a turn: the next header is special, but it belongs to the user's message.
    "headers_only": Dialect(
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}" + _GENERATION % "<|assistant|>",
        ("<|system|>", "<|user|>", "<|assistant|>", "<|eos|>"),
        eos="<|eos|>",
        turn_end="<|eos|>",
    ),
    # No special token in the template at all.
    "plain": Dialect(
        "{% for m in messages %}## {{ m.role }}\n{{ m.content }}\n{% endfor %}" + _GENERATION % "## assistant\n",
        ("<|eos|>",),
        eos="<|eos|>",
        turn_end="<|eos|>",
    ),
}


def byte_tokenizer(dialect: str | None = "chatml", *, pad_is_eos: bool = False, **names: str) -> Any:
    """A byte-level BPE that can read everything; `g` + `o` is its only merge, so `go` has two spellings in ids.

    Args:
        dialect (`str`, *optional*): key of [`DIALECTS`]; without one there is no chat template.
        pad_is_eos (`bool`): otherwise pad is a token of its own.
        names: further names of special tokens, e.g. `bos_token`.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate([*letters, "go"])}
    backend = Tokenizer(models.BPE(vocabulary, [("g", "o")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    chosen = None if dialect is None else DIALECTS[dialect]
    special = ("<|eos|>",) if chosen is None else chosen.special
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (*special, "<|pad|>")])
    eos = "<|eos|>" if chosen is None else chosen.eos
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=eos,
        pad_token=eos if pad_is_eos else "<|pad|>",
        chat_template=None if chosen is None else chosen.template,
        **names,
    )


def spelling_tokenizer() -> PreTrainedTokenizerFast:
    """A trap: its special tokens are words of the vocabulary too, so that plain text spells them."""
    words = ["<unk>", "<pad>", "<|im_start|>", "<|im_end|>", "user", "assistant", "red", "blue"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = (
        "{% for m in messages %}<|im_start|> {{ m.role }} {{ m.content }} <|im_end|> {% endfor %}"
        + _GENERATION % "<|im_start|> assistant "
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=template,
    )


def _config(vocab_size: int, **kwargs: Any) -> LlamaConfig:
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    # Wide enough weights for a distribution that is neither flat nor a single token.
    names = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    return LlamaConfig(
        **{
            "vocab_size": vocab_size,
            "initializer_range": 0.4,
            "max_position_embeddings": 128,
            **shape,
            **names,
            **kwargs,
        }
    )


def tiny_llama(vocab_size: int, *, seed: int = 0, **kwargs: Any) -> LlamaForCausalLM:
    """A causal LM with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(_config(vocab_size, **kwargs)).eval()


def tiny_reward_model(vocab_size: int, *, seed: int = 0, **kwargs: Any) -> LlamaForSequenceClassification:
    """A sequence classifier with one label and random weights, in evaluation mode."""
    torch.manual_seed(seed)
    return LlamaForSequenceClassification(_config(vocab_size, num_labels=1, **kwargs)).eval()


class ScriptedPolicy:
    """A `Generate` that plays a list of sampled actions per episode, in the order in which the episodes begin.

    A context that continues none of the episodes under way begins the next one; contexts must tell episodes apart.

    Args:
        scripts: ids to be sampled, one list of actions per episode.
    """

    def __init__(self, scripts: Sequence[Sequence[Sequence[int]]]) -> None:
        self.scripts = scripts
        self.calls: list[list[tuple[int, ...]]] = []
        """The contexts of every call."""
        self._under_way: dict[int, tuple[tuple[int, ...], int]] = {}

    def __call__(self, contexts: Sequence[Sequence[int]]) -> list[list[int]]:
        self.calls.append([tuple(context) for context in contexts])
        return [self._act(tuple(context)) for context in contexts]

    def _act(self, context: tuple[int, ...]) -> list[int]:
        seen = [
            (episode, turn) for episode, (prefix, turn) in self._under_way.items() if context[: len(prefix)] == prefix
        ]
        assert len(seen) <= 1, "two episodes with the same prefix: give every task a prompt of its own"
        episode, turn = seen[0] if seen else (len(self._under_way), 0)
        action = list(self.scripts[episode][turn])
        self._under_way[episode] = ((*context, *action), turn + 1)
        return action


class CountingEnv:
    """Say `go` as often as asked. The optimum is known: `goal` actions, all of them `go`, return 1.

    The task may name the `goal`; the seed is part of the first observation. Anything but `go` is invalid and does
    nothing.

    Args:
        goal (`int`): of a task that names none.
        step_limit (`int`, *optional*): the environment's own truncation.
    """

    def __init__(self, goal: int = 2, step_limit: int | None = None) -> None:
        self.default_goal, self.step_limit = goal, step_limit
        self.resets: list[tuple[int | None, Mapping[str, Any] | None]] = []
        self.actions: list[list[str]] = []
        """What reached the environment, per episode."""

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        self.resets.append((seed, options))
        self.actions.append([])
        self.goal, self.count = int((options or {}).get("goal", self.default_goal)), 0
        return f"task {seed} count 0", {"instruction": f"reach {self.goal}"}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        said = self.actions[-1]
        said.append(action)
        valid = action == "go"
        self.count += valid
        won = self.count == self.goal
        cut_short = not won and self.step_limit is not None and len(said) >= self.step_limit
        return f"count {self.count}", float(won), won, cut_short, {"action_valid": valid, "won": won}

    def close(self) -> None:
        pass


@dataclass
class ScriptedEnv:
    """Plays back its observations, whatever the action; the first is o_0.

    Args:
        observations: o_0, o_1, ...; the last one comes with `terminated` or `truncated`.
        terminated, truncated (`bool`): how it ends.
        info: of every step.
        rewards: of the steps; 0 where there are fewer than steps.
    """

    observations: Sequence[str]
    terminated: bool = True
    truncated: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)
    rewards: Sequence[Any] = ()
    instruction: str = ""

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        self.turn = 0
        return self.observations[0], {"instruction": self.instruction}

    def step(self, action: str) -> tuple[str, Any, bool, bool, dict[str, Any]]:
        self.turn += 1
        reward = self.rewards[self.turn - 1] if self.turn <= len(self.rewards) else 0.0
        last = self.turn == len(self.observations) - 1
        return self.observations[self.turn], reward, last and self.terminated, last and self.truncated, dict(self.info)

    def close(self) -> None:
        pass
