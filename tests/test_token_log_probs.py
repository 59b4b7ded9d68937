"""Log-probabilities and entropies in chunks: the same numbers, the same gradients, and a bound on the logits."""

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from toy_episodes import tiny_config
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaForCausalLM

from trl_mise import token_log_probs as module
from trl_mise.config import MISEConfig
from trl_mise.heads import lm_logits
from trl_mise.token_log_probs import DEFAULT_HEAD_BYTES, token_log_probs

H, V, RANK = 16, 67, 7
ROW = V * 8
"""Bytes of one token's logits in float64."""
TEMPERATURE = 0.7


def plain() -> nn.Module:
    return LlamaForCausalLM(tiny_config(vocab_size=V))


def tied() -> nn.Module:
    return LlamaForCausalLM(tiny_config(vocab_size=V, tie_word_embeddings=True))


def softcapped() -> nn.Module:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "pad_token_id")
    shape = {name: getattr(tiny_config(), name) for name in names}
    config = Gemma2Config(vocab_size=V, head_dim=8, final_logit_softcapping=0.5, initializer_range=0.3, **shape)
    return Gemma2ForCausalLM(config)


def adapted(**options: Any) -> nn.Module:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(**{"r": RANK, "target_modules": ["q_proj"], "init_lora_weights": False, **options})
    return peft.get_peft_model(plain(), config)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": plain,
    "tied": tied,
    "softcapped": softcapped,
    "lora elsewhere": adapted,
    "lora on head": lambda: adapted(target_modules=["q_proj", "lm_head"]),
    "head saved": lambda: adapted(modules_to_save=["lm_head"]),
    "words saved": lambda: adapted(trainable_token_indices={"lm_head": [3, 5]}),
}


def make(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[name]().to(dtype).train()


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return make(request.param)


def tokens(count: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Gathered states `(N, H)`, requiring a gradient, and token ids `(N,)`."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(count, H, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, torch.randint(V, (count,), generator=generator)


def naive(policy: nn.Module, hidden: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    distribution = torch.distributions.Categorical(logits=lm_logits(policy, hidden) / (temperature + 1e-7))
    return distribution.log_prob(ids), distribution.entropy()


def gradients(policy: nn.Module, hidden: Tensor, log_probs: Tensor) -> dict[str, Tensor]:
    """Of a loss with another weight for every token, by the states and by whatever trains."""
    policy.zero_grad()
    hidden.grad = None
    (log_probs * torch.linspace(-1, 2, len(log_probs)).to(log_probs)).sum().backward()
    found = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    return {**found, "hidden": hidden.grad.clone()} if hidden.grad is not None else found


class TestAgreement:
    @settings(max_examples=25, deadline=None)
    @given(
        count=st.integers(1, 12),
        max_bytes=st.integers(1, 14 * ROW),
        temperature=st.sampled_from([0.3, 1.0, 2.0]),
    )
    def test_values_and_gradients_are_those_of_all_logits_at_once(
        self, model: nn.Module, count: int, max_bytes: int, temperature: float
    ) -> None:
        hidden, ids = tokens(count)
        expected, expected_entropy = naive(model, hidden, ids, temperature)
        log_probs, entropy = token_log_probs(model, hidden, ids, temperature, max_bytes=max_bytes)
        torch.testing.assert_close(log_probs, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(entropy, expected_entropy.detach(), rtol=0, atol=1e-12)
        assert not entropy.requires_grad
        by_chunks = gradients(model, hidden, log_probs)
        at_once = gradients(model, hidden, expected)
        assert by_chunks.keys() == at_once.keys()
        for name, gradient in by_chunks.items():
            torch.testing.assert_close(gradient, at_once[name], rtol=1e-12, atol=1e-12, msg=name)

    @pytest.mark.parametrize("max_bytes", [1, 3 * ROW, 100 * ROW])
    @pytest.mark.parametrize("name", ["plain", "softcapped", "lora elsewhere"])
    @pytest.mark.parametrize("frozen", [False, True])
    def test_gradcheck(self, name: str, frozen: bool, max_bytes: int) -> None:
        policy = make(name)
        if frozen:
            policy.requires_grad_(False)
        hidden, ids = tokens(5)
        assert torch.autograd.gradcheck(
            lambda states: token_log_probs(policy, states, ids, TEMPERATURE, max_bytes=max_bytes)[0], (hidden,)
        )

    @pytest.mark.parametrize("max_bytes", [1, 100 * ROW])
    @pytest.mark.parametrize("name", MODELS)
    def test_the_bound_changes_no_bit_of_a_pass_without_a_gradient(self, name: str, max_bytes: int) -> None:
        """Old log-probabilities come from a pass without a gradient: at lr = 0 every ratio must be exactly 1."""
        policy, (hidden, ids) = make(name, torch.float32), tokens(9, torch.float32)
        with_gradient = token_log_probs(policy, hidden, ids, TEMPERATURE, max_bytes=max_bytes)
        with torch.no_grad():
            without = token_log_probs(policy, hidden, ids, TEMPERATURE, max_bytes=max_bytes)
        assert torch.equal(with_gradient[0], without[0]) and torch.equal(with_gradient[1], without[1])
        assert with_gradient[0].requires_grad and not without[0].requires_grad

    @pytest.mark.parametrize("max_bytes", [1, 100 * ROW])
    def test_no_tokens(self, model: nn.Module, max_bytes: int) -> None:
        hidden, ids = tokens(0)
        log_probs, entropy = token_log_probs(model, hidden, ids, TEMPERATURE, max_bytes=max_bytes)
        assert log_probs.shape == entropy.shape == (0,) and log_probs.dtype == torch.float64
        assert gradients(model, hidden, log_probs)["hidden"].shape == (0, H)

    def test_certain_and_even_distributions(self) -> None:
        """Golden values, at logits far from zero: certainty has entropy 0, V equal words have log V."""
        logits = torch.stack([torch.full((V,), 3e4), torch.full((V,), -3e4)])
        logits[0, 7] += 1e3
        log_probs, entropy = module._TokenLogProbs.apply(logits, torch.tensor([7, 7]), 1.0)
        even = torch.tensor(float(V)).log()
        torch.testing.assert_close(log_probs, torch.stack([torch.zeros(()), -even]))
        torch.testing.assert_close(entropy, torch.stack([torch.zeros(()), even]))


class TestPrecision:
    @pytest.mark.parametrize("name", ["plain", "lora elsewhere", "lora on head"])
    @pytest.mark.parametrize("autocast", [False, True])
    @pytest.mark.parametrize("max_bytes", [1, 100 * ROW])
    def test_bfloat16(self, name: str, autocast: bool, max_bytes: int) -> None:
        """Float32 numbers of 16-bit logits; the recomputation runs under the autocast of the first time."""
        exact = make(name, torch.bfloat16)
        policy = copy.deepcopy(exact).float() if autocast else exact
        hidden, ids = tokens(9, torch.float32 if autocast else torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            expected, expected_entropy = naive(policy, hidden, ids, TEMPERATURE)
            log_probs, entropy = token_log_probs(policy, hidden, ids, TEMPERATURE, max_bytes=max_bytes)
        assert log_probs.dtype == entropy.dtype == torch.float32
        torch.testing.assert_close(log_probs, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(entropy, expected_entropy.detach(), rtol=0, atol=1e-5)
        by_chunks, at_once = gradients(policy, hidden, log_probs), gradients(policy, hidden, expected)
        assert by_chunks.keys() == at_once.keys()
        for name, gradient in by_chunks.items():
            assert float((gradient - at_once[name]).norm() / at_once[name].norm()) < 0.02, name

    def test_dropout_of_an_adapter_on_the_head_drops_the_same_again(self) -> None:
        policy = adapted(target_modules=["lm_head"], lora_dropout=0.5).double().train()
        hidden, ids = tokens(6)
        results = []
        for max_bytes in (1, ROW + 1):  # the second with what the first must not reuse: a moved random state
            torch.manual_seed(0)
            log_probs, _ = token_log_probs(policy, hidden, ids, TEMPERATURE, max_bytes=max_bytes)
            if len(results):
                torch.rand(17)
            results.append(gradients(policy, hidden, log_probs))
        for name, gradient in results[0].items():
            assert torch.equal(gradient, results[1][name]), name
        # And they are the gradients of what was computed: half of the inputs were really dropped.
        torch.manual_seed(0)
        rows = [naive(policy, hidden[i : i + 1], ids[i : i + 1], TEMPERATURE)[0] for i in range(6)]
        for name, gradient in gradients(policy, hidden, torch.cat(rows)).items():
            torch.testing.assert_close(results[0][name], gradient, rtol=0, atol=1e-12, msg=name)


class LogitBytes(TorchDispatchMode):
    """Counts the bytes of all tensors with a last dimension of V that are alive: now, and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = self.largest = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            # `(H, V)` and `(RANK, V)` are matrices of the head and its adapter, transposed, or their gradients.
            if isinstance(tensor, Tensor) and tensor.shape[-1:] == (V,) and tensor.shape[0] not in (H, RANK):
                self._count(tensor)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._seen:
            return
        self._seen.add(storage._cdata)
        self.alive += storage.nbytes()
        self.peak = max(self.peak, self.alive)
        self.largest = max(self.largest, storage.nbytes())
        weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.alive -= size


@contextmanager
def counted(policy: nn.Module, hidden: Tensor, ids: Tensor, max_bytes: int) -> Iterator[tuple[LogitBytes, Tensor]]:
    with LogitBytes() as logits:
        log_probs, _ = token_log_probs(policy, hidden, ids, TEMPERATURE, max_bytes=max_bytes)
        yield logits, log_probs


class TestMemory:
    COUNT = 40

    @pytest.mark.parametrize("rows", [1, 3, 10])
    def test_logits_stay_within_the_bound(self, model: nn.Module, rows: int) -> None:
        hidden, ids = tokens(self.COUNT)
        with counted(model, hidden, ids, rows * ROW) as (logits, log_probs):
            assert logits.alive == 0, "nothing is kept for the backward pass"
            log_probs.sum().backward()
        assert logits.largest == rows * ROW if self.COUNT % rows == 0 else logits.largest <= rows * ROW
        assert logits.peak <= 5 * rows * ROW
        assert logits.alive == 0

    def test_what_the_count_says_without_chunks(self) -> None:
        """The counter sees what the tests above forbid."""
        policy, (hidden, ids) = make("plain"), tokens(self.COUNT)
        with counted(policy, hidden, ids, DEFAULT_HEAD_BYTES) as (logits, log_probs):
            assert logits.largest == logits.alive == self.COUNT * ROW, "one exponential is kept"
            log_probs.sum().backward()
        assert logits.peak <= 3 * self.COUNT * ROW and logits.alive == 0

    @torch.no_grad()
    def test_without_a_gradient(self) -> None:
        policy, (hidden, ids) = make("plain"), tokens(self.COUNT)
        with counted(policy, hidden, ids, 2 * ROW) as (logits, _):
            pass
        assert logits.largest == 2 * ROW and logits.peak <= 3 * 2 * ROW and logits.alive == 0

    @pytest.mark.parametrize(("name", "passes"), [("plain", 2), ("lora on head", 2), ("lora elsewhere", 1)])
    def test_only_a_head_that_learns_is_applied_twice(self, name: str, passes: int) -> None:
        policy, (hidden, ids) = make(name), tokens(self.COUNT)
        applied: list[int] = []
        head: Any = module.output_head(policy)
        handle = head.register_forward_pre_hook(lambda _, inputs: applied.append(len(inputs[0])))
        log_probs, _ = token_log_probs(policy, hidden, ids, TEMPERATURE, max_bytes=10 * ROW)
        assert applied == [10] * 4
        log_probs.sum().backward()
        handle.remove()
        assert applied == [10] * 4 * passes


@pytest.mark.parametrize("value", [0, -5])
def test_the_option_is_checked(value: int) -> None:
    with pytest.raises(ValueError, match=f"head_max_bytes must be a finite number of at least 1, got {value}"):
        MISEConfig(output_dir="unused", head_max_bytes=value)
