"""The arithmetic of docs/scaling.md, held against what can be counted on a CPU."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_trainer_peft import QLORA, load_quantised
from torch import Tensor, nn
from trainer_fakes import make_policy, make_tokenizer, make_trainer
from transformers import Qwen2Config, Qwen2ForCausalLM, TrainerCallback

from benchmarks import scaling
from benchmarks._common import peak_bytes
from benchmarks.scaling import LORA_RANK, MODELS, WAYS, Architecture, Way
from trl_mise.actor_critic import ActorCritic, ValueHead
from trl_mise.heads import backbone_hidden

RESULTS = Path(scaling.__file__).parent / "results"
BY_TITLE = {way.title: way for way in WAYS}
QUOTING = ("scaling", "faq", "migrating-ppo", "environments")
"""Pages with figures from benchmarks/results in their text."""


def architecture_of(model: Any) -> Architecture:
    config = model.config
    return Architecture(
        config.hidden_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.hidden_size // config.num_attention_heads,
        config.intermediate_size,
        config.vocab_size,
        config.tie_word_embeddings,
        isinstance(model, Qwen2ForCausalLM),
        0.0,
    )


def num_bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_the_page_shows_the_tables() -> None:
    """Also: parameters by formula are those of the models on the meta device."""
    text = scaling.PAGE.read_text(encoding="utf-8")
    assert scaling.with_tables(text) == text, "run: python -m benchmarks.scaling"


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_of_the_model_card(name: str) -> None:
    published = MODELS[name].published
    digits = len(str(published).split(".")[1])
    assert MODELS[name].parameters / 1e9 == pytest.approx(published, abs=1.1 * 10**-digits)


def test_an_adapter_has_so_many_parameters() -> None:
    model = make_policy(make_tokenizer(), hidden_size=64, num_attention_heads=4, num_key_value_heads=2)
    expected = architecture_of(model).lora(8)
    adapted = get_peft_model(model, LoraConfig(r=8, task_type="CAUSAL_LM", target_modules="all-linear"))
    assert adapted.get_nb_trainable_parameters()[0] == expected


class ByteCounter(TrainerCallback):
    """Bytes of gradients before every optimizer step."""

    trainer: Any
    gradients = 0

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        parameters = self.trainer.actor_critic.parameters()
        self.gradients = num_bytes(p.grad for p in parameters if p.grad is not None)


@pytest.mark.parametrize("title", ["full float32", "full bfloat16", "LoRA"])
def test_weights_gradients_adam_and_reference_are_counted_right(title: str, tmp_path: Path) -> None:
    way = BY_TITLE[title]
    model = make_policy(make_tokenizer(), hidden_size=32, num_attention_heads=4, num_key_value_heads=2)
    model = model if way.weight_bytes == 4 else model.bfloat16()
    expected = scaling.memory(architecture_of(model), way)
    peft_config = LoraConfig(r=LORA_RANK, task_type="CAUSAL_LM", target_modules="all-linear")
    counter = ByteCounter()
    trainer = make_trainer(
        tmp_path, model=model, peft_config=peft_config if way.adapter else None, callbacks=[counter], total_episodes=8
    )
    counter.trainer = trainer
    trainer.train()
    moments = (state[name] for state in trainer.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq"))
    assert num_bytes(trainer.actor_critic.parameters()) == expected["weights"]
    assert counter.gradients == expected["gradients"] > 0
    assert num_bytes(moments) == expected["Adam"]
    reference = [] if trainer.ref_model is None else trainer.ref_model.parameters()
    assert num_bytes(reference) == expected["reference"]


def test_nf4_takes_so_many_bytes(tmp_path: Path) -> None:
    """The tables of sixteen and of 256 numbers that a layer has beside its weights are not in the formula."""
    model = load_quantised(tmp_path / "base", QLORA)
    counted = tables = 0
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            counted += num_bytes([module.weight, state.absmax, state.state2.absmax])
            tables += num_bytes([state.code, state.state2.code])
    expected = architecture_of(model).linear * scaling.NF4_BYTES
    assert expected <= counted < 1.05 * expected  # absmax of the absmax: whole blocks of 256 only
    assert tables > 0


def activation_bytes(way: Way, hidden: int, layers: int, intermediate: int) -> float:
    """Measured bytes a token: what 64 more tokens take at the peak of a forward and a backward pass."""
    config = Qwen2Config(
        vocab_size=100,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=intermediate,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    dtype = torch.float32 if way.weight_bytes == 4 else torch.bfloat16
    model: Any = Qwen2ForCausalLM._from_config(config, dtype=dtype)
    if way.adapter:
        model = get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM", target_modules="all-linear"))
    trained = ActorCritic(model, ValueHead(hidden))
    trained.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trained.train()

    def forward_backward(ids: Tensor) -> None:
        # As the trainer does it: with bf16 on a GPU, where bfloat16 is what is loaded.
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            states = backbone_hidden(model, ids, torch.ones_like(ids), torch.arange(ids.shape[1])[None])
        states.float().mean().backward()

    peaks = []
    for length in (64, 128):
        ids = torch.ones(1, length, dtype=torch.long)
        forward_backward(ids)  # gradients stay; the second pass adds to them in place
        peaks.append(peak_bytes(lambda ids=ids: forward_backward(ids)))  # type: ignore[misc]
    return (peaks[1] - peaks[0]) / 64


@pytest.mark.parametrize("title", ["full float32", "full bfloat16", "LoRA"])
def test_activations_are_as_the_formula_says(title: str) -> None:
    """At sizes that it was not fitted to."""
    way, (hidden, layers, intermediate) = BY_TITLE[title], (192, 3, 640)
    of_layers, of_hidden, of_intermediate = way.activation
    expected = of_layers * layers * hidden + of_hidden * hidden + of_intermediate * intermediate
    assert activation_bytes(way, hidden, layers, intermediate) == pytest.approx(expected, rel=0.1)


def test_the_rollouts_cache_takes_so_many_bytes() -> None:
    model: nn.Module = make_policy(make_tokenizer(), hidden_size=32, num_attention_heads=4, num_key_value_heads=2)
    model.bfloat16()
    cache = model(input_ids=torch.ones(1, 10, dtype=torch.long), use_cache=True).past_key_values
    counted = sum(num_bytes([layer.keys, layer.values]) for layer in cache.layers)
    assert counted == 10 * architecture_of(model).cache_bytes


def test_flops_are_those_of_the_benchmark() -> None:
    """A whole iteration with and without the judge, as `benchmarks.update` counted them."""
    result = json.loads((RESULTS / "update.json").read_text(encoding="utf-8"))
    settings = result["settings"]
    (counted,) = [row for row in result["rows"] if row["phase"] == "TFLOP"]
    assert settings["shape"] == "small" and not settings["lora"]
    shape = Architecture(256, 4, 8, 2, 32, 1024, settings["vocab"], True, True, 0.0)
    ppo, judge = scaling.iteration_flops(
        shape, settings["episode_tokens"], settings["turns"], epochs=4, adapter=False, action=settings["action"]
    )
    ppo, judge = (value * settings["episodes"] / 1e12 for value in (ppo, judge))
    assert ppo == pytest.approx(counted["PPO s"], rel=0.03)
    assert judge == pytest.approx(counted["MISE s"] - counted["PPO s"], rel=0.15)


def test_a_card_is_not_filled_to_the_brim() -> None:
    assert scaling.fits(14.4e9, 16) and not scaling.fits(14.5e9, 16)
    peaks = [scaling.memory(MODELS["Qwen2.5-7B"], way)["peak"] for way in WAYS]
    assert peaks == sorted(peaks, reverse=True)


def test_a_larger_cache_counts_only_beyond_the_activations() -> None:
    shape, way = MODELS["Qwen2.5-0.5B"], BY_TITLE["LoRA"]
    parts = scaling.memory(shape, way, envs=1)
    assert parts["cache"] < parts["activations"]
    more = scaling.memory(shape, way, envs=2)
    assert more["cache"] == 2 * parts["cache"] and more["peak"] == parts["peak"]
    most = scaling.memory(shape, way, envs=64)
    assert most["peak"] - most["cache"] == pytest.approx(parts["peak"] - parts["activations"])


def result_rows(name: str, column: str) -> dict[str, dict[str, Any]]:
    """The rows of a measurement by their first column."""
    rows = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["rows"]
    return {row[column]: row for row in rows}


def test_figures_that_the_pages_quote_are_those_of_the_results() -> None:
    """Rounded, in the text; where a benchmark is made again they have to be looked at."""
    docs = scaling.PAGE.parent
    texts = {name: " ".join((docs / f"{name}.md").read_text(encoding="utf-8").split()) for name in QUOTING}
    update = result_rows("update", "phase")
    flops = update["TFLOP"]["MISE s"] / update["TFLOP"]["PPO s"] - 1
    seconds = update["whole iteration"]["MISE / PPO"] - 1
    assert f"+{flops:.0%} in FLOPs, +{seconds:.0%} in seconds" in texts["scaling"]
    assert f"+{seconds:.0%} of an iteration" in texts["faq"]
    ours = result_rows("vs_ppo_trainer", "")["ours, value model"]
    memory, speed = ours["memory / TRL's"], ours["speed / TRL's"]
    assert f"{memory:.1f} × the memory and {speed:.1f} × the speed" in texts["migrating-ppo"]
    steps = {name: float(f"{row['steps/s']:.1e}") for name, row in result_rows("environments", "environment").items()}
    shown = {"kitchen": "kitchen", "WebShop": "webshop", "TextWorld": "textworld", "ScienceWorld": "scienceworld"}
    assert ", ".join(f"{title} {steps[name]:,.0f}" for title, name in shown.items()) in texts["environments"]
