"""A policy small enough for a laptop: a word-level tokenizer with a chat template, a from-scratch decoder, a cache.

Together with the warm start (`warm_start.py`, `recipes.py`) it stands in for an instruct model and its weak prior: it
speaks one environment's language, plays it badly, and judges steps a little better than chance. It knows nothing else.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import safetensors.torch
import torch
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import PreTokenizer, Split, WhitespaceSplit
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import SAFE_WEIGHTS_NAME

from .cache import cache_root, staged
from .chat import ChatFormat

UNK, PAD, USER, ASSISTANT, END = "<unk>", "<pad>", "<|user|>", "<|assistant|>", "<|end|>"
MARKUP = ("search[", "click[", "]", "[SEP]", "(", ")", ",", ":", "$", "?")
"""Cut out of words and kept whole: `"click[buy now]"` reads `click[ buy now ]`."""

# Every message starts with its speaker; an answer also ends with a token of its own, which the policy samples.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}"
    f"{ASSISTANT}{{{{ message.content }}}}{END}"
    "{% else %}"
    f"{USER}{{{{ message.content }}}}"
    "{% endif %}{% endfor %}"
    f"{{% if add_generation_prompt %}}{ASSISTANT}{{% endif %}}"
)

FORMAT_VERSION = 1
"""Part of every cache key; raise it when the same recipe builds another model."""

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all)."""


class Recipe(Protocol):
    """Everything that a tiny policy is made of: a frozen dataclass whose fields name the result."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def build(self, progress: Progress | None = None) -> tuple[Any, Any]:
        """Builds (model, tokenizer); the same fields give the same weights."""
        ...


def build_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with a minimal chat template; decoding joins words with single spaces.

    Args:
        words (`Sequence[str]`): the vocabulary; repeated words count once. [`MARKUP`] is always in it.

    Returns:
        `PreTrainedTokenizerFast`: eos is `<|end|>`, which ends every answer; pad is a token of its own.

    Raises:
        ValueError: a word that the pre-tokenizer would cut, so that its id could never occur.
    """
    vocabulary: dict[str, int] = {}
    for word in (UNK, *MARKUP, *words):
        pieces = split_pieces(word)
        if pieces != [word]:
            raise ValueError(f"words: {word!r} is no single word, it reads {pieces}; give its pieces instead")
        vocabulary.setdefault(word, len(vocabulary))
    backend = Tokenizer(WordLevel(vocabulary, unk_token=UNK))
    backend.pre_tokenizer = _pre_tokenizer()
    # Special tokens stay out of the model's own vocabulary: as plain text they are unknown words and nothing else.
    backend.add_special_tokens([AddedToken(token, special=True) for token in (PAD, USER, ASSISTANT, END)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=UNK,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def split_pieces(text: str) -> list[str]:
    """The words that [`build_tokenizer`] needs to know to read `text`."""
    return [piece for piece, _ in _pre_tokenizer().pre_tokenize_str(text)]


def _pre_tokenizer() -> PreTokenizer:
    alternatives = "|".join(re.escape(token) for token in MARKUP)
    return PreTokenizers([WhitespaceSplit(), Split(Regex(alternatives), "isolated")])


def build_policy(
    tokenizer: Any,
    *,
    hidden_size: int = 64,
    num_layers: int = 2,
    num_heads: int = 4,
    max_positions: int = 256,
    seed: int = 0,
) -> LlamaForCausalLM:
    """A decoder from scratch (0.1M parameters by default); the global random state is left alone.

    Args:
        tokenizer (`PreTrainedTokenizerFast`): from [`build_tokenizer`].
        hidden_size (`int`): width.
        num_layers (`int`): two are needed to look something up.
        num_heads (`int`): attention heads.
        max_positions (`int`): longest episode with a question about it.
        seed (`int`): of the weights.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        initializer_range=0.125,  # the usual .02 is for wide models: at this width it never learned to look things up
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def cached(
    recipe: Recipe, cache_dir: str | os.PathLike[str] | None = None, progress: Progress | None = None
) -> tuple[Any, Any]:
    """The recipe's (model, tokenizer), built once and then loaded from disk.

    Args:
        recipe ([`Recipe`]): its class and fields are the key.
        cache_dir (`str` or `PathLike`, *optional*): defaults to the environment variable `TRL_MISE_CACHE`, else to
            `~/.cache/trl-mise`.
        progress ([`Progress`], *optional*): passed to the recipe where it has to build.
    """
    folder = cache_path(recipe, cache_dir)
    if not _is_whole(folder):
        model, tokenizer = recipe.build(progress)
        _save(folder, recipe, model, tokenizer)
    # What was just built is loaded too: the first run and the second get the very same thing.
    return LlamaForCausalLM.from_pretrained(folder), PreTrainedTokenizerFast.from_pretrained(folder)


def cache_path(recipe: Recipe, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where [`cached`] keeps the recipe's result."""
    digest = hashlib.sha256(_describe(recipe).encode()).hexdigest()[:16]
    return cache_root(cache_dir) / f"{type(recipe).__name__}-{digest}"


def _describe(recipe: Recipe) -> str:
    fields = dataclasses.asdict(recipe)
    return json.dumps({"recipe": type(recipe).__name__, "version": FORMAT_VERSION, **fields}, sort_keys=True)


def _is_whole(folder: Path) -> bool:
    return (folder / SAFE_WEIGHTS_NAME).is_file()


def _save(folder: Path, recipe: Recipe, model: Any, tokenizer: Any) -> None:
    """All or nothing."""
    try:
        with staged(folder, lambda: _is_whole(folder)) as staging:
            model.save_pretrained(staging)
            if not _is_whole(staging):
                # Of several processes transformers lets the first one alone write a model. Here every one writes what
                # it has built, and the fastest one's is kept.
                safetensors.torch.save_model(model, str(staging / SAFE_WEIGHTS_NAME), metadata={"format": "pt"})
                model.config.save_pretrained(staging)
            tokenizer.save_pretrained(staging)
            (staging / "recipe.json").write_text(_describe(recipe) + "\n", encoding="utf-8")
    except OSError:
        if not _is_whole(folder):  # otherwise another process was faster, with the same result
            raise


class MemoisedFormat(ChatFormat):
    """A chat format that remembers what it encoded; a scripted player says the same few things again and again."""

    def __init__(self, tokenizer: Any) -> None:
        self._known: dict[str, list[int]] = {}
        self._texts: dict[tuple[int, ...], str] = {}
        super().__init__(tokenizer)

    def encode_text(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = super().encode_text(text)
        return list(self._known[text])

    def decode(self, token_ids: Sequence[int]) -> str:
        key = tuple(token_ids)
        if key not in self._texts:
            self._texts[key] = super().decode(token_ids)
        return self._texts[key]
