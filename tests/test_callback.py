"""Calibration between two updates: when it acts, what it moves, what it remembers."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toy_episodes import FakeAccelerator

import trl_mise.callback as callback_module
from trl_mise.calibration import CalibrationExample
from trl_mise.callback import CalibrationCallback, UpdateRecord
from trl_mise.chat import ChatFormat
from trl_mise.hindsight import HindsightReward
from trl_mise.metrics import auroc
from trl_mise.scoring import VerdictLogits
from trl_mise.tiny import build_policy, build_tokenizer
from trl_mise.types import HindsightScores, StopReason, Trajectory, Turn

VERBS, THINGS = ("take", "drop", "open"), ("lamp", "rope", "door", "key")
TOKENIZER = build_tokenizer([*VERBS, *THINGS, "room", "was", "good", "bad"])
CHAT = ChatFormat(TOKENIZER)
ARGS = SimpleNamespace(learning_rate=6e-3, max_grad_norm=1.0)
LOST = [("drop", "rope"), ("open", "key"), ("drop", "lamp", "door"), ("open", "rope")]
WON = [("take", "lamp"), ("take", "key"), ("take", "door", "lamp")]


def episode(words: Sequence[str], reward: float, stop: StopReason = StopReason.TERMINATED) -> Trajectory:
    """`(verb, thing, thing, ...)` becomes one turn per thing; only the last one is paid. Won = reward 1."""
    verb, *things = words
    ids, turns = CHAT.opening("room"), []
    for i, thing in enumerate(things):
        action, start = f"{verb} {thing}", len(ids)
        ids += [*CHAT.encode_text(action), TOKENIZER.eos_token_id]
        end = len(ids)
        ids += CHAT.result("room", closed=True)
        paid = reward if i == len(things) - 1 else 0.0
        turns.append(Turn("room", action, paid, (start, end), result_end=len(ids)))
        ids += CHAT.reply_prompt()
    return Trajectory(tuple(ids), tuple(turns), stop)


LOST_EPISODES = [episode(words, 0.0) for words in LOST]
EPISODES = LOST_EPISODES + [episode(words, 1.0) for words in WON]


def make_policy(seed: int = 0) -> Any:
    return build_policy(TOKENIZER, hidden_size=16, num_heads=2, max_positions=64, seed=seed).eval()


class Asked(HindsightReward):
    """Remembers which model was asked about which episodes."""

    def __init__(self, **kwargs: Any) -> None:
        # The prefix view: the outcome must not be readable, or there is nothing to learn.
        super().__init__(CHAT, **{"prompt": "was {{ action }} good", "view": "prefix", **kwargs})
        self.asked: list[tuple[nn.Module, list[Trajectory]]] = []

    def verdict_logits(
        self, model: nn.Module, trajectories: Sequence[Trajectory], *, requires_grad: bool = False
    ) -> VerdictLogits:
        self.asked.append((model, list(trajectories)))
        return super().verdict_logits(model, trajectories, requires_grad=requires_grad)


class ActionCounter(Asked):
    """A judge that is no language model."""

    def verdict_probs(self, model: nn.Module, trajectories: Sequence[Trajectory]) -> np.ndarray:
        praise = np.array([0.9 if "take" in turn.action else 0.3 for t in trajectories for turn in t.turns])
        return np.stack([praise, 1 - praise], axis=1)


class Run:
    """The side of the trainer that the callback sees: one policy, its reference, and updates one after the other."""

    def __init__(self, callback: CalibrationCallback, hindsight: HindsightReward | None = None) -> None:
        self.callback = callback
        self.hindsight: Any = Asked() if hindsight is None else hindsight
        self.policy: Any = make_policy()
        self.reference_policy: Any = copy.deepcopy(self.policy)
        self.state = SimpleNamespace(global_step=0, is_world_process_zero=True)
        self.args: Any = ARGS
        self.accelerator = FakeAccelerator()
        self.references_entered = 0
        self.agreement = np.zeros(0)

    @contextmanager
    def reference(self) -> Iterator[nn.Module]:
        self.references_entered += 1
        yield self.reference_policy

    def scores(self, episodes: Sequence[Trajectory] = EPISODES) -> HindsightScores:
        return self.hindsight.score(self.policy, episodes)

    def record(self, episodes: Sequence[Trajectory] = EPISODES) -> UpdateRecord:
        scores = self.scores(episodes)
        return UpdateRecord(
            list(episodes),
            scores,
            self.hindsight,
            self.policy,
            self.reference,
            self.accelerator,
            self.state.global_step,
            agreement=self.agreement,
        )

    def update(self, episodes: Sequence[Trajectory] = EPISODES) -> dict[str, float]:
        """One update's end; what PPO itself would do is left out."""
        self.state.global_step += 1
        record = self.record(episodes)
        self.callback.on_step_end(self.args, self.state, None, update=record)
        return record.metrics

    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.policy.parameters()]).clone()

    def episode_scores(self) -> np.ndarray:
        return np.array([scores.mean() for scores in self.scores().split()])


def calibration(**kwargs: Any) -> CalibrationCallback:
    """As large a buffer as there are episodes: the same episodes, update after update, are a fixed buffer."""
    return CalibrationCallback(**{"anchor_coef": 0.0, "buffer_size": len(EPISODES), "batch_size": 8, **kwargs})


class TestWhenItActs:
    @pytest.mark.parametrize("episodes", [LOST_EPISODES, EPISODES[-2:]], ids=["no success yet", "no failure yet"])
    def test_nothing_happens_before_both_outcomes_were_seen(self, episodes: list[Trajectory]) -> None:
        run = Run(calibration(posthoc="affine"))
        before = run.weights()
        metrics = run.update(episodes)
        assert metrics["calibration/skipped"] == 1.0 and metrics["calibration/buffer_size"] == len(episodes)
        assert torch.equal(run.weights(), before)
        assert run.callback.optimizer is None and run.hindsight.calibrator is None

    def test_the_first_success_starts_it_though_the_failures_are_older(self) -> None:
        run = Run(calibration())
        run.update(LOST_EPISODES)
        before = run.weights()
        metrics = run.update(EPISODES[-1:])  # balanced with the failures of the update before
        assert "calibration/skipped" not in metrics and metrics["calibration/loss"] > 0
        assert not torch.equal(run.weights(), before)

    def test_every_second_update(self) -> None:
        run = Run(calibration(every=2))
        moved = []
        for _ in range(4):
            before = run.weights()
            metrics = run.update()
            moved.append(not torch.equal(run.weights(), before))
            assert ("calibration/loss" in metrics) == moved[-1]
        assert moved == [False, True, False, True]

    def test_errors_and_empty_episodes_teach_nothing(self) -> None:
        run = Run(calibration())
        failed = episode(("take", "rope"), 1.0, StopReason.ENV_ERROR)
        empty = Trajectory(failed.token_ids, (), StopReason.ENV_ERROR)
        metrics = run.update([*LOST_EPISODES, failed, empty])
        assert metrics["calibration/skipped"] == 1.0 and metrics["calibration/buffer_size"] == len(LOST_EPISODES)

    def test_without_scores_there_is_nothing_to_calibrate(self) -> None:
        run = Run(calibration(posthoc="affine"))
        record = run.record()
        record.scores = None
        run.callback.on_step_end(ARGS, run.state, None, update=record)
        run.callback.on_step_end(ARGS, run.state, None)
        assert record.metrics == {} and len(run.callback.buffer) == 0

    @pytest.mark.parametrize(
        ("callback", "hindsight"),
        [
            ({"target": "none"}, Asked()),
            ({}, Asked(evaluator="reference")),
            ({}, ActionCounter()),
        ],
        ids=["target none", "frozen judge", "judge without a model"],
    )
    def test_the_weights_stay_and_only_the_map_is_fitted(
        self, callback: dict[str, Any], hindsight: HindsightReward
    ) -> None:
        run = Run(calibration(posthoc="affine", **callback), hindsight)
        before = run.weights()
        metrics = run.update()
        assert torch.equal(run.weights(), before) and run.callback.optimizer is None
        assert not any(name.startswith("calibration/") for name in metrics)
        assert "hindsight/auroc" in metrics
        assert run.hindsight.calibrator is run.callback.calibrator


class TestRegression:
    @pytest.mark.parametrize("target", ["sum", "step"])
    def test_the_loss_falls_and_verdicts_come_to_tell_success_from_failure(self, target: Any) -> None:
        run = Run(calibration(target=target))
        won = np.array([t.success for t in EPISODES])
        before = auroc(run.episode_scores(), won)
        losses = [run.update()["calibration/loss"] for _ in range(25)]
        assert before < 0.9, "an evaluator that knew already would show nothing"
        assert losses[-1] < 0.6 * losses[0]
        assert auroc(run.episode_scores(), won) == 1.0

    def test_flipped_returns_teach_the_opposite(self) -> None:
        """The negative control: what is learned comes from the returns, and from nothing else."""
        run = Run(calibration())
        flipped = [episode(w, 1.0) for w in LOST] + [episode(w, 0.0) for w in WON]
        for _ in range(25):
            run.update(flipped)
        assert auroc(run.episode_scores(), np.array([t.success for t in EPISODES])) == 0.0

    def test_the_bias_is_learned(self) -> None:
        run = Run(calibration())
        assert run.update()["calibration/bias"] != 0.0
        assert run.callback.bias is not None

    def test_the_learning_rate_is_a_third_of_the_trainers_or_what_was_asked_for(self) -> None:
        default, asked = Run(calibration()), Run(calibration(learning_rate=5e-4))
        default.update()
        asked.update()
        for run, expected in ((default, 2e-3), (asked, 5e-4)):
            assert run.callback.optimizer is not None
            assert run.callback.optimizer.param_groups[0]["lr"] == pytest.approx(expected)

    def test_the_norm_of_the_gradient_is_bounded_like_the_trainers(self) -> None:
        """Adam's first moment after one step is a tenth of the gradient that it was given."""
        run = Run(calibration())
        run.args = SimpleNamespace(learning_rate=6e-3, max_grad_norm=1e-2)
        run.update()
        assert run.callback.optimizer is not None
        moments = [state["exp_avg"] for state in run.callback.optimizer.state.values()]
        assert float(torch.cat([m.flatten() for m in moments]).norm()) == pytest.approx(1e-3, rel=1e-2)

    def test_returns_outside_the_unit_interval_are_mapped_into_it(self) -> None:
        run = Run(calibration(posthoc="affine"))
        metrics = run.update([episode(("drop", "rope"), -3.0), episode(("take", "lamp"), 5.0)])
        assert np.isfinite(metrics["calibration/loss"])
        assert run.callback._unit_returns(list(run.callback.buffer.examples)) == [0.0, 1.0]

    def test_nothing_of_the_update_itself_is_touched(self) -> None:
        run = Run(calibration(posthoc="affine"))
        record = run.record()
        assert record.scores is not None
        scores, statistics = record.scores.scores.copy(), run.hindsight.state_dict()
        run.callback.on_step_end(ARGS, SimpleNamespace(global_step=1), None, update=record)
        assert all(p.grad is None or not p.grad.any() for p in run.policy.parameters())
        assert np.array_equal(record.scores.scores, scores)
        assert run.hindsight.state_dict() == statistics

    @pytest.mark.parametrize("target", ["sum", "step"])
    def test_splitting_by_tokens_changes_nothing_but_the_memory(self, target: Any) -> None:
        """Also with the anchor, whose mean is over steps while the other is over episodes."""
        runs = [Run(calibration(target=target, anchor_coef=1.0, max_tokens=n)) for n in (None, 40, 1)]
        for run in runs:
            # Otherwise the anchor, at its minimum, would have no gradient.
            run.reference_policy = make_policy(5)
        metrics = [run.update() for run in runs]
        num_forwards = [sum(model is run.policy for model, _ in run.hindsight.asked) - 1 for run in runs]
        assert num_forwards[0] == 1 < num_forwards[1] < num_forwards[2] == 8
        gradients = [self.first_moments(run) for run in runs]
        for other, gradient in zip(metrics[1:], gradients[1:], strict=True):
            for name in ("calibration/loss", "calibration/anchor"):
                assert other[name] == pytest.approx(metrics[0][name], rel=1e-5)
            torch.testing.assert_close(gradient, gradients[0], rtol=1e-4, atol=1e-6)

    @staticmethod
    def first_moments(run: Run) -> Tensor:
        assert run.callback.optimizer is not None
        return torch.cat([state["exp_avg"].flatten() for state in run.callback.optimizer.state.values()])

    def test_only_the_adapter_moves(self) -> None:
        peft = pytest.importorskip("peft")
        run = Run(calibration(anchor_coef=1.0))
        config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "up_proj"], lora_dropout=0.0)
        run.policy = peft.get_peft_model(run.policy, config).eval()

        @contextmanager
        def without_adapter() -> Iterator[nn.Module]:
            with run.policy.disable_adapter():
                yield run.policy

        record = run.record()
        record.reference = without_adapter
        before = {name: p.detach().clone() for name, p in run.policy.named_parameters()}
        for step in (1, 2):
            run.callback.on_step_end(ARGS, SimpleNamespace(global_step=step), None, update=record)
        moved = {name for name, p in run.policy.named_parameters() if not torch.equal(p, before[name])}
        assert moved == {name for name in before if "lora_" in name}


class TestAnchor:
    def test_the_reference_is_asked_once_per_episode(self) -> None:
        run = Run(calibration(anchor_coef=1.0, buffer_size=64, batch_size=20))
        run.update()
        for _ in range(3):
            run.update([])
        assert run.references_entered == 1
        run.update([episode(("take", "rope"), 1.0), episode(("drop", "door"), 0.0)])
        by_reference = [t for model, asked in run.hindsight.asked if model is run.reference_policy for t in asked]
        assert run.references_entered == 2
        assert len(by_reference) == len(EPISODES) + 2
        assert all(example.reference_scores is not None for example in run.callback.buffer.examples)

    def test_without_an_anchor_the_reference_is_left_alone(self) -> None:
        run = Run(calibration(anchor_coef=0.0))
        assert "calibration/anchor" not in run.update()
        assert run.references_entered == 0

    def test_the_remembered_scores_are_the_references(self) -> None:
        run = Run(calibration(anchor_coef=1.0, batch_size=20))
        run.reference_policy = make_policy(5)
        expected = run.hindsight.score(run.reference_policy, EPISODES).split()
        run.update()
        for example, scores in zip(run.callback.buffer.examples, expected, strict=True):
            assert example.reference_scores == pytest.approx(scores, abs=1e-6)

    def test_a_large_coefficient_keeps_the_verdicts_near_the_reference(self) -> None:
        drift = {}
        for coefficient in (0.0, 100.0):
            run = Run(calibration(anchor_coef=coefficient))
            start = run.scores().scores
            for _ in range(25):
                run.update()
            drift[coefficient] = float(np.abs(run.scores().scores - start).max())
        assert drift[100.0] < 0.1 < 0.4 < drift[0.0]


class TestPostHocMap:
    @pytest.mark.parametrize("posthoc", ["affine", "platt", "isotonic"])
    def test_is_refitted_and_handed_to_the_reward(self, posthoc: str) -> None:
        if posthoc == "isotonic":
            pytest.importorskip("sklearn")
        run = Run(calibration(target="none", posthoc=posthoc, buffer_size=64), ActionCounter())
        run.update(LOST_EPISODES)
        assert run.hindsight.calibrator is None
        run.update(EPISODES)
        low, high = run.hindsight.calibrate(np.array([0.3, 0.9]))
        assert low < 0.3 and high > 0.9, "a judge that is right, but not sure enough, is made surer"

    def test_the_affine_map_on_balanced_episodes_is_exact(self) -> None:
        """The judge says .9 of every won step and .3 of every lost one: g(.9) = 1 and g(.3) = 0."""
        run = Run(calibration(target="none", posthoc="affine"), ActionCounter())
        run.update()
        assert run.hindsight.calibrate(np.array([0.3, 0.9])) == pytest.approx([0.0, 1.0], abs=1e-9)

    def test_identity_leaves_the_reward_as_it_is(self) -> None:
        run = Run(calibration(target="none"))
        run.update()
        assert run.hindsight.calibrator is None

    @pytest.mark.parametrize("episodes", [LOST_EPISODES[:1], []], ids=["one episode", "none"])
    def test_a_buffer_too_small_to_balance_is_no_error(self, episodes: list[Trajectory]) -> None:
        run = Run(calibration(target="none", posthoc="affine"), ActionCounter())
        run.update(episodes)
        assert run.hindsight.calibrator is None


class TestProcesses:
    def test_every_process_has_every_episode(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The success was played elsewhere. Were it unknown here, the other process would wait for us forever."""
        elsewhere = Run(calibration())
        elsewhere.update(EPISODES[-1:])
        theirs = list(elsewhere.callback.buffer.examples)

        def gather(mine: list[Any]) -> list[Any]:
            return [*mine, *(theirs if isinstance(mine[0], CalibrationExample) else [-5.0])]

        monkeypatch.setattr(callback_module, "gather_object", gather)
        run = Run(calibration())
        run.accelerator.num_processes = 2
        run.agreement = np.array([0.1, 0.2])
        reduced: list[str] = []

        def reduce(tensor: Tensor, reduction: str = "sum") -> Tensor:
            reduced.append(reduction)
            return tensor

        monkeypatch.setattr(run.accelerator, "reduce", reduce)
        metrics = run.update(LOST_EPISODES)
        assert metrics["calibration/buffer_size"] == len(LOST_EPISODES) + 1
        assert "calibration/loss" in metrics
        assert metrics["hindsight/agreement_z"] < 0, "what was found elsewhere moves the gate here too"
        # One for every weight, whether it got a gradient here or not, and one for c.
        assert reduced == ["mean"] * (len(list(run.policy.parameters())) + 1)


class TestState:
    def test_a_restored_callback_takes_the_very_same_next_step(self, tmp_path: Path) -> None:
        settings: dict[str, Any] = {"anchor_coef": 0.5, "posthoc": "platt", "buffer_size": 64, "batch_size": 4}
        run = Run(calibration(**settings))
        for _ in range(3):
            run.update()
        run.callback.save_state(str(tmp_path / "checkpoint-3"))
        restored = Run(calibration(**settings, seed=99))
        restored.policy = copy.deepcopy(run.policy)
        restored.callback.load_state(str(tmp_path / "checkpoint-3"))
        restored.state.global_step = run.state.global_step
        entered = run.references_entered
        new = [episode(("take", "rope"), 1.0), episode(("drop", "door"), 0.0)]
        for episodes in (new, []):
            assert restored.update(episodes) == run.update(episodes)
            assert torch.equal(restored.weights(), run.weights())
        assert restored.callback.bias is not None and run.callback.bias is not None
        assert torch.equal(restored.callback.bias, run.callback.bias)
        assert restored.references_entered == run.references_entered - entered, "verdicts known before are known now"
        assert restored.callback.calibrator.state_dict() == run.callback.calibrator.state_dict()

    def test_without_the_optimizer_it_would_be_another_step(self, tmp_path: Path) -> None:
        """The negative control of the round trip."""
        run = Run(calibration())
        run.update()
        run.update()
        run.callback.save_state(str(tmp_path))
        (tmp_path / "calibration_optimizer.pt").unlink()
        restored = Run(calibration())
        restored.policy = copy.deepcopy(run.policy)
        restored.callback.load_state(str(tmp_path))
        run.update()
        restored.update()
        assert not torch.equal(restored.weights(), run.weights())

    def test_a_callback_that_never_acted_can_be_saved_and_restored(self, tmp_path: Path) -> None:
        run = Run(calibration())
        run.update(LOST_EPISODES)
        run.callback.save_state(str(tmp_path))
        assert [path.name for path in tmp_path.iterdir()] == ["calibration.json"]
        restored = calibration()
        restored.load_state(str(tmp_path))
        assert len(restored.buffer) == len(LOST_EPISODES) and restored.bias is None

    def test_another_map_is_refused(self, tmp_path: Path) -> None:
        calibration(posthoc="platt").save_state(str(tmp_path))
        with pytest.raises(ValueError, match="'platt', this callback has 'affine'"):
            calibration(posthoc="affine").load_state(str(tmp_path))

    def test_a_folder_without_state_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"calibration\.json"):
            calibration().load_state(str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "mean"}, "target='mean' is unknown"),
        ({"every": 0}, "every=0 must be at least 1"),
        ({"batch_size": 1}, "batch_size=1 must be at least 2"),
        ({"anchor_coef": -0.5}, "anchor_coef=-0.5 must be at least 0"),
        ({"anchor_coef": float("nan")}, "anchor_coef=nan must be at least 0"),
        ({"posthoc": "spline"}, "posthoc_calibrator='spline' is unknown"),
        ({"buffer_size": 1}, "capacity must be at least 2"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CalibrationCallback(**arguments)
