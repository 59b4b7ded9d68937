"""Verdicts that are written out: what is read of them, what they are worth, and that training on them works."""

import copy
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from trainer_fakes import CoinEnv, LetterEnv, largest_difference, make_policy, make_tokenizer, make_trainer, weights

from trl_mise import MISEConfig
from trl_mise.callback import HealthCallback
from trl_mise.chat import ChatFormat
from trl_mise.generation import Sampling
from trl_mise.hindsight import EvaluatorFailure, HindsightReward
from trl_mise.metrics import hindsight_metrics
from trl_mise.rollout import RolloutLimits, collect_rollouts
from trl_mise.types import HindsightScores, Trajectory
from trl_mise.writing import write_verdicts, written_log_probs, written_loss
from trl_mise.written import WrittenVerdict

TOKENIZER = make_tokenizer()
CHAT = ChatFormat(TOKENIZER)
LIMITS = RolloutLimits(max_turns=3, max_new_tokens=2, max_episode_tokens=100)


def ids(text: str, *, closed: bool = True) -> list[int]:
    return [*CHAT.encode_text(text), *(CHAT.stop_token_ids[:1] if closed else ())]


def episodes(number: int = 4) -> list[Trajectory]:
    """Every second one says letters and wins."""
    script = iter([ids("a" if episode % 2 else "0") for _ in range(3) for episode in range(number)])
    rows = [{"seed": seed} for seed in range(number)]
    envs = [LetterEnv() for _ in rows]
    return collect_rollouts(rows, envs, lambda contexts: [next(script) for _ in contexts], CHAT, LIMITS)


class Scribe(HindsightReward):
    """Writes what it is told, in turns, instead of what a model says."""

    texts = ("more : good", "more : bad", "say done")

    def write(self, model: nn.Module, trajectories: Any) -> list[WrittenVerdict]:
        written = []
        for number, context in enumerate(self.contexts(trajectories)):
            text = self.texts[number % len(self.texts)]
            verdict = {"good": 0, "bad": 1}.get(text.split()[-1])
            log_probs = (-1.0,) * len(ids(text))
            written.append(WrittenVerdict((*context, *ids(text)), len(context), text, verdict, log_probs))
        return written


def scribe(**kwargs: Any) -> Scribe:
    return Scribe(CHAT, **{"prompt": "judge {{ action }}", "verdict_mode": "generate", **kwargs})


class TestWriting:
    def test_what_is_sampled_is_kept_and_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        said = [ids("more : good"), ids("more : bad"), ids("more : good", closed=False), ids("good")]
        monkeypatch.setattr("trl_mise.writing.sample", lambda model, contexts, sampling: said)
        model = make_policy(TOKENIZER)
        contexts = [ids(f"judge {letter}") for letter in "abcd"]
        written = write_verdicts(model, contexts, ("good", "bad"), CHAT, Sampling(1.0, 8, CHAT.stop_token_ids))
        assert [w.verdict for w in written] == [0, 1, None, None]  # cut off; no colon
        assert [w.text for w in written] == ["more : good", "more : bad", "more : good", "good"]
        for w, context, own in zip(written, contexts, said, strict=True):
            assert w.token_ids == (*context, *own) and w.start == len(context) and len(w.log_probs) == len(own)

    def test_log_probs_are_those_of_a_plain_forward(self) -> None:
        model = make_policy(TOKENIZER).double()
        written = [
            WrittenVerdict(tuple(ids("judge a") + ids("more : good")), 3, "", 0),
            WrittenVerdict(tuple(ids("judge step 1 b") + ids("bad")), 5, "", None),
        ]
        for temperature in (1.0, 0.5):
            for max_tokens in (None, 9):  # together, and one by one
                found = written_log_probs(model, written, temperature, max_tokens=max_tokens)
                for w, values in zip(written, found, strict=True):
                    tokens = torch.tensor([w.token_ids])
                    logits = model(tokens).logits[0].double() / temperature
                    plain = logits.log_softmax(-1)[:-1].gather(1, tokens[0, 1:, None])[w.start - 1 :, 0]
                    torch.testing.assert_close(values, plain.detach(), atol=1e-6, rtol=0)

    def test_the_evaluator_sees_what_the_view_shows(self) -> None:
        trajectory = episodes(1)[0]
        prefix, full = (scribe(view=view).contexts([trajectory]) for view in ("prefix", "full"))
        for step, turn in enumerate(trajectory.turns):
            assert prefix[step][: turn.result_end] == list(trajectory.token_ids[: turn.result_end])
            assert full[step][: len(trajectory.token_ids)] == list(trajectory.token_ids)
            assert len(prefix[step]) <= len(full[step])


class TestScores:
    def test_what_cannot_be_read_is_left_out(self) -> None:
        hindsight = scribe()
        played = episodes(3)
        scores = hindsight.score(nn.Identity(), played)
        np.testing.assert_array_equal(scores.scores, [1.0, 0.0, np.nan] * 3)
        assert scores.readable.tolist() == [True, True, False] * 3
        normalised = hindsight.normalise(scores)
        # The mean and the spread are those of the verdicts that there are: +1 and -1; neither praise nor blame else.
        np.testing.assert_allclose(normalised, [1.0, -1.0, 0.0] * 3)
        assert hindsight.mu == 0.5

    def test_metrics(self) -> None:
        played = episodes(4)
        hindsight = scribe()
        metrics = hindsight_metrics(hindsight.score(nn.Identity(), played), played, hindsight.utilities)
        assert metrics["hindsight/unreadable_rate"] == pytest.approx(1 / 3)
        assert metrics["hindsight/score_mean"] == 0.5 and np.isfinite(list(metrics.values())).all()
        assert "hindsight/by_step/2" not in metrics  # never readable

    def test_nothing_readable_at_all_is_a_failure_that_shows_the_text(self) -> None:
        hindsight = scribe()
        hindsight.texts = ("say done",)
        with pytest.raises(EvaluatorFailure, match=r"none of 3 written evaluations .*'say done'.*hindsight_prompt"):
            hindsight.score(nn.Identity(), episodes(1))


def loss_of(policy: nn.Module, written: list[WrittenVerdict], advantages: Any, **kwargs: Any) -> Any:
    options = {"temperature": 1.0, "cliprange": 0.2, "kl_coef": 0.0, **kwargs}
    reference = nullcontext(kwargs.pop("ref", policy))
    options.pop("ref", None)
    return written_loss(policy, reference, written, np.array(advantages), **options)


def written_now(policy: nn.Module, texts: list[str]) -> list[WrittenVerdict]:
    """Evaluations whose log-probabilities are those of the present weights."""
    bare = [WrittenVerdict((*ids("judge a"), *ids(text)), 3, text, None) for text in texts]
    with torch.no_grad():
        log_probs = written_log_probs(policy, bare, 1.0)
    return [
        WrittenVerdict(w.token_ids, w.start, w.text, None, tuple(values.tolist()))
        for w, values in zip(bare, log_probs, strict=True)
    ]


class TestLoss:
    def test_golden(self) -> None:
        """Ratio 1 everywhere: the surrogate is minus the advantage, averaged over tokens."""
        policy = make_policy(TOKENIZER)
        loss, parts = loss_of(policy, written_now(policy, ["more : good", "bad"]), [2.0, -1.0])
        assert float(loss.detach()) == pytest.approx(-(2.0 * 4 - 1.0 * 2) / 6, abs=1e-5)
        assert parts["kl"] == pytest.approx(0.0, abs=1e-6)

    def test_what_was_rewarded_becomes_more_likely(self) -> None:
        policy = make_policy(TOKENIZER)
        written = written_now(policy, ["more : good", "more : bad"])
        optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
        before = [sum(w.log_probs) for w in written]
        loss_of(policy, written, [1.0, -1.0])[0].backward()
        optimizer.step()
        after = [float(values.sum()) for values in written_log_probs(policy, written, 1.0)]
        assert after[0] - before[0] > after[1] - before[1]

    def test_ratios_are_clipped(self) -> None:
        policy = make_policy(TOKENIZER)
        written = written_now(policy, ["more : good"])
        far = [WrittenVerdict(w.token_ids, w.start, w.text, None, tuple(p - 1 for p in w.log_probs)) for w in written]
        loss, _ = loss_of(policy, far, [1.0])  # already e times as likely: no reason to go on
        loss.backward()
        assert float(loss.detach()) == pytest.approx(-1.2, abs=1e-5)
        assert all(p.grad is None or p.grad.abs().max() < 1e-8 for p in policy.parameters())

    def test_the_reference_holds(self) -> None:
        policy = make_policy(TOKENIZER)
        other = make_policy(TOKENIZER, seed=5)
        loss, parts = loss_of(policy, written_now(policy, ["more : good"]), [0.0], kl_coef=0.5, ref=other)
        assert parts["kl"] > 0 and float(loss.detach()) == pytest.approx(0.5 * parts["kl"], rel=1e-4)


class TestTraining:
    def trainer(self, tmp_path: Path, **overrides: Any) -> Any:
        options = {"verdict_mode": "generate", "hindsight_reason_tokens": 6, "calibration_batch_size": 4, **overrides}
        return make_trainer(tmp_path, environment_factory=CoinEnv, **options)

    def test_a_judge_that_writes_trains(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        texts = Scribe.texts
        calls = iter(range(10**6))

        def say(model: Any, contexts: Any, sampling: Any) -> list[list[int]]:
            return [ids(texts[next(calls) % len(texts)]) for _ in contexts]

        monkeypatch.setattr("trl_mise.writing.sample", say)
        trainer = self.trainer(tmp_path)
        trainer.train()
        logged = [entry for entry in trainer.state.log_history if "hindsight/unreadable_rate" in entry]
        monitor = next(cb.monitor for cb in trainer.callback_handler.callbacks if isinstance(cb, HealthCallback))
        assert len(monitor._outcomes) == 16 and all(np.isfinite(score) for score, _ in monitor._outcomes)
        assert len(logged) == 2
        assert all(entry["hindsight/unreadable_rate"] == pytest.approx(1 / 3, abs=0.05) for entry in logged)
        assert any("calibration/loss" in entry and np.isfinite(entry["calibration/loss"]) for entry in logged)
        lines = [json.loads(line) for line in (tmp_path / "trajectories.jsonl").read_text().splitlines()]
        turns = [turn for line in lines for turn in line["turns"]]
        assert {turn["evaluation"] for turn in turns} == set(texts)
        assert all(("score" in turn) == (turn["evaluation"] != "say done") for turn in turns)

    def test_calibration_moves_the_policy_even_at_lr_zero(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def say(model: Any, contexts: Any, sampling: Any) -> list[list[int]]:
            return [ids("more : good" if i % 2 else "more : bad") for i in range(len(contexts))]

        monkeypatch.setattr("trl_mise.writing.sample", say)
        moved = {}
        for target in ("sum", "step", "none"):
            trainer = self.trainer(
                tmp_path / target, learning_rate=0.0, calibration_learning_rate=1e-3, calibration_target=target
            )
            before = copy.deepcopy(weights(trainer.policy))
            trainer.train()
            moved[target] = largest_difference(before, weights(trainer.policy))
        assert moved["sum"] > 1e-4 and moved["step"] > 1e-4 and moved["none"] == 0.0

    def test_options_that_do_not_go_together(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="posthoc_calibrator='platt' maps expected verdicts"):
            MISEConfig(output_dir=str(tmp_path), verdict_mode="generate", posthoc_calibrator="platt")
        with pytest.raises(ValueError, match="hindsight_reason_tokens must be a finite number of at least 1"):
            MISEConfig(output_dir=str(tmp_path), hindsight_reason_tokens=0)


def test_scores_without_anything_written_are_all_readable() -> None:
    scores = HindsightScores(np.array([0.5]), np.array([[0.5, 0.5]]), (1,))
    assert scores.readable.all() and scores.written == ()
