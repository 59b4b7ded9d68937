"""generation_backend="vllm": TRL's client and weight sync against a local stand-in; drift and its correction."""

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from trainer_fakes import LetterEnv, largest_difference, make_config, make_policy, make_tokenizer, tasks, weights
from vllm_server import VLLMServer, serve

from trl_mise import MISETrainer
from trl_mise.advantages import action_layout
from trl_mise.drift import sampling_drift
from trl_mise.ppo import TRL_HAS_PPO
from trl_mise.rollout import SampledIds
from trl_mise.serialization import trajectory_from_dict, trajectory_to_dict
from trl_mise.types import StopReason, Trajectory, Turn

TOKENIZER = make_tokenizer()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[VLLMServer]:
    yield from serve(monkeypatch, make_policy(TOKENIZER, seed=99))


@pytest.fixture
def rounding_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[VLLMServer]:
    yield from serve(monkeypatch, make_policy(TOKENIZER, seed=99), rounding=torch.bfloat16)


def make_trainer(tmp_path: Path, url: str, **options: Any) -> MISETrainer:
    kwargs = {name: options.pop(name) for name in ("peft_config",) if name in options}
    return MISETrainer(
        args=make_config(tmp_path, generation_backend="vllm", vllm_server_base_url=url, **options),
        processing_class=TOKENIZER,
        model=make_policy(TOKENIZER),
        train_dataset=tasks(),
        environment_factory=LetterEnv,
        **kwargs,
    )


def logged(trainer: MISETrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def test_the_server_samples_with_the_present_weights(tmp_path: Path, server: VLLMServer) -> None:
    trainer = make_trainer(tmp_path, server.url)
    seen = []
    before = server.complete

    def complete(body: dict[str, Any]) -> Any:
        seen.append(largest_difference(weights(server.model), weights(trainer.policy)))
        return before(body)

    server.complete = complete
    trainer.train()
    assert server.updates == 2 and seen and max(seen) == 0.0  # before every rollout, and never in one
    assert largest_difference(weights(make_policy(TOKENIZER)), weights(trainer.policy)) > 1e-3
    assert server.announced == server.received  # (name, dtype, shape), as the real server is told
    assert server.paths.count("/reset_prefix_cache") == 2
    # The same arithmetic: nothing to correct.
    assert max(logged(trainer, "sampling/sampling_logp_difference/max")) < 1e-5
    assert logged(trainer, "sampling/importance_sampling_ratio/mean") == pytest.approx([1.0, 1.0], abs=1e-5)
    assert len((tmp_path / "trajectories.jsonl").read_text().splitlines()) == 16


def test_what_the_server_is_asked(tmp_path: Path, server: VLLMServer) -> None:
    trainer = make_trainer(tmp_path, server.url, temperature=0.5)
    trainer.train()
    asked = server.requests[0]
    assert asked["max_tokens"] == 3 and asked["temperature"] == pytest.approx(0.5, abs=1e-5)
    assert asked["stop_token_ids"] == list(trainer.chat.stop_token_ids) and asked["ignore_eos"] is True
    neutral = {"top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "n": 1}
    assert {name: asked[name] for name in neutral} == neutral
    assert asked["top_k"] in (0, -1)  # vLLM's ways to say none


def test_evaluation_is_greedy_there_too(tmp_path: Path, server: VLLMServer) -> None:
    make_trainer(tmp_path, server.url).evaluate(tasks(4))
    assert {request["temperature"] for request in server.requests} == {0.0} and server.updates == 1


def test_a_process_without_a_task_takes_part_in_the_transfer(tmp_path: Path, server: VLLMServer) -> None:
    """Of two processes one may have nothing to evaluate: the other would wait for it."""
    trainer = make_trainer(tmp_path, server.url)
    assert trainer.collect([], greedy=True) == [] and server.updates == 1 and server.requests == []


def test_another_arithmetic_is_measured_and_corrected(tmp_path: Path, rounding_server: VLLMServer) -> None:
    url = rounding_server.url
    corrected = make_trainer(tmp_path / "corrected", url)
    corrected.train()
    (first, _) = logged(corrected, "sampling/sampling_logp_difference/mean")
    assert 1e-4 < first < 1e-1
    rounding_server.generator.manual_seed(0)
    as_it_is = make_trainer(tmp_path / "as_it_is", url, vllm_importance_sampling_correction=False)
    as_it_is.train()
    assert logged(as_it_is, "sampling/sampling_logp_difference/mean")[0] == pytest.approx(first)
    assert largest_difference(weights(corrected.policy), weights(as_it_is.policy)) > 1e-6


def test_an_adapter_is_merged_for_the_server(tmp_path: Path, server: VLLMServer) -> None:
    trainer = make_trainer(tmp_path, server.url, peft_config=LoraConfig(target_modules=["q_proj", "v_proj"], r=2))
    trainer.train()
    trainer.evaluate(tasks(1))  # one more rollout, with the last weights
    ids = torch.tensor([TOKENIZER("say 1")["input_ids"]])
    with torch.no_grad():
        assert torch.allclose(server.model(ids).logits, trainer.policy(ids).logits, atol=1e-5)
        assert not torch.allclose(server.model(ids).logits, make_policy(TOKENIZER)(ids).logits, atol=1e-3)
    assert max(logged(trainer, "sampling/sampling_logp_difference/max")) < 1e-4


class TestErrors:
    def test_no_vllm(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        utils = importlib.import_module("trl.import_utils")
        monkeypatch.setattr(utils, "is_vllm_available", lambda *args, **kwargs: False)
        with pytest.raises(ImportError, match=r"generation_backend='vllm' needs vLLM .*pip install"):
            make_trainer(tmp_path, "http://127.0.0.1:9")

    def test_no_server(self, tmp_path: Path, server: VLLMServer) -> None:
        with pytest.raises(ConnectionError, match=r"no vLLM server answers at http://127.0.0.1:9 .*trl vllm-serve"):
            make_trainer(tmp_path, "http://127.0.0.1:9", vllm_server_timeout=0.0)

    @pytest.mark.skipif(TRL_HAS_PPO, reason="TRL's client of before 1.13 does not ask")
    def test_log_probs_of_something_else(
        self, tmp_path: Path, server: VLLMServer, recwarn: pytest.WarningsRecorder
    ) -> None:
        make_trainer(tmp_path, server.url)
        assert not any("logprobs-mode" in str(warning.message) for warning in recwarn)
        server.logprobs_mode = "raw_logprobs"
        with pytest.warns(UserWarning, match=r"--logprobs-mode raw_logprobs.*Restart it with"):
            make_trainer(tmp_path, server.url)

    def test_too_few_answers(self, tmp_path: Path, server: VLLMServer) -> None:
        server.answer_fewer = True
        with pytest.raises(RuntimeError, match=r"answered 7 of 8 contexts"):
            make_trainer(tmp_path, server.url).train()

    def test_a_server_that_fails(self, tmp_path: Path, server: VLLMServer) -> None:
        server.fail = True
        with pytest.raises(Exception, match="out of memory"):
            make_trainer(tmp_path, server.url).train()

    @pytest.mark.parametrize("cap", [0.5, float("nan"), float("inf")])
    def test_a_cap_below_one(self, tmp_path: Path, cap: float) -> None:
        with pytest.raises(ValueError, match="vllm_importance_sampling_cap must be a finite number of at least 1"):
            make_config(tmp_path, vllm_importance_sampling_cap=cap)


# The correction


def episode(*log_probs: tuple[float, ...]) -> Trajectory:
    """Turns of two tokens each; `()` for a turn of which nothing is known."""
    turns = tuple(
        Turn("o", "a", 0.0, (1 + 3 * i, 3 + 3 * i), 3 + 3 * i, sampling_log_probs=known)
        for i, known in enumerate(log_probs)
    )
    return Trajectory(tuple(range(3 * len(turns) + 1)), turns, StopReason.TERMINATED)


def test_weights_and_metrics_by_hand() -> None:
    episodes = [episode((-1.0, -2.0), (-1.0, -1.0)), episode((-0.5, -3.0))]
    layout = action_layout(episodes)
    log_probs = torch.tensor([[-1.0, -1.5, -3.0, -1.0], [-0.5, -1.0, 0.0, 0.0]])
    drift = sampling_drift(episodes, layout, log_probs, cap=2.0)
    expected = torch.tensor([[1.0, math.exp(0.5), math.exp(-2.0), 1.0], [1.0, 2.0, 1.0, 1.0]])
    assert torch.allclose(drift.weights, expected)
    assert drift.metrics == pytest.approx(
        {
            "sampling/sampling_logp_difference/mean": (0.5 + 2.0 + 2.0) / 6,
            "sampling/sampling_logp_difference/max": 2.0,
            "sampling/importance_sampling_ratio/min": math.exp(-2.0),
            "sampling/importance_sampling_ratio/mean": (3 + math.exp(0.5) + math.exp(-2.0) + 2.0) / 6,
            "sampling/importance_sampling_ratio/max": 2.0,
        }
    )


def test_what_is_not_known_is_not_corrected() -> None:
    episodes = [episode((), (-1.0, float("nan")))]
    drift = sampling_drift(episodes, action_layout(episodes), torch.tensor([[-9.0, -9.0, -2.0, -9.0]]), cap=3.0)
    assert torch.allclose(drift.weights, torch.tensor([[1.0, 1.0, math.exp(-1.0), 1.0]]))
    assert drift.metrics["sampling/sampling_logp_difference/max"] == 1.0
    silent = [episode((), ())]
    drift = sampling_drift(silent, action_layout(silent), torch.zeros(1, 4), cap=3.0)
    assert drift.weights.tolist() == [[1.0] * 4] and drift.metrics == {}


def test_the_correction_makes_the_estimate_unbiased() -> None:
    """E_mu[w A] = E_pi[A] while no weight is cut; cut, it is smaller for A > 0."""
    generator = torch.Generator().manual_seed(0)
    policy, engine = (torch.rand(8, generator=generator).softmax(0) for _ in range(2))
    advantages = torch.rand(8, generator=generator)

    def estimate(cap: float) -> float:
        episodes = [episode((float(engine[i].log()), float(engine[i].log()))) for i in range(8)]
        log_probs = policy.log()[:, None].expand(8, 2)
        weights = sampling_drift(episodes, action_layout(episodes), log_probs, cap).weights[:, 0]
        return float((engine * weights * advantages).sum())

    assert estimate(100.0) == pytest.approx(float((policy * advantages).sum()), rel=1e-5)
    assert estimate(1.0) < estimate(100.0)


def test_sampled_ids_are_a_list_with_log_probs() -> None:
    assert SampledIds([1, 2], [-1, -2]) == [1, 2] and SampledIds([1], [-1]).log_probs == (-1.0,)
    with pytest.raises(ValueError, match="1 log_probs for 2 sampled ids"):
        SampledIds([1, 2], [-1.0])


def test_log_probs_survive_serialisation() -> None:
    trajectory = episode((-1.0, -2.5), ())
    assert trajectory_from_dict(trajectory_to_dict(trajectory)) == trajectory
