"""Rollouts that keep keys and values between turns: the same tokens as reading every context from its beginning."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from architecture_zoo import CONFIGS, EAGER_ONLY, ONE_PASS, REPEATED, build
from fakes import tiny_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn

from trl_mise import MISEConfig
from trl_mise.backends import BACKENDS, ContinuousBatchingBackend, TransformersBackend
from trl_mise.generation import Sampling, sample
from trl_mise.kept_generation import KeptGeneration
from trl_mise.notices import warn_once
from trl_mise.rollout import Generate

STOPS = (1, 2, 3, 4)
"""Enough of them for random weights to hit one now and then."""
Conversations = list[list[int]]


@pytest.fixture(autouse=True)
def fresh_warnings() -> None:
    warn_once.cache_clear()


def greedy(max_new_tokens: int = 6, batch_size: int = 64, stops: Sequence[int] = STOPS) -> Sampling:
    return Sampling(0.0, max_new_tokens, tuple(stops), batch_size)


def ids(rng: random.Random, low: int, high: int) -> list[int]:
    return [rng.randrange(5, 20) for _ in range(rng.randint(low, high))]


def play(
    generate: Generate, turns: int = 4, size: int = 5, *, seed: int = 0, lengths: tuple[int, int] = (0, 7)
) -> Iterator[tuple[Conversations, Conversations]]:
    """Contexts and actions of every turn; conversations end, others join, all of them lose their places."""
    rng = random.Random(seed)
    contexts = [ids(rng, 1, 9) for _ in range(size)]
    for turn in range(turns):
        actions = generate(contexts)
        yield contexts, actions
        contexts = [[*c, *a, *(ids(rng, *lengths))] for c, a in zip(contexts, actions, strict=True)]
        if turn % 2:
            rng.shuffle(contexts)
            contexts = [*contexts[1:], *([ids(rng, 2, 12)] if turn % 3 else [])]


def assert_same_as_plain(model: Any, sampling: Sampling, **options: Any) -> set[bool]:
    """Compares every turn; gives whether rows ended with a stop token."""
    ends = set()
    for contexts, actions in play(KeptGeneration(model, sampling), **options):
        assert actions == sample(model, contexts, sampling)
        ends |= {action[-1] in sampling.stop_token_ids for action in actions}
    return ends


class Reads:
    """The tokens `(rows, columns)` of every pass of a model."""

    def __init__(self, model: Any) -> None:
        self.shapes: list[tuple[int, ...]] = []
        model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: self.shapes.append(inputs[0].shape))


class TestSameTokens:
    @pytest.mark.parametrize("name", ONE_PASS)
    def test_every_family_that_takes_masks(self, name: str) -> None:
        """Longer than the attention window where a family has one (8): after three turns of at least six tokens."""
        model = build(CONFIGS[name](), "eager" if name in EAGER_ONLY else "sdpa")
        assert_same_as_plain(model, greedy(stops=[1]), lengths=(3, 9))
        with TransformersBackend().session(model, greedy()) as generate:
            assert isinstance(generate, KeptGeneration)

    def test_rows_that_stop_early_and_rows_that_do_not(self) -> None:
        ends = set()
        for seed in range(3):
            ends |= assert_same_as_plain(tiny_llama(20, seed=seed), greedy(), turns=6, seed=seed)
        assert ends == {True, False}

    @settings(max_examples=40, deadline=None)
    @given(
        seed=st.integers(0, 10_000),
        size=st.integers(1, 7),
        turns=st.integers(1, 5),
        batch_size=st.integers(1, 8),
        max_new_tokens=st.integers(1, 5),
        num_stops=st.integers(0, 4),
    )
    def test_any_conversation(
        self, seed: int, size: int, turns: int, batch_size: int, max_new_tokens: int, num_stops: int
    ) -> None:
        sampling = greedy(max_new_tokens, batch_size, STOPS[:num_stops])
        assert_same_as_plain(tiny_llama(20, seed=1), sampling, turns=turns, size=size, seed=seed)

    def test_through_an_adapter(self) -> None:
        adapter = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        base = tiny_llama(20)
        model = get_peft_model(base, adapter).eval()
        assert_same_as_plain(model, greedy())
        contexts = [[5, 6, 7, 8], [9, 10]]
        adapted = KeptGeneration(model, greedy())(contexts)
        with model.disable_adapter():
            assert KeptGeneration(model, greedy())(contexts) != adapted

    @pytest.mark.parametrize("autocast", [False, True], ids=["weights", "autocast"])
    def test_bfloat16(self, autocast: bool) -> None:
        """Rounding decides ties; with anything wrong, hardly an action of six tokens would be the same."""
        model, same = build(CONFIGS["llama"](), dtype=torch.float32 if autocast else torch.bfloat16), []
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            for contexts, actions in play(KeptGeneration(model, greedy(stops=[1])), turns=6):
                plain = sample(model, contexts, greedy(stops=[1]))
                same += [one == other for one, other in zip(actions, plain, strict=True)]
        assert sum(same) >= 0.75 * len(same) and len(same) > 20

    def test_conversations_that_begin_alike(self) -> None:
        """The same prompt several times; sampled actions tell them apart, and each goes on from its own."""
        model = tiny_llama(20, initializer_range=0.3)
        generate = KeptGeneration(model, Sampling(1.5, 3, (), 64))
        torch.manual_seed(0)
        actions = generate([[5, 6, 7]] * 6)
        contexts = [[5, 6, 7, *action, 8] for action in actions]
        assert len(set(map(tuple, contexts))) > 3
        generate.sampling = generate._pools[0].sampling = greedy()
        assert generate(contexts) == sample(model, contexts, greedy())

    def test_same_draws_as_plain_sampling(self) -> None:
        """Not only greedily: one draw per row and token, from the same probabilities."""
        model, sampling = tiny_llama(20), Sampling(1.3, 5, (1,), 64)

        def draw(generate: Generate) -> list[Conversations]:
            torch.manual_seed(7)
            return [actions for _, actions in play(generate, turns=2)]

        assert draw(KeptGeneration(model, sampling)) == draw(lambda contexts: sample(model, contexts, sampling))

    def test_a_slot_is_taken_over_without_a_trace(self) -> None:
        """A longer conversation first: what stands to the right of a new one's tokens must not be seen."""
        model, sampling = tiny_llama(20), greedy(batch_size=2)
        generate = KeptGeneration(model, sampling)
        first = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [9, 9, 9]]
        actions = generate(first)
        second = [[*first[1], *actions[1], 17], [16, 15]]
        assert generate(second) == sample(model, second, sampling)
        assert len(generate._pools) == 1


class TestWork:
    def test_only_what_is_new_is_read(self) -> None:
        model = tiny_llama(20)
        generate = KeptGeneration(model, greedy(max_new_tokens=4, stops=()))
        reads = Reads(model)
        contexts = [list(range(5, 15)), list(range(6, 18))]
        actions = generate(contexts)
        assert reads.shapes == [(2, 12), (2, 1), (2, 1), (2, 1)]
        reads.shapes.clear()
        generate([[*contexts[0], *actions[0], 7, 7, 7], [*contexts[1], *actions[1], 8]])
        # The last sampled token was never read, so it comes with the answer: 1 + 3.
        assert reads.shapes == [(2, 4), (2, 1), (2, 1), (2, 1)]

    def test_new_conversations_do_not_widen_the_others_answers(self) -> None:
        model = tiny_llama(20)
        generate = KeptGeneration(model, greedy(max_new_tokens=1, stops=()))
        contexts = [[5, 6], [7, 8]]
        actions = generate(contexts)
        reads = Reads(model)
        generate([[*contexts[0], *actions[0], 7], list(range(5, 20))])
        assert sorted(reads.shapes) == [(1, 2), (1, 15)]

    def test_finished_conversations_leave_the_batch_and_the_memory(self) -> None:
        model = tiny_llama(20)
        generate = KeptGeneration(model, greedy(stops=()))
        contexts = [[5, 6], [7, 8, 9], [10]]
        actions = generate(contexts)
        reads = Reads(model)
        generate([[*contexts[1], *actions[1], 7]])
        assert {rows for rows, _ in reads.shapes} == {1}
        (pool,) = generate._pools
        assert all(layer.keys.shape[0] == 1 for layer in pool.cache.layers)

    def test_a_pool_holds_a_batch(self) -> None:
        model = tiny_llama(20)
        generate = KeptGeneration(model, greedy(batch_size=2))
        reads = Reads(model)
        generate([[5], [6], [7], [8], [9]])
        assert max(rows for rows, _ in reads.shapes) == 2 and len(generate._pools) == 3

    def test_long_prompts_are_read_in_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("trl_mise.kept_generation._MAX_READ_TOKENS", 20)
        model = tiny_llama(20)
        reads = Reads(model)
        contexts = [[5 + (i + j) % 15 for j in range(10)] for i in range(5)]
        assert KeptGeneration(model, greedy())(contexts) == sample(model, contexts, greedy())
        assert reads.shapes[:3] == [(2, 10), (2, 10), (1, 10)]

    def test_what_was_never_written_is_no_nan(self) -> None:
        """Uninitialised memory times an attention weight of 0 may be NaN."""
        model = tiny_llama(20)
        generate = KeptGeneration(model, greedy())
        generate([[5, 6, 7]])
        for layer in generate._pools[0].cache.layers:
            assert layer.keys.isfinite().all() and layer.values.isfinite().all()
            assert layer.keys.shape[2] > 3 and not layer.keys[:, :, 60:].any()


class TestBackends:
    @pytest.mark.parametrize("name", [*REPEATED, "mamba"])
    def test_other_caches_fall_back_with_one_notice(self, name: str) -> None:
        model = build(CONFIGS[name](), "eager" if name in EAGER_ONLY else "sdpa")
        backend = TransformersBackend()
        with pytest.warns(UserWarning, match="read every episode from its beginning") as said:
            for _ in range(2):
                with backend.session(model, greedy()) as generate:
                    contexts = [[5, 6, 7], [8, 9]]
                    assert generate(contexts) == sample(model, contexts, greedy())
        assert len([w for w in said if "from its beginning" in str(w.message)]) == 1

    def test_keeping_can_be_switched_off(self, recwarn: pytest.WarningsRecorder) -> None:
        model = tiny_llama(20)
        reads = Reads(model)
        with TransformersBackend(keep_cache=False).session(model, greedy(1)) as generate:
            generate([[5, 6, 7]])
            generate([[5, 6, 7, 8, 9]])
        assert reads.shapes == [(1, 3), (1, 5)]
        assert not [w for w in recwarn if "from its beginning" in str(w.message)]

    def test_the_names_in_the_configuration(self, tmp_path: Any) -> None:
        for name in BACKENDS:
            MISEConfig(output_dir=str(tmp_path), generation_backend=name, bf16=False)
        with pytest.raises(ValueError, match="generation_backend='vlm' is unknown; choose one of"):
            MISEConfig(output_dir=str(tmp_path), generation_backend="vlm", bf16=False)


class TestContinuousBatching:
    def test_the_engine_of_transformers_itself(self) -> None:
        """Made for GPUs, but it runs here too."""
        ContinuousBatchingConfig = pytest.importorskip("transformers").ContinuousBatchingConfig
        model = tiny_llama(64)
        contexts = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
        # By default it takes most of the memory and warms up for every batch size.
        backend = ContinuousBatchingBackend(
            continuous_batching_config=ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64),
            warmup=False,
        )
        with backend.session(model, greedy()) as generate:
            actions = generate(contexts)
            assert actions == sample(model, contexts, greedy())
            contexts = [[*context, *action, 9] for context, action in zip(contexts, actions, strict=True)]
            assert generate(contexts) == sample(model, contexts, greedy())

    # The rest against a stand-in.

    class Output:
        def __init__(self, tokens: list[int], error: str | None = None) -> None:
            self.generated_tokens, self.error = tokens, error

    class Engine(nn.Module):
        def __init__(self, answer: Callable[[Conversations, Any], dict[str, Any]]) -> None:
            super().__init__()
            self.answer = answer

        def generate_batch(self, inputs: Conversations, generation_config: Any) -> dict[str, Any]:
            return self.answer(inputs, generation_config)

    def test_what_it_is_asked_and_what_comes_back(self) -> None:
        seen: list[Any] = []

        def answer(inputs: Conversations, config: Any) -> dict[str, Any]:
            seen.append((inputs, config))
            return {str(i): self.Output([7, 1, 9] if i else [8, 8, 8]) for i in range(len(inputs))}

        sampling = Sampling(0.7, 3, (1,))
        with ContinuousBatchingBackend().session(self.Engine(answer), sampling) as generate:
            assert generate([[5, 6], [7]]) == [[8, 8, 8], [7, 1]]
        ((inputs, config),) = seen
        assert inputs == [[5, 6], [7]]
        assert (config.max_new_tokens, config.temperature, config.top_k, config.eos_token_id) == (3, 0.7, 0, [1])

    def test_a_lost_or_failed_row_is_an_error(self) -> None:
        lost = self.Engine(lambda inputs, config: {"0": self.Output([7])})
        failed = self.Engine(lambda inputs, config: {"0": self.Output([7]), "1": self.Output([], "out of blocks")})
        for engine, message in ((lost, "answered 1 of 2"), (failed, r"1 of 2 contexts \(out of blocks\)")):
            with (
                ContinuousBatchingBackend().session(engine, greedy()) as generate,
                pytest.raises(RuntimeError, match=message),
            ):
                generate([[5], [6]])

    def test_a_model_without_it(self) -> None:
        with (
            pytest.raises(ValueError, match="Linear has no generate_batch"),
            ContinuousBatchingBackend().session(nn.Linear(1, 1), greedy()),
        ):
            pass
