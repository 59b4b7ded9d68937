"""Every family of the architecture table by the method that `auto` picks, against its own forward."""

import warnings

import pytest
import torch
from architecture_zoo import BASE, CONFIGS, EAGER_ONLY, ONE_PASS, REPEATED, VOCAB, build
from transformers import LlamaConfig, MistralConfig, Qwen2Config

from trl_mise import architectures, verification
from trl_mise.architectures import attention_window, mask_obstacle
from trl_mise.notices import warn_once
from trl_mise.packing import ScoringRow, Verdicts
from trl_mise.scorers import score_packed, score_repeated
from trl_mise.scoring import score_rows, score_steps

VERDICTS = (7, 3, 40)


def make_rows() -> list[ScoringRow]:
    """Trajectories much longer than the window, questions that share a beginning or see less than all."""
    generator = torch.Generator().manual_seed(1)

    def ids(length: int) -> list[int]:
        return torch.randint(3, VOCAB, (length,), generator=generator).tolist()

    common = ids(4)
    return [
        ScoringRow(ids(40), [common + ids(3), common + ids(2), common + ids(5)], [20, 40, 40]),
        ScoringRow(ids(23), [ids(3)], [23]),
        ScoringRow(ids(9), [common + ids(1), ids(4)], [9, 5]),
    ]


@pytest.fixture(autouse=True)
def fresh_warnings() -> None:
    warn_once.cache_clear()


def assert_equal_to_naive(model: torch.nn.Module, method: str, tolerance: float = 2e-6) -> None:
    scored, naive = score_rows(model, make_rows(), VERDICTS), score_rows(model, make_rows(), VERDICTS, method="naive")
    assert scored.method == method
    assert naive.logits.std() > 0.3  # there is something to get wrong
    torch.testing.assert_close(scored.logits, naive.logits, atol=tolerance, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ONE_PASS)
def test_softmax_attention_is_scored_in_one_pass(name: str, attention: str) -> None:
    if name in EAGER_ONLY and attention == "sdpa":
        pytest.skip("transformers has no sdpa for it")
    model = build(CONFIGS[name](), attention)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="hindsight scoring")
        assert_equal_to_naive(model, "cached_packed")
        packed = score_rows(model, make_rows(), VERDICTS, requires_grad=True)
    assert packed.method == "packed" and packed.logits.requires_grad
    naive = score_rows(model, make_rows(), VERDICTS, method="naive").logits
    torch.testing.assert_close(packed.logits.detach(), naive, atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", ["qwen2", "gemma3", "mistral"])
def test_bfloat16(name: str) -> None:
    model = build(CONFIGS[name](), dtype=torch.bfloat16)
    naive = score_rows(model, make_rows(), VERDICTS, method="naive").logits.softmax(-1)
    for method in ("cached_packed", "packed"):
        scored = score_rows(model, make_rows(), VERDICTS, method=method).logits.softmax(-1)
        torch.testing.assert_close(scored, naive, atol=5e-3, rtol=0)


@pytest.mark.parametrize("name", REPEATED)
def test_other_attention_copies_the_cache_and_says_so_once(name: str) -> None:
    model = build(CONFIGS[name](), "eager")
    with pytest.warns(UserWarning, match="copies the cache for every question") as caught:
        assert_equal_to_naive(model, "kv_repeat", 2e-5)
    assert sum("hindsight scoring" in str(warning.message) for warning in caught) == 1
    with pytest.raises(ValueError, match="method='packed' would be silently wrong here"):
        score_rows(model, make_rows(), VERDICTS, method="packed")


@pytest.mark.parametrize("name", ["lfm2", "qwen3_next", "falcon_h1", "bamba"])
def test_recurrent_layers_packed_would_be_wrong(name: str) -> None:
    """The guard is needed: nothing fails when a recurrent layer runs through the questions one after the other."""
    model = build(CONFIGS[name](), "eager")
    naive = score_rows(model, make_rows(), VERDICTS, method="naive").logits
    with torch.no_grad():
        wrong = torch.cat(score_packed(model, make_rows(), Verdicts.of(VERDICTS), 1000))
    assert (wrong - naive).abs().max() > 1e-2


def test_mamba_is_scored_naively() -> None:
    model = build(CONFIGS["mamba"](), "eager")
    with pytest.warns(UserWarning, match="one forward per step.*mamba"):
        assert score_rows(model, make_rows(), VERDICTS).method == "naive"
    with pytest.raises(ValueError, match="'kv_repeat' would be silently wrong here: the cache of model type 'mamba'"):
        score_rows(model, make_rows(), VERDICTS, method="kv_repeat")


def test_with_gradients_other_attention_is_scored_naively() -> None:
    with pytest.warns(UserWarning, match="one forward per step.*bloom"):
        scored = score_rows(build(CONFIGS["bloom"](), "eager"), make_rows(), VERDICTS, requires_grad=True)
    assert scored.method == "naive" and scored.logits.requires_grad


@pytest.mark.parametrize("name", ["gemma3", "mistral"])
def test_a_mask_that_drops_the_window_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe is longer than the window: a table that is wrong about it leads to the next best method."""
    model = build(CONFIGS[name]())
    naive = score_rows(model, make_rows(), VERDICTS, method="naive").logits
    monkeypatch.setattr(architectures, "attention_window", lambda config: 10**6)
    with pytest.warns(UserWarning, match=r"copies the cache.*cached_packed scoring differs from naive scoring by"):
        scored = score_rows(model, make_rows(), VERDICTS)
    assert scored.method == "kv_repeat"
    torch.testing.assert_close(scored.logits, naive, atol=2e-6, rtol=0)
    with pytest.raises(ValueError, match="'packed' would be silently wrong here: packed scoring differs"):
        score_rows(model, make_rows(), VERDICTS, method="packed")
    trusting = score_rows(model, make_rows(), VERDICTS, verify="never")
    assert trusting.method == "cached_packed" and (trusting.logits - naive).abs().max() > 1e-2


def test_a_method_that_raises_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(CONFIGS["llama"]())

    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no such cache")

    monkeypatch.setitem(verification.SCORERS, "cached_packed", broken)
    assert score_rows(model, make_rows(), VERDICTS).method == "packed"
    with pytest.raises(ValueError, match="failed on this model .RuntimeError: no such cache"):
        score_rows(model, make_rows(), VERDICTS, method="cached_packed")


def test_a_model_is_verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    measure = verification._measure
    monkeypatch.setattr(verification, "_measure", lambda *args: calls.append(args[1]) or measure(*args))
    model = build(CONFIGS["llama"]())
    state = torch.get_rng_state()
    for _ in range(3):
        score_rows(model, make_rows(), VERDICTS)
        score_rows(model, make_rows(), VERDICTS, requires_grad=True)
    assert calls == ["cached_packed", "packed"]
    assert torch.equal(torch.get_rng_state(), state)


def test_an_unlisted_family_is_used_after_it_was_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architectures, "MASKED_FAMILIES", architectures.MASKED_FAMILIES - {"qwen2", "llama"})
    qwen2 = build(CONFIGS["qwen2"]())  # its configuration lists the types of its layers
    assert score_rows(qwen2, make_rows(), VERDICTS).method == "cached_packed"
    with pytest.warns(UserWarning, match="verify=.never. trusts only it"):
        assert score_rows(qwen2, make_rows(), VERDICTS, verify="never").method == "naive"
    with pytest.warns(UserWarning, match="model type 'llama' is not known"):
        assert score_rows(build(CONFIGS["llama"]()), make_rows(), VERDICTS).method == "naive"


def test_other_obstacles_are_named() -> None:
    assert mask_obstacle(build(CONFIGS["llama"]())) is None
    dynamic = LlamaConfig(**BASE, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    assert "dynamic" in str(mask_obstacle(build(dynamic)))
    model = build(CONFIGS["qwen2"]())
    model.config.layer_types = ["full_attention", "chunked_attention"] * 2
    assert "layers of type ['chunked_attention']" in str(mask_obstacle(model))
    eager_only = build(CONFIGS["gemma2"](), "eager")
    eager_only.config._attn_implementation = "flash_attention_2"
    assert "'flash_attention_2' takes no 4D mask" in str(mask_obstacle(eager_only))
    assert attention_window(MistralConfig(**BASE, sliding_window=5)) == 5
    assert attention_window(Qwen2Config(**BASE)) is None


def test_attention_without_4d_masks_reads_the_trajectory_and_sdpa_the_questions() -> None:
    """As flash attention would: the trajectory keeps the model's own kernel, only our masks need another."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    seen = []

    def no_4d_masks(module, query, key, value, attention_mask, **kwargs):
        seen.append(query.shape[2])
        assert attention_mask is None or key.shape[2] == query.shape[2]
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register("no_4d_masks", no_4d_masks)
    AttentionMaskInterface.register("no_4d_masks", sdpa_mask)
    model = build(CONFIGS["qwen2"]())
    naive = score_rows(model, make_rows(), VERDICTS, method="naive").logits
    model.set_attn_implementation("no_4d_masks")
    scored = score_rows(model, make_rows(), VERDICTS, verify="never")
    assert scored.method == "cached_packed" and set(seen) == {40}  # the three trajectories, padded
    assert model.config._attn_implementation == "no_4d_masks"
    torch.testing.assert_close(scored.logits, naive, atol=2e-6, rtol=0)


def test_a_cache_is_not_changed_by_its_copies() -> None:
    model = build(CONFIGS["lfm2"]())
    row = ScoringRow([5, 6, 7, 8, 9], [[4], [4, 5], [4]], [5, 5, 5])
    with torch.no_grad():
        logits = torch.cat(score_repeated(model, [row], Verdicts.of(VERDICTS), max_tokens=1))  # one copy at a time
    assert torch.equal(logits[0], logits[2])


def test_scores_of_a_hybrid_in_bare_lists() -> None:
    model = build(CONFIGS["lfm2"]())
    with pytest.warns(UserWarning, match="copies the cache"):
        assert score_steps(model, [[5, 6, 7]], [[[4], [8, 9]]], VERDICTS).logits.shape == (2, 3)
