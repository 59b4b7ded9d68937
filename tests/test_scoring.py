"""The one-pass scorers against the naive reference, and the head against the models' own forward."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import (
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from trl_mise.heads import backbone_hidden, lm_logits
from trl_mise.kv_cache import read
from trl_mise.notices import warn_once
from trl_mise.packing import ScoringRow, Verdicts, question_tree
from trl_mise.scorers import ask
from trl_mise.scoring import VerdictLogits, score_rows, score_steps
from trl_mise.token_batch import pad_rows

VOCAB = 61
VERDICTS = (7, 3, 40)
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIGS = {
    "llama": lambda: LlamaConfig(**SIZES),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=8),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.15, bos_token_id=1
    ),
    "granite": lambda: GraniteConfig(**SIZES, logits_scaling=3.0),
    "cohere": lambda: CohereConfig(**SIZES, logit_scale=0.3),
    "gemma2": lambda: Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=1.5),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=8),
}


def build(name: str, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> torch.nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name](), attn_implementation=attention)
    return model.to(dtype).eval()


def make_rows(seed: int = 0) -> list[ScoringRow]:
    """Unequal trajectories and questions; questions look at different prefixes, and one row ignores its tail."""
    generator = torch.Generator().manual_seed(seed)

    def ids(length: int) -> list[int]:
        return torch.randint(3, VOCAB, (length,), generator=generator).tolist()

    return [
        ScoringRow(ids(9), [ids(2)], [9]),
        ScoringRow(ids(21), [ids(3), ids(5), ids(1)], [6, 21, 13]),
        ScoringRow(ids(40), [ids(4), ids(4)], [30, 30]),
        ScoringRow(ids(1), [ids(2), ids(3)], [1, 1]),
    ]


@pytest.fixture(autouse=True)
def fresh_warnings() -> None:
    warn_once.cache_clear()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gpt2", "granite", "cohere"])
def test_one_pass_equals_naive_in_float32(name: str, attention: str) -> None:
    model = build(name, attention=attention)
    naive = score_rows(model, make_rows(), VERDICTS, method="naive")
    assert naive.logits.std() > 0.05  # there is something to get wrong
    for method in ("cached_packed", "packed", "kv_repeat"):
        scored = score_rows(model, make_rows(), VERDICTS, method=method)
        assert (scored.method, naive.method) == (method, "naive")
        assert scored.logits.dtype == torch.float32 and scored.logits.shape == (8, 3)
        torch.testing.assert_close(scored.logits, naive.logits, atol=1e-6, rtol=1e-6)


def test_auto_takes_the_cache_without_gradient_and_one_row_with_it() -> None:
    model = build("llama")
    assert score_rows(model, make_rows(), VERDICTS).method == "cached_packed"
    assert score_rows(model, make_rows(), VERDICTS, requires_grad=True).method == "packed"


@pytest.mark.parametrize("requires_grad", [False, True])
def test_gradient_checkpointing(requires_grad: bool) -> None:
    """In training mode transformers drops the cache without an error: no method may use it then."""
    model = build("llama", torch.float64)
    reference = score_rows(model, make_rows(), VERDICTS, method="naive").logits
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    scored = score_rows(model, make_rows(), VERDICTS, requires_grad=requires_grad)
    assert scored.method == "packed" and model.training
    torch.testing.assert_close(scored.logits.detach(), reference, atol=1e-12, rtol=0)
    for method in ("cached_packed", "kv_repeat"):
        with pytest.raises(ValueError, match=f"method='{method}' would be silently wrong.*gradient checkpointing"):
            score_rows(model, make_rows(), VERDICTS, method=method)
    model.eval()
    assert score_rows(model, make_rows(), VERDICTS).method == "cached_packed"


def test_a_gradient_does_not_pass_through_copies() -> None:
    with pytest.raises(ValueError, match="method='kv_repeat' would be silently wrong.*gradient"):
        score_rows(build("llama"), make_rows(), VERDICTS, method="kv_repeat", requires_grad=True)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_questions_ride_on_a_pass_over_padded_rows_that_go_on(left: bool) -> None:
    """What PPO evaluates is longer than what a question may see, and padded on the side that the caller likes."""
    model = build("llama", torch.float64)
    rows, verdicts = make_rows(), Verdicts.of(VERDICTS)
    batch = pad_rows([row.token_ids for row in rows], left=left)
    with torch.no_grad():
        hidden, cache = read(model, batch)
        asked = ask(model, cache, [question_tree(row, verdicts) for row in rows], verdicts)
        plain = backbone_hidden(model, batch.input_ids, batch.attention_mask, batch.position_ids)
    assert torch.equal(hidden, plain)  # the pass itself does not change
    naive = score_rows(model, rows, VERDICTS, method="naive").logits
    assert [len(part) for part in asked] == [1, 3, 2, 2]
    torch.testing.assert_close(torch.cat(asked), naive, atol=1e-12, rtol=0)


def test_verdicts_of_several_tokens() -> None:
    """The logit of a verdict is the log-probability of its tokens one after the other."""
    model = build("qwen2", torch.float64)
    row = ScoringRow([5, 9, 4, 8], [[6, 7], [3]], [4, 2])
    verdicts = [[7], [3, 4, 5], [3, 6]]

    def log_probability(prefix: list[int], tokens: list[int]) -> float:
        with torch.no_grad():
            logits = model(torch.tensor([[*prefix, *tokens]])).logits[0].log_softmax(-1)
        return sum(float(logits[len(prefix) - 1 + i, token]) for i, token in enumerate(tokens))

    expected = [[log_probability(prefix, v) for v in verdicts] for prefix in ([5, 9, 4, 8, 6, 7], [5, 9, 3])]
    for method in ("cached_packed", "packed", "kv_repeat", "naive"):
        logits = score_rows(model, [row], verdicts, method=method).logits
        torch.testing.assert_close(logits, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)
    # One token each, in either spelling, is the plain case: the same up to a constant.
    plain, listed = (score_rows(model, [row], ids).logits for ids in (VERDICTS, [[token] for token in VERDICTS]))
    assert torch.equal(plain, listed)


@pytest.mark.parametrize("verdict_ids", [[[3], [3, 4]], [[3, 4], [3, 4]], [3, 3]])
def test_a_verdict_must_not_begin_another(verdict_ids: list) -> None:
    with pytest.raises(ValueError, match=r"verdict_ids\[0\].*begins verdict_ids\[1\]"):
        score_rows(_LLAMA64, make_rows(), verdict_ids)


def test_token_ids_in_bare_lists() -> None:
    rows = make_rows()
    bundled = score_rows(_LLAMA64, rows, VERDICTS)
    lists = score_steps(
        _LLAMA64, [r.token_ids for r in rows], [r.suffixes for r in rows], VERDICTS, visible=[r.visible for r in rows]
    )
    assert isinstance(lists, VerdictLogits) and torch.equal(lists.logits, bundled.logits)
    whole = score_steps(_LLAMA64, [[4, 5, 6]], [[[7], [8, 9]]], VERDICTS)
    expected = score_rows(_LLAMA64, [ScoringRow([4, 5, 6], [[7], [8, 9]], [3, 3])], VERDICTS)
    assert torch.equal(whole.logits, expected.logits)
    with pytest.raises(ValueError, match="2 trajectories, but suffixes for 1"):
        score_steps(_LLAMA64, [[4], [5]], [[[7]]], VERDICTS)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gpt2"])
def test_packed_equals_naive_in_float64_with_gradients(name: str) -> None:
    model = build(name, torch.float64)
    results = []
    for method in ("packed", "naive"):
        model.zero_grad()
        logits = score_rows(model, make_rows(), VERDICTS, method=method, requires_grad=True).logits
        logits.log_softmax(-1)[:, 0].square().sum().backward()
        results.append((logits.detach(), {k: p.grad for k, p in model.named_parameters() if p.grad is not None}))
    (packed, packed_grads), (naive, naive_grads) = results
    assert packed.dtype == torch.float64
    torch.testing.assert_close(packed, naive, atol=1e-12, rtol=1e-12)
    assert packed_grads.keys() == naive_grads.keys() and len(packed_grads) > 10
    # RMSNorm computes in float32 whatever the weights are, so its gradients are no better than that.
    tolerance = 1e-12 if name == "gpt2" else 2e-6
    for key, grad in naive_grads.items():
        scale = grad.abs().max().clamp(min=1.0)
        torch.testing.assert_close(packed_grads[key] / scale, grad / scale, atol=tolerance, rtol=0)


def test_micro_batches_keep_the_order_and_the_result() -> None:
    model = build("llama", torch.float64)
    reference = score_rows(model, make_rows(), VERDICTS, method="naive")
    assert reference.row_index.tolist() == [0, 1, 1, 1, 2, 2, 3, 3]
    assert reference.step_index.tolist() == [0, 0, 1, 2, 0, 1, 0, 1]
    for method, max_tokens in itertools.product(("cached_packed", "packed", "kv_repeat"), (1, 40, 80, 10_000)):
        scored = score_rows(model, make_rows(), VERDICTS, method=method, max_tokens=max_tokens)
        torch.testing.assert_close(scored.logits, reference.logits, atol=1e-12, rtol=0)
        assert scored.row_index.tolist() == reference.row_index.tolist()
        assert scored.step_index.tolist() == reference.step_index.tolist()
    backwards = score_rows(model, make_rows()[::-1], VERDICTS)
    torch.testing.assert_close(backwards.logits[-1], reference.logits[0], atol=1e-12, rtol=0)


@settings(max_examples=25)
@given(data=st.data())
def test_packed_equals_naive_on_any_layout(data: st.DataObject) -> None:
    token = st.integers(0, VOCAB - 1)  # including the pad and eos ids: masks never look at ids
    rows = []
    for _ in range(data.draw(st.integers(1, 3))):
        tokens = data.draw(st.lists(token, min_size=1, max_size=12))
        suffixes = data.draw(st.lists(st.lists(token, min_size=1, max_size=4), min_size=1, max_size=4))
        visible = [data.draw(st.integers(1, len(tokens))) for _ in suffixes]
        rows.append(ScoringRow(tokens, suffixes, visible))
    naive = score_rows(_LLAMA64, rows, VERDICTS, method="naive").logits
    for method in ("cached_packed", "packed", "kv_repeat"):
        scored = score_rows(_LLAMA64, rows, VERDICTS, method=method).logits
        torch.testing.assert_close(scored, naive, atol=1e-12, rtol=0)


_LLAMA64 = build("llama", torch.float64)


def test_a_suffix_sees_its_prefix_and_nothing_else() -> None:
    row = make_rows()[1]
    before = score_rows(_LLAMA64, [row], VERDICTS).logits
    other_suffix = replace(row, suffixes=[row.suffixes[0], [5, 6, 7, 8, 9, 10], row.suffixes[2]])
    after = score_rows(_LLAMA64, [other_suffix], VERDICTS).logits
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]], atol=1e-12, rtol=0)
    other_future = replace(row, token_ids=[*row.token_ids[:13], *[4] * 8])
    after = score_rows(_LLAMA64, [other_future], VERDICTS).logits
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]], atol=1e-12, rtol=0)  # visible 6 and 13 of 21
    assert (after[1] - before[1]).abs().max() > 1e-3


def test_padding_makes_no_nan_and_no_gradient_is_kept_unless_asked() -> None:
    model = build("llama").train()
    scored = score_rows(model, make_rows(), VERDICTS)
    assert torch.isfinite(scored.logits).all()
    assert not scored.logits.requires_grad and model.training
    model.zero_grad()
    score_rows(model, make_rows(), VERDICTS, requires_grad=True).logits.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bfloat16_weights_and_autocast(attention: str) -> None:
    model = build("llama", attention=attention)
    reference = score_rows(model, make_rows(), VERDICTS, method="naive").logits
    with torch.autocast("cpu", torch.bfloat16):
        autocast = [score_rows(model, make_rows(), VERDICTS, method=m).logits for m in ("packed", "cached_packed")]
    model = model.to(torch.bfloat16)
    low = [score_rows(model, make_rows(), VERDICTS, method=m).logits for m in ("packed", "cached_packed")]
    for logits in (*autocast, *low):
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, reference, atol=0.15, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["q_proj", "lm_head", "embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    ],
    ids=["layers", "head", "saved_head"],
)
def test_lora(options: dict) -> None:
    model = get_peft_model(build("llama", torch.float64), LoraConfig(init_lora_weights=False, **options)).double()
    packed = score_rows(model, make_rows(), VERDICTS, method="packed", requires_grad=True).logits
    naive = score_rows(model, make_rows(), VERDICTS, method="naive").logits
    torch.testing.assert_close(packed.detach(), naive, atol=1e-10, rtol=0)
    with model.disable_adapter():
        assert (score_rows(model, make_rows(), VERDICTS).logits - naive).abs().max() > 1e-3
    packed.sum().backward()
    adapters = [p for n, p in model.named_parameters() if "lora_" in n]
    assert adapters and all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapters)


def test_prompt_learning_adapter_is_refused() -> None:
    model = get_peft_model(build("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match="prompt learning adapter"):
        score_rows(model, make_rows(), VERDICTS)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_head_equals_the_models_own_forward(name: str) -> None:
    model = build(name, torch.float64, attention="eager")
    input_ids = torch.tensor([[1, 5, 9, 4], [6, 2, 8, 7]])
    with torch.no_grad():
        hidden = backbone_hidden(model, input_ids, torch.ones_like(input_ids), torch.arange(4).expand(2, 4))
        expected = model(input_ids).logits
        torch.testing.assert_close(lm_logits(model, hidden), expected, atol=1e-12, rtol=0)
        some = lm_logits(model, hidden[0, 1:3], token_ids=VERDICTS)
    torch.testing.assert_close(some, expected[0, 1:3][:, list(VERDICTS)], atol=1e-12, rtol=0)


def test_head_upcasts_low_precision() -> None:
    model = build("llama", torch.bfloat16)
    assert lm_logits(model, torch.ones(2, 32, dtype=torch.bfloat16)).dtype == torch.float32


def test_no_rows_give_no_logits() -> None:
    scored = score_rows(build("llama"), [], VERDICTS)
    assert scored.logits.shape == (0, 3) and scored.row_index.shape == (0,) and scored.step_index.shape == (0,)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ScoringRow([], [[1]], [1]), r"trajectories\[1\] is empty"),
        (ScoringRow([4, 5], [], []), r"suffixes\[1\] holds no question \(T = 0\)"),
        (ScoringRow([4, 5], [[6], []], [2, 2]), r"suffixes\[1\]\[1\] is empty"),
        (ScoringRow([4, 5], [[6], [7]], [2]), r"visible\[1\] has 1 values for 2 suffixes"),
        (ScoringRow([4, 5], [[6]], [3]), r"visible\[1\]\[0\] must be in \[1, 2\].*got 3"),
        (ScoringRow([4, 5], [[6]], [0]), r"visible\[1\]\[0\] must be in \[1, 2\].*got 0"),
        (
            ScoringRow([4] * 60, [[6] * 5], [60]),
            r"trajectories\[1\]: 60 tokens plus 5 of suffixes\[1\]\[0\] exceed the model's 64 positions",
        ),
    ],
)
def test_rows_that_cannot_be_scored(row: ScoringRow, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_rows(_LLAMA64, [ScoringRow([4], [[5]], [1]), row], VERDICTS)


def test_only_the_visible_part_must_fit() -> None:
    row = ScoringRow([4] * 70, [[6] * 4], [60])
    assert torch.isfinite(score_rows(_LLAMA64, [row], VERDICTS).logits).all()


@pytest.mark.parametrize("verdict_ids", [(), (1, VOCAB), (-1, 2)])
def test_verdict_ids_must_be_in_the_vocabulary(verdict_ids: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"verdict_ids must be ids in \[0, 61\)"):
        score_rows(_LLAMA64, make_rows(), verdict_ids)


def test_other_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="method must be one of .*'cached_packed'.*, got 'fast'"):
        score_rows(_LLAMA64, make_rows(), VERDICTS, method="fast")
    with pytest.raises(ValueError, match="verify must be one of .*'never'.*, got 'twice'"):
        score_rows(_LLAMA64, make_rows(), VERDICTS, verify="twice")
    with pytest.raises(ValueError, match="max_tokens must be at least 1, got 0"):
        score_rows(_LLAMA64, make_rows(), VERDICTS, max_tokens=0)
