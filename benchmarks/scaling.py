"""How much memory a run needs and what the judge costs, from a model's architecture; the tables of docs/scaling.md.

    python -m benchmarks.scaling        # counts the parameters on torch's meta device, writes the tables

Nothing here is a measurement on a GPU. Parameters are exact; bytes of weights, gradients, Adam and quantised weights
are arithmetic that tests/test_scaling.py counts after on tiny models; activations are a formula whose constants were
fitted to, and are tested against, what torch allocates on a CPU; FLOPs are held against results/update.json.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from benchmarks._common import markdown

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
MARKERS = ("<!-- {}: written by `python -m benchmarks.scaling` -->\n", "<!-- end of {} -->\n")
GB = 1e9

ROW_TOKENS, ENVIRONMENTS, LORA_RANK = 4096, 16, 16
"""What the tables assume: micro-batches of one row, so many tokens an episode, so many episodes side by side."""
QUESTION, SHARED, ACTION = 64, 48, 12
"""Tokens of a question, of what all questions of an episode share, and of an action: as with a GPT-like tokenizer."""
CARDS = {"T4, 16 GB": 16, "24 GB": 24, "80 GB": 80}
USABLE = 0.9
"""Of a card; the rest is for the driver's context and for what the allocator cannot use."""


@dataclass(frozen=True)
class Architecture:
    """A decoder's sizes.

    Args:
        hidden, layers, heads, kv_heads, head_dim, intermediate, vocab (`int`): as in its config.json.
        tied (`bool`): input and output embeddings are one.
        qkv_bias (`bool`): Qwen2 has biases there, Llama has not.
        published (`float`): parameters in billions, as its model card says.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    qkv_bias: bool
    published: float

    @property
    def linear_shapes(self) -> list[tuple[int, int]]:
        """(in, out) of the linear layers of one decoder layer."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = [(self.hidden, queries), (self.hidden, keys), (self.hidden, keys), (queries, self.hidden)]
        return attention + 2 * [(self.hidden, self.intermediate)] + [(self.intermediate, self.hidden)]

    @property
    def linear(self) -> int:
        """Weights of all linear layers but the output head: what is quantised, and what adapters stand beside."""
        return self.layers * sum(rows * columns for rows, columns in self.linear_shapes)

    @property
    def embeddings(self) -> int:
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        biases = (self.heads + 2 * self.kv_heads) * self.head_dim if self.qkv_bias else 0
        return self.linear + self.embeddings + self.layers * (biases + 2 * self.hidden) + self.hidden

    @property
    def value_head(self) -> int:
        """Of [`trl_mise.actor_critic.ValueHead`], in float32."""
        return self.hidden * self.hidden + 2 * self.hidden + 1

    @property
    def cache_bytes(self) -> int:
        """Keys and values of one token in bfloat16."""
        return 2 * self.layers * self.kv_heads * self.head_dim * 2

    def lora(self, rank: int) -> int:
        """Parameters of an adapter of this rank on all linear layers but the output head."""
        return self.layers * sum(rank * (rows + columns) for rows, columns in self.linear_shapes)


# Sizes: the config.json of each model on the hub; parameters: its model card. Reports: arXiv 2412.15115, 2407.21783.
MODELS: Mapping[str, Architecture] = {
    "Qwen2.5-0.5B": Architecture(896, 24, 14, 2, 64, 4864, 151936, True, True, 0.49),
    "Qwen2.5-1.5B": Architecture(1536, 28, 12, 2, 128, 8960, 151936, True, True, 1.54),
    "Qwen2.5-3B": Architecture(2048, 36, 16, 2, 128, 11008, 151936, True, True, 3.09),
    "Qwen2.5-7B": Architecture(3584, 28, 28, 4, 128, 18944, 152064, False, True, 7.61),
    "Qwen2.5-14B": Architecture(5120, 48, 40, 8, 128, 13824, 152064, False, True, 14.7),
    "Llama-3.2-1B": Architecture(2048, 16, 32, 8, 64, 8192, 128256, True, False, 1.23),
    "Llama-3.2-3B": Architecture(3072, 28, 24, 8, 128, 8192, 128256, True, False, 3.21),
    "Llama-3.1-8B": Architecture(4096, 32, 32, 8, 128, 14336, 128256, False, False, 8.03),
}


def meta_model(shape: Architecture) -> Any:
    """The model without memory for its weights."""
    config_class, model_class = (Qwen2Config, Qwen2ForCausalLM) if shape.qkv_bias else (LlamaConfig, LlamaForCausalLM)
    config = config_class(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate,
        vocab_size=shape.vocab,
        tie_word_embeddings=shape.tied,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.device("meta"):
        return model_class(config)


# Memory


NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of a weight in nf4 with double quantisation: four bits, a byte for 64 of them, four bytes for 256 of these."""


@dataclass(frozen=True)
class Way:
    """How a model is trained.

    Args:
        title (`str`): of its column.
        weight_bytes (`int`): of a parameter of the policy that is not quantised.
        adapter (`bool`): only an adapter (float32) is trained; the reference is the policy without it.
        quantised (`bool`): linear layers in nf4.
        activation (`tuple[int, int, int]`): bytes a token for `layers * hidden`, `hidden` and `intermediate`.
    """

    title: str
    weight_bytes: int
    adapter: bool
    quantised: bool
    activation: tuple[int, int, int]


# Activations: fitted to the peak of a forward and a backward pass with checkpointing on a CPU (tests/test_scaling.py).
WAYS = (
    Way("full float32", 4, False, False, (4, 32, 24)),
    Way("full bfloat16", 2, False, False, (2, 29, 11)),
    Way("LoRA", 2, True, False, (2, 40, 15)),
    Way("QLoRA", 2, True, True, (2, 40, 15)),
)


def memory(shape: Architecture, way: Way, row_tokens: int = ROW_TOKENS, envs: int = ENVIRONMENTS) -> dict[str, float]:
    """Bytes of everything that is in a GPU's memory, part by part, and their peak.

    A step of AdamW holds a gradient and two moments for every trained parameter, each as precise as the parameter. The
    cache of the rollout and the activations of the update are never there at the same time.
    """
    weights = shape.parameters * way.weight_bytes
    if way.quantised:
        weights = (shape.parameters - shape.linear) * way.weight_bytes + shape.linear * NF4_BYTES
    trained = 4 * shape.lora(LORA_RANK) if way.adapter else weights
    head = 4 * shape.value_head
    of_layers, of_hidden, of_intermediate = way.activation
    per_token = (
        of_layers * shape.layers * shape.hidden + of_hidden * shape.hidden + of_intermediate * shape.intermediate
    )
    parts: dict[str, float] = {
        "weights": weights + (trained if way.adapter else 0) + head,
        "gradients": trained + head,
        "Adam": 2 * (trained + head),
        "reference": 0 if way.adapter else weights,
        "activations": row_tokens * per_token + 3 * 64 * 2**20,  # head_max_bytes, three times
        "cache": envs * row_tokens * shape.cache_bytes,
    }
    resting = sum(parts[name] for name in ("weights", "gradients", "Adam", "reference"))
    return {**parts, "peak": resting + max(parts["activations"], parts["cache"])}


def fits(peak_bytes: float, card_gb: float) -> bool:
    return peak_bytes <= USABLE * card_gb * GB


# FLOPs


def question_tokens(turns: int, question: int = QUESTION, shared: int = SHARED) -> int:
    """What is read beside an episode: what its questions share once, the rest of each of them."""
    return shared + turns * (question - shared)


def forward_flops(shape: Architecture, tokens: float, context: float) -> float:
    """Linear layers, and attention of every token to the whole context (masked pairs are computed, too)."""
    attention = 4 * shape.layers * shape.heads * shape.head_dim * tokens * context
    return 2 * shape.linear * tokens + attention


def iteration_flops(
    shape: Architecture,
    episode_tokens: float,
    turns: int,
    *,
    epochs: int,
    calibrated_share: float = 0.25,
    adapter: bool = True,
    action: int = ACTION,
    asked: float | None = None,
) -> tuple[float, float]:
    """(FLOPs of a PPO iteration for one episode, what the judge and its calibration add).

    PPO: a rollout with a cache, the policy's and the reference's pass, and per epoch forward, recomputation and
    backward (two forwards; with an adapter one, as frozen weights have no gradient). The questions ride on the two
    passes; calibration reads its share of the episodes with their questions, forward and backward.
    """
    backward = 1 if adapter else 2
    episode = forward_flops(shape, episode_tokens, episode_tokens)
    episode += 2 * shape.vocab * shape.hidden * turns * action  # the head, at action tokens only
    ppo = episode * (3 + epochs * (2 + backward))
    asked = question_tokens(turns) if asked is None else asked
    whole = episode_tokens + asked
    riding = 2 * forward_flops(shape, asked, whole)
    calibration = calibrated_share * (1 + backward) * forward_flops(shape, whole, whole)
    return ppo, riding + calibration


# Tables


def parameter_rows() -> list[dict[str, Any]]:
    rows = []
    for name, shape in MODELS.items():
        counted = sum(parameter.numel() for parameter in meta_model(shape).parameters())
        if counted != shape.parameters:
            raise AssertionError(f"{name}: the formula says {shape.parameters} parameters, the model has {counted}")
        rows.append(
            {
                "model": name,
                "parameters": f"{counted:,}",
                "model card": f"{shape.published} B",
                "of them embeddings": f"{shape.embeddings / counted:.0%}",
                f"adapter, r = {LORA_RANK}": f"{shape.lora(LORA_RANK) / 1e6:.1f} M",
                "cache, a token": f"{shape.cache_bytes / 1000:.1f} kB",
            }
        )
    return rows


def memory_rows() -> list[dict[str, Any]]:
    columns = ("weights", "gradients", "Adam", "reference", "activations", "cache", "peak")
    return [
        {"model": name, "trained": way.title, **{part: _gb(memory(shape, way)[part]) for part in columns}}
        for name, shape in MODELS.items()
        for way in WAYS
    ]


def card_rows() -> list[dict[str, Any]]:
    return [
        {
            "model": name,
            **{
                card: ", ".join(way.title for way in WAYS if fits(memory(shape, way)["peak"], size)) or "none"
                for card, size in CARDS.items()
            },
        }
        for name, shape in MODELS.items()
    ]


def judge_rows(model: str = "Qwen2.5-7B") -> list[dict[str, Any]]:
    rows = []
    for turns, tokens in ((5, 1024), (15, 1024), (15, 4096), (30, 4096), (50, 6144), (100, 12288)):
        row: dict[str, Any] = {"turns": turns, "episode tokens": tokens, "question tokens": question_tokens(turns)}
        row["beside one pass"] = f"+{question_tokens(turns) / tokens:.0%}"
        for epochs in (4, 1):
            ppo, judge = iteration_flops(MODELS[model], tokens, turns, epochs=epochs)
            row[f"iteration, {epochs} epoch{'s' * (epochs > 1)}"] = f"+{judge / ppo:.0%}"
        rows.append(row)
    return rows


def _gb(count: float) -> str:
    return f"{count / GB:.1f}" if count else ""


def with_tables(text: str) -> str:
    """The page with every table between its markers written anew."""
    tables = {
        "parameters": parameter_rows(),
        "memory": memory_rows(),
        "cards": card_rows(),
        "judge": judge_rows(),
    }
    for name, rows in tables.items():
        start, end = (marker.format(name) for marker in MARKERS)
        before, rest = text.split(start)
        text = f"{before}{start}{markdown(rows)}\n{end}{rest.split(end)[1]}"
    return text


def main() -> None:
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
