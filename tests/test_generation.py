"""Sampling: what comes out is what the policy's own probabilities say, and nothing else bends it."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from fakes import tiny_llama
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

from trl_mise.generation import Sampling, sample, without_own_generation_config

VOCAB, PAD, STOP, OTHER_STOP = 20, 0, 1, 2
CONTEXTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 3], [14, 15], [8, 4]]
# Everything that published models are known to ship, and more: each of these changes what is sampled.
BENT = {
    "do_sample": True,
    "temperature": 0.05,
    "top_p": 0.1,
    "top_k": 1,
    "min_p": 0.9,
    "typical_p": 0.2,
    "repetition_penalty": 7.0,
    "no_repeat_ngram_size": 1,
    "min_new_tokens": 8,
    "suppress_tokens": [3, 4, 5, 6],
    "forced_eos_token_id": STOP,
    "eos_token_id": 9,
    "pad_token_id": 7,
}


GREEDY_STOPS = (STOP, OTHER_STOP, 3, 4)
"""Enough of them for random weights to hit one now and then."""


def greedy(batch_size: int = 64) -> Sampling:
    return Sampling(0.0, 8, GREEDY_STOPS, batch_size)


def argmax_loop(model: Any, context: Sequence[int]) -> list[int]:
    """[`greedy`] for one row alone, no padding, no cache."""
    ids = list(context)
    for _ in range(8):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in GREEDY_STOPS:
            break
    return ids[len(context) :]


def with_lora(model: Any) -> Any:
    torch.manual_seed(5)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(copy.deepcopy(model), config).eval()


class TestGreedy:
    def test_is_the_argmax_loop(self) -> None:
        """Rows of unequal length in one batch: left padding changes nothing. Some rows stop, some do not."""
        stopped = []
        for seed in range(3):
            model = tiny_llama(VOCAB, seed=seed)
            rows = sample(model, CONTEXTS, greedy(), PAD)
            assert rows == [argmax_loop(model, context) for context in CONTEXTS]
            stopped += [row[-1] in GREEDY_STOPS for row in rows]
        assert set(stopped) == {True, False}

    @pytest.mark.parametrize("batch_size", [1, 3])
    def test_batches_keep_the_order(self, batch_size: int) -> None:
        model = tiny_llama(VOCAB)
        assert sample(model, CONTEXTS, greedy(batch_size=batch_size), PAD) == sample(model, CONTEXTS, greedy(), PAD)

    def test_pad_token_does_not_matter(self) -> None:
        """Neither one that occurs in the contexts, nor one that is the stop token."""
        model = tiny_llama(VOCAB)
        rows = [sample(model, CONTEXTS, greedy(), pad) for pad in (PAD, 5, STOP)]
        assert rows[0] == rows[1] == rows[2]

    def test_lora_is_in_effect(self) -> None:
        model = tiny_llama(VOCAB)
        adapted = with_lora(model)
        expected = [argmax_loop(adapted, context) for context in CONTEXTS]
        assert sample(adapted, CONTEXTS, greedy(), PAD) == expected != sample(model, CONTEXTS, greedy(), PAD)


class TestStopping:
    @pytest.mark.parametrize("pad", [PAD, STOP, OTHER_STOP], ids=["own pad", "pad is a stop", "pad is another stop"])
    def test_a_row_ends_with_its_first_stop_token(self, pad: int) -> None:
        torch.manual_seed(0)
        stops = (STOP, OTHER_STOP)
        rows = sample(tiny_llama(VOCAB), CONTEXTS * 20, Sampling(1.5, 6, stops), pad)
        assert len(rows) == 100
        for row in rows:
            assert not set(row[:-1]) & set(stops)
            assert row[-1] in stops or len(row) == 6
        assert {row[-1] for row in rows} >= set(stops) and any(len(row) == 6 for row in rows)

    def test_sampled_pad_tokens_stay(self) -> None:
        """An id that pads elsewhere is an action like any other: only a stop token ends a row."""
        torch.manual_seed(0)
        rows = sample(tiny_llama(VOCAB), CONTEXTS * 20, Sampling(1.5, 6, (STOP,)), PAD)
        assert any(PAD in row[:-1] for row in rows)
        assert all(row[-1] == STOP or len(row) == 6 for row in rows)

    def test_without_stop_tokens_every_row_is_full(self) -> None:
        model = tiny_llama(VOCAB)
        model.generation_config = GenerationConfig(eos_token_id=list(range(VOCAB)))
        assert {len(row) for row in sample(model, CONTEXTS, Sampling(1.0, 5, ()), PAD)} == {5}


class TestOwnGenerationConfig:
    """The model's generation config has no say, and is back in its place afterwards."""

    @pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
    @pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
    def test_has_no_effect(self, temperature: float, lora: bool) -> None:
        plain = with_lora(tiny_llama(VOCAB)) if lora else tiny_llama(VOCAB)
        bent = copy.deepcopy(plain)
        owner = bent.get_base_model() if lora else bent
        config = owner.generation_config = GenerationConfig(**BENT)
        before = config.to_dict()

        def play(model: Any) -> list[list[int]]:
            torch.manual_seed(3)
            return sample(model, CONTEXTS * 10, Sampling(temperature, 8, (STOP,)), PAD)

        assert play(bent) == play(plain)
        assert owner.generation_config is bent.generation_config is config and config.to_dict() == before
        assert not lora or "generation_config" not in vars(bent), "the wrapper shows its base model's config again"

    @pytest.mark.parametrize(
        "name", ["repetition_penalty", "min_new_tokens", "suppress_tokens", "no_repeat_ngram_size"]
    )
    def test_would_have_an_effect(self, name: str) -> None:
        """A check on the test above: transformers itself does fill these in."""
        model = tiny_llama(VOCAB)
        ids = torch.tensor([CONTEXTS[0]])
        options = GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=STOP, pad_token_id=PAD)
        plain = model.generate(input_ids=ids, generation_config=options)[0].tolist()
        value = [plain[-2]] if name == "suppress_tokens" else BENT[name]
        model.generation_config = GenerationConfig(**{name: value, "eos_token_id": STOP})
        if name == "min_new_tokens":
            options.eos_token_id = plain[len(CONTEXTS[0])]  # it would stop at once
            plain = plain[: len(CONTEXTS[0]) + 1]
        assert model.generate(input_ids=ids, generation_config=options)[0].tolist() != plain

    def test_a_config_of_the_wrapper_itself_is_hidden_and_restored(self) -> None:
        model = with_lora(tiny_llama(VOCAB))
        expected = sample(model, CONTEXTS, greedy(), PAD)
        model.generation_config = config = GenerationConfig(**BENT)
        assert sample(model, CONTEXTS, greedy(), PAD) == expected
        assert model.generation_config is config

    def test_restored_after_an_error(self) -> None:
        model = tiny_llama(VOCAB)
        model.generation_config = config = GenerationConfig(**BENT)
        with pytest.raises(RuntimeError, match="out of memory"), without_own_generation_config(model):
            assert model.generation_config is not config
            raise RuntimeError("out of memory")
        assert model.generation_config is config


class TestDistribution:
    """Pearson's chi-square over the vocabulary. 19 degrees of freedom: 43.8 is exceeded once in a thousand times."""

    DRAWS, CRITICAL = 4000, 43.8

    def statistic(self, model: Any, temperature: float, believed: float) -> float:
        torch.manual_seed(11)
        sampling = Sampling(temperature, 1, (STOP,), batch_size=self.DRAWS)
        rows = sample(model, [CONTEXTS[0]] * self.DRAWS, sampling, PAD)
        counts = torch.bincount(torch.tensor(rows).flatten(), minlength=VOCAB)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([CONTEXTS[0]])).logits[0, -1].double()
        expected = self.DRAWS * (logits / believed).softmax(-1)
        assert expected.min() > 5, "a chi-square statistic needs a few draws in every cell"
        return float(((counts - expected) ** 2 / expected).sum())

    @pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
    def test_is_the_softmax_at_the_temperature(self, temperature: float) -> None:
        model = tiny_llama(VOCAB, initializer_range=0.2)
        model.generation_config = GenerationConfig(**BENT)
        assert self.statistic(model, temperature, believed=temperature) < self.CRITICAL

    def test_another_temperature_is_noticed(self) -> None:
        """The test above has the power to see a temperature that is wrong by a fifth."""
        model = tiny_llama(VOCAB, initializer_range=0.2)
        assert self.statistic(model, 1.0, believed=0.8) > 2 * self.CRITICAL
