"""Adapters: only they are trained, they are saved alone, load again and play; also on an 8-bit base."""

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from trainer_fakes import (
    LetterEnv,
    copy_of,
    largest_difference,
    make_classifier,
    make_policy,
    make_tokenizer,
    make_trainer,
    tasks,
    weights,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from trl_mise import CalibrationCallback, MISETrainer, merge_adapter
from trl_mise.chat import ChatFormat
from trl_mise.generation import Sampling, sample
from trl_mise.heads import keep_four_bit_layout
from trl_mise.rollout import RolloutLimits, collect_rollouts

ROWS = [dict(row) for row in tasks(8)]


def lora(**kwargs: Any) -> LoraConfig:
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "o_proj"], **kwargs}
    return LoraConfig(task_type="CAUSAL_LM", **options)


def split_weights(trainer: MISETrainer) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(adapter, base)."""
    everything = weights(trainer.policy)
    adapter = {name: tensor for name, tensor in everything.items() if "lora_" in name}
    return adapter, {name: tensor for name, tensor in everything.items() if name not in adapter}


def play_greedily(model: Any, tokenizer: Any) -> list[tuple[int, ...]]:
    chat = ChatFormat(tokenizer)
    sampling = Sampling(temperature=0.0, max_new_tokens=3, stop_token_ids=chat.stop_token_ids)
    episodes = collect_rollouts(
        ROWS,
        [LetterEnv() for _ in ROWS],
        lambda contexts: sample(model.eval(), contexts, sampling, tokenizer.pad_token_id),
        chat,
        RolloutLimits(max_turns=4, max_new_tokens=3, max_episode_tokens=128),
    )
    return [t.token_ids for t in episodes]


def reference_log_probs(trainer: MISETrainer, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), trainer.reference_policy() as reference:
        return reference(input_ids=ids).logits.log_softmax(-1)


@pytest.mark.parametrize("own_value_model", [False, True])
def test_only_the_adapter_and_the_value_are_trained(tmp_path: Path, own_value_model: bool) -> None:
    tokenizer = make_tokenizer()
    value_model = make_classifier(tokenizer) if own_value_model else None
    trainer = make_trainer(tmp_path, tokenizer=tokenizer, peft_config=lora(), value_model=value_model)
    assert trainer.is_peft_model and trainer.ref_model is None  # no second copy of the base
    adapter, base = split_weights(trainer)
    values = weights(trainer.actor_critic.value_model)
    ids = torch.arange(4, 16)[None]
    reference = reference_log_probs(trainer, ids)
    trainer.train()
    new_adapter, new_base = split_weights(trainer)
    assert largest_difference(base, new_base) == 0.0
    assert largest_difference(adapter, new_adapter) > 1e-3
    assert largest_difference(values, weights(trainer.actor_critic.value_model)) > 1e-4
    # The reference is the base: as it was, and not the policy of today.
    assert torch.equal(reference_log_probs(trainer, ids), reference)
    with torch.no_grad():
        policy = trainer.policy.eval()(input_ids=ids).logits.log_softmax(-1)
    assert float((policy - reference).abs().max()) > 1e-4
    log = trainer.state.log_history
    assert log[0]["objective/kl"] == 0.0 and log[1]["objective/kl"] != 0.0
    assert all(np.isfinite(value) for entry in log for value in entry.values())


def test_a_model_that_is_peft_already(tmp_path: Path) -> None:
    model = get_peft_model(make_policy(make_tokenizer()), lora())
    trainer = make_trainer(tmp_path, model=model)
    adapter, base = split_weights(trainer)
    trainer.train()
    assert largest_difference(base, split_weights(trainer)[1]) == 0.0
    assert largest_difference(adapter, split_weights(trainer)[0]) > 1e-3


def test_ratios_are_exactly_one_without_learning(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, peft_config=lora(), learning_rate=0.0, num_mini_batches=2)
    trainer.train()
    assert [entry["val/ratio_max_deviation"] for entry in trainer.state.log_history] == [0.0, 0.0]


def test_the_saved_adapter_loads_and_plays(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    base = make_policy(tokenizer)
    trainer = make_trainer(
        tmp_path, tokenizer=tokenizer, model=copy_of(base), peft_config=lora(), save_strategy="steps", save_steps=2,
        learning_rate=5e-2, num_ppo_epochs=4,
    )  # fmt: skip
    trainer.train()
    folder = tmp_path / "checkpoint-2"
    names = {path.name for path in folder.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "value_head.safetensors", "calibration.json"} <= names
    assert "model.safetensors" not in names  # the adapter alone
    loaded_tokenizer = AutoTokenizer.from_pretrained(folder)
    loaded = PeftModel.from_pretrained(copy_of(base), folder)
    ours = {name: tensor for name, tensor in weights(trainer.policy).items() if "lora_" in name}
    theirs = {name: tensor for name, tensor in weights(loaded).items() if "lora_" in name}
    assert largest_difference(ours, theirs) == 0.0
    played = [t.token_ids for t in trainer.collect(ROWS, greedy=True)]
    assert play_greedily(loaded, loaded_tokenizer) == played
    assert play_greedily(base, tokenizer) != played  # which the base would not have played
    assert (tmp_path / "README.md").exists()


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_lora_dropout_is_what_was_asked_for(tmp_path: Path, dropout: float) -> None:
    """PPOTrainer sets every dropout to 0, also this one."""
    tokenizer = make_tokenizer()
    model = make_policy(tokenizer, attention_dropout=0.1)
    config = lora(lora_dropout=dropout, init_lora_weights=False)  # an adapter that does something from the start
    trainer = make_trainer(tmp_path, tokenizer=tokenizer, model=model, peft_config=config, learning_rate=0.0)
    modules = [m for name, m in trainer.policy.named_modules() if name.endswith("lora_dropout.default")]
    assert [getattr(module, "p", 0.0) for module in modules] == [dropout] * 3
    others = [m for name, m in trainer.policy.named_modules() if isinstance(m, nn.Dropout) and "lora" not in name]
    assert all(module.p == 0 for module in others)
    while_sampling: list[bool] = []
    trainer.policy.base_model.model.lm_head.register_forward_hook(
        lambda *args: None if torch.is_grad_enabled() else while_sampling.append(modules[0].training)
    )
    trainer.train()
    assert while_sampling and not any(while_sampling)
    # On in the update, off in what the update compares with; the attention's own dropout is off everywhere.
    assert (trainer.state.log_history[-1]["val/ratio_max_deviation"] > 0) is (dropout > 0)


def test_gradient_checkpointing(tmp_path: Path) -> None:
    adapters = []
    for checkpointing in (False, True):
        trainer = make_trainer(tmp_path, peft_config=lora(), gradient_checkpointing=checkpointing)
        start = split_weights(trainer)[0]
        trainer.train()
        adapters.append(split_weights(trainer)[0])
        assert largest_difference(start, adapters[-1]) > 1e-3
    assert largest_difference(*adapters) < 1e-6


def test_a_reference_adapter(tmp_path: Path) -> None:
    """`ref_adapter_name`: the reference is the base with another adapter, which is not trained."""
    model = get_peft_model(make_policy(make_tokenizer()), lora())
    model.add_adapter("reference", lora(init_lora_weights=False))
    trainer = make_trainer(tmp_path, model=model, ref_adapter_name="reference", model_adapter_name="default")
    start = split_weights(trainer)[0]
    trainer.train()
    after = split_weights(trainer)[0]
    moved = {name for name in start if not torch.equal(start[name], after[name])}
    assert moved and all("default" in name for name in moved)
    assert trainer.state.log_history[0]["objective/kl"] != 0.0  # policy and reference differ from the start
    assert trainer.policy.active_adapter == "default"
    assert trainer.policy.base_model.model.model.layers[0].self_attn.q_proj.lora_A["default"].weight.requires_grad


# A quantised base


EIGHT_BIT = BitsAndBytesConfig(load_in_8bit=True)
NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
QLORA = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
)
"""As in the QLoRA paper."""
KINDS = [pytest.param(EIGHT_BIT, id="8-bit"), pytest.param(NF4, id="nf4"), pytest.param(QLORA, id="qlora")]


def save_base(folder: Path) -> Path:
    make_policy(make_tokenizer(), hidden_size=64, intermediate_size=128).save_pretrained(folder)
    return folder


def load_quantised(folder: Path, config: BitsAndBytesConfig) -> Any:
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="no bitsandbytes wheel on this machine")
    try:
        return AutoModelForCausalLM.from_pretrained(
            save_base(folder), quantization_config=config, device_map={"": "cpu"}
        )
    except (RuntimeError, ValueError, ImportError) as error:
        pytest.skip(f"bitsandbytes {bitsandbytes.__version__} cannot load such a model on this machine: {error}")


def integers(tensors: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in tensors.items() if tensor.dtype in (torch.int8, torch.uint8)}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("config", KINDS)
def test_a_quantised_base_trains(tmp_path: Path, config: BitsAndBytesConfig, checkpointing: bool) -> None:
    """The adapter moves, the base keeps its integers; the value head, in full precision, learns beside it."""
    model = load_quantised(tmp_path / "base", config)
    trainer = make_trainer(tmp_path / "run", model=model, peft_config=lora(), gradient_checkpointing=checkpointing)
    adapter, base = split_weights(trainer)
    head = weights(trainer.actor_critic.value_model)
    quantised = integers(base)
    assert sum(name.endswith(".weight") for name in quantised) == 7  # the linear layers of the only block
    assert {tensor.dtype for tensor in head.values()} == {torch.float32}
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
    trainer.train()
    new_adapter, new_base = split_weights(trainer)
    assert integers(new_base) == quantised
    assert all(torch.equal(base[name], new_base[name]) for name in base)
    assert largest_difference(adapter, new_adapter) > 1e-3
    assert largest_difference(head, weights(trainer.actor_critic.value_model)) > 1e-4
    entry = trainer.state.log_history[-1]
    assert entry["calibration/buffer_size"] == 16
    assert all(np.isfinite(value) for value in entry.values())


@pytest.mark.parametrize("config", KINDS)
def test_the_reference_is_the_quantised_base(tmp_path: Path, config: BitsAndBytesConfig) -> None:
    trainer = make_trainer(tmp_path / "run", model=load_quantised(tmp_path / "base", config), peft_config=lora())
    ids = torch.tensor([[5, 6, 7, 8]])
    trainer.model.eval()  # on a CPU bitsandbytes computes 8-bit layers in one way in training, and in another here
    before = reference_log_probs(trainer, ids)
    trainer.train()
    trainer.model.eval()
    assert torch.equal(reference_log_probs(trainer, ids), before)
    assert trainer.ref_model is None
    with torch.no_grad():
        assert not torch.allclose(trainer.policy(ids).logits.log_softmax(-1), before, atol=1e-4)


@pytest.mark.parametrize(("config", "tolerance"), [(EIGHT_BIT, 0.1), (NF4, 1e-5), (QLORA, 1e-5)], ids=["8", "4", "q"])
def test_the_first_step_finds_the_policy_that_sampled(
    tmp_path: Path, config: BitsAndBytesConfig, tolerance: float
) -> None:
    """Old and new log-probabilities are one arithmetic; but for 8-bit layers on a CPU, see above."""
    model = load_quantised(tmp_path / "base", config)
    trainer = make_trainer(
        tmp_path / "run", model=model, peft_config=lora(), num_ppo_epochs=1, total_episodes=8, learning_rate=1e-30
    )
    trainer.train()
    assert trainer.state.log_history[0]["val/ratio_max_deviation"] < tolerance


@pytest.mark.parametrize("config", KINDS)
def test_an_adapter_on_a_quantised_base_is_saved(tmp_path: Path, config: BitsAndBytesConfig) -> None:
    model = load_quantised(tmp_path / "base", config)
    trainer = make_trainer(tmp_path / "run", model=model, peft_config=lora(), save_strategy="steps", save_steps=2)
    trainer.train()
    folder = tmp_path / "run" / "checkpoint-2"
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 4
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=config, device_map={"": "cpu"})
    loaded = PeftModel.from_pretrained(again, folder)
    keep_four_bit_layout(loaded)
    played = [t.token_ids for t in trainer.collect(ROWS, greedy=True)]
    assert play_greedily(loaded, make_tokenizer()) == played


@pytest.mark.parametrize("config", KINDS)
def test_a_run_on_a_quantised_base_is_resumed(tmp_path: Path, config: BitsAndBytesConfig) -> None:
    """To the last bit, as on any base."""
    whole = make_trainer(
        tmp_path / "run",
        model=load_quantised(tmp_path / "base", config),
        peft_config=lora(),
        save_strategy="steps",
        save_steps=1,
    )
    whole.train()
    again = make_trainer(tmp_path / "run", model=load_quantised(tmp_path / "base", config), peft_config=lora())
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    assert again.state.global_step == 2
    assert largest_difference(split_weights(whole)[0], split_weights(again)[0]) == 0.0


@pytest.mark.parametrize("config", KINDS)
def test_merged_it_needs_neither_peft_nor_bitsandbytes(tmp_path: Path, config: BitsAndBytesConfig) -> None:
    """The adapter in the full weights of the base: exactly that, and near to what was trained."""
    trainer = make_trainer(
        tmp_path / "run", model=load_quantised(tmp_path / "base", config), peft_config=lora(), total_episodes=32
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    merged = AutoModelForCausalLM.from_pretrained(
        merge_adapter(tmp_path / "adapter", tmp_path / "merged", base_model=tmp_path / "base")
    )
    assert not hasattr(merged, "peft_config") and not getattr(merged, "is_quantized", False)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        of_base = base(ids).logits
        beside = PeftModel.from_pretrained(base, tmp_path / "adapter")(ids).logits
        assert torch.allclose(merged(ids).logits, beside, atol=1e-5)
        # The adapter's work is in it: it is nearer to what was trained than the base is.
        trained = trainer.policy(ids).logits
        assert (merged(ids).logits - trained).norm() < (of_base - trained).norm()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.chat_template == make_tokenizer().chat_template


def test_what_cannot_be_merged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no adapter_config.json.*whole model already"):
        merge_adapter(save_base(tmp_path / "base"), tmp_path / "merged")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(FileExistsError, match="holds a model already"):
        merge_adapter(tmp_path / "adapter", tmp_path / "base")
    with pytest.raises(ValueError, match="does not name a base; pass base_model="):
        merge_adapter(tmp_path / "adapter", tmp_path / "merged")


def embeddings_in_memory(vocab_size: int) -> int:
    """Storages of live `(V, H)` tensors, whoever holds them."""
    gc.collect()
    live = [o for o in gc.get_objects() if isinstance(o, torch.Tensor) and o.shape == (vocab_size, 16)]
    return len({tensor.untyped_storage().data_ptr() for tensor in live})


@pytest.mark.parametrize(("with_adapter", "copies"), [(True, 1), (False, 2)], ids=["adapter", "full"])
def test_one_copy_of_the_base_serves_everybody(tmp_path: Path, with_adapter: bool, copies: int) -> None:
    """Policy, reference, evaluator and value head share one backbone; without an adapter the reference has its own."""
    tokenizer = make_tokenizer()
    policy = make_policy(tokenizer, tie_word_embeddings=True)
    base = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in policy.parameters()}
    before = embeddings_in_memory(len(tokenizer))
    options = {"peft_config": lora()} if with_adapter else {}
    trainer = make_trainer(tmp_path, tokenizer=tokenizer, model=policy, total_episodes=8, optim="sgd", **options)
    trainer.train()
    assert any("calibration/anchor" in entry or "calibration/skipped" in entry for entry in trainer.state.log_history)
    # SGD without momentum keeps no state; calibration's Adam keeps two moments of what it trains.
    moments = 0 if with_adapter or trainer_calibrated(trainer) is None else 2
    assert embeddings_in_memory(len(tokenizer)) - before == copies - 1 + moments
    with trainer.reference_policy() as reference:
        everybody = [*trainer.model.parameters(), *reference.parameters()]
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in everybody}
    extra = {n: p for n, p in trainer.model.named_parameters() if "lora_" in n or n.startswith("value_model")}
    assert sum(storages.values()) == copies * sum(base.values()) + sum(p.nbytes for p in extra.values())


def trainer_calibrated(trainer: MISETrainer) -> torch.optim.Optimizer | None:
    """The optimizer of the calibration callback, if it has taken a step."""
    (callback,) = (cb for cb in trainer.callback_handler.callbacks if isinstance(cb, CalibrationCallback))
    return callback.optimizer
