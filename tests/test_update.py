"""One PPO update on hand-made episodes: what is evaluated, what moves, and in how many steps."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toy_episodes import FakeAccelerator, in_lockstep, tiny_config, tiny_llama, toy_episode
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from trl_mise.actor_critic import ActorCritic, TokenOutputs, ValueHead
from trl_mise.advantages import ActionLayout, Reduce, action_layout
from trl_mise.losses import PPOCoefficients
from trl_mise.micro_batches import MicroBatch, make_micro_batches
from trl_mise.token_batch import TokenBatch, pad_rows
from trl_mise.types import Trajectory
from trl_mise.update import (
    Evaluation,
    StepHooks,
    UpdateSchedule,
    UpdateTargets,
    evaluate_rollout,
    ppo_update,
    split_mini_batches,
)

LENGTHS = ([2, 1], [3], [1, 1, 2], [2], [1, 3], [4], [2, 2], [1])
EPISODES = [toy_episode(turns, seed=i) for i, turns in enumerate(LENGTHS)]
VALUE_MODELS = ("head", "model")


def actor_critic(
    value: str = "head", *, dtype: torch.dtype = torch.float32, backbone_grad: bool = False, seed: int = 0
) -> ActorCritic:
    """Random policy and values; the head is taken away from its zero start."""
    policy = tiny_llama(seed, dtype)
    if value == "head":
        critic: nn.Module = ValueHead(16, seed=seed)
        torch.nn.init.normal_(critic.get_parameter("score.2.weight"))
    else:
        critic = LlamaForSequenceClassification(tiny_config(num_labels=1))
    return ActorCritic(policy, critic.to(dtype), value_backbone_grad=backbone_grad)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


class Recorder(StepHooks):
    """Keeps the gradients that each optimizer step is about to take."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.before: list[Tensor] = []
        self.cleared: list[bool] = []

    def before_optimizer_step(self) -> None:
        self.before.append(torch.cat([_gradient(p).flatten() for p in self.model.parameters()]))

    def after_optimizer_step(self) -> None:
        self.cleared.append(all(p.grad is None or not p.grad.any() for p in self.model.parameters()))


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()


class Update:
    """An update with every piece in view; the defaults are those of a plain PPO step with SGD."""

    def __init__(
        self,
        model: ActorCritic,
        episodes: Sequence[Trajectory] = EPISODES,
        *,
        size: int = 2,
        temperature: float = 1.0,
        reference: nn.Module | None = None,
    ) -> None:
        self.model = model
        self.temperature = temperature
        self.layout: ActionLayout = action_layout(episodes)
        self.micro_batches = make_micro_batches(episodes, self.layout, size, np.random.default_rng(0))
        frozen = reference or copy.deepcopy(model.policy)
        model.eval()
        self.evaluation: Evaluation = evaluate_rollout(
            model, lambda: nullcontext(frozen), self.layout, self.micro_batches, temperature
        )
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(2, *self.layout.mask.shape, generator=generator) * self.layout.mask
        self.targets = UpdateTargets(noise[0], noise[1], self.layout.mask)

    def run(
        self,
        *,
        lr: float = 0.1,
        epochs: int = 1,
        mini_batches: int = 1,
        max_grad_norm: float | None = None,
        coefficients: PPOCoefficients | None = None,
        temperature: float | None = None,
        accelerator: Any = None,
        reduce: Reduce = lambda tensor: tensor,
        hooks: StepHooks | None = None,
        seed: int = 1,
    ) -> dict[str, float]:
        self.model.train()
        return ppo_update(
            self.model,
            torch.optim.SGD(self.model.parameters(), lr=lr),
            accelerator or FakeAccelerator(),
            self.layout,
            self.micro_batches,
            self.evaluation,
            self.targets,
            coefficients or PPOCoefficients(0.2, 0.2, 0.1, 0.05),
            UpdateSchedule(epochs, mini_batches, max_grad_norm),
            self.temperature if temperature is None else temperature,
            np.random.default_rng(seed),
            reduce,
            hooks or StepHooks(),
        )


class TestBatches:
    @pytest.mark.parametrize("size", [1, 3, 8, 20])
    def test_micro_batches_hold_every_episode_once(self, size: int) -> None:
        episodes = [*EPISODES, toy_episode([])]  # the last one has no tokens to train on
        layout = action_layout(episodes)
        batches = make_micro_batches(episodes, layout, size, np.random.default_rng(0))
        assert all(len(batch.episodes) <= size for batch in batches)
        assert len(batches) == -(-8 // size)
        assert sorted(i for batch in batches for i in batch.episodes.tolist()) == list(range(8))

    def test_states_are_where_the_action_tokens_are_predicted(self) -> None:
        layout = action_layout(EPISODES)
        for batch in make_micro_batches(EPISODES, layout, 3, np.random.default_rng(0)):
            row, column = batch.states
            following = batch.tokens.input_ids[row, column + 1]
            assert torch.equal(following, layout.token_ids[batch.episodes][batch.mask])
            lengths = [len(EPISODES[i].token_ids) for i in batch.episodes.tolist()]
            assert batch.last[1].tolist() == [n - 1 for n in lengths]

    @pytest.mark.parametrize(("size", "count", "expected"), [(1, 4, [2, 2, 2, 2]), (1, 3, [3, 3, 2]), (2, 9, [2] * 4)])
    def test_mini_batches_are_nearly_equal_and_hold_every_episode_once(
        self, size: int, count: int, expected: list[int]
    ) -> None:
        micro = make_micro_batches(EPISODES, action_layout(EPISODES), size, np.random.default_rng(0))
        mini = list(split_mini_batches(micro, count, np.random.default_rng(0)))
        assert [sum(len(batch.episodes) for batch in group) for group in mini] == expected
        assert sorted(i for group in mini for batch in group for i in batch.episodes.tolist()) == list(range(8))

    def test_padding_is_left_or_right_and_positions_count_tokens(self) -> None:
        right, left = pad_rows([[5, 0], [7]]), pad_rows([[5, 0], [7]], left=True, pad_id=9)
        assert right.input_ids.tolist() == [[5, 0], [7, 0]] and left.input_ids.tolist() == [[5, 0], [9, 7]]
        assert right.attention_mask.tolist() == [[1, 1], [1, 0]], "a token with the padding's id is still a token"
        assert left.attention_mask.tolist() == [[1, 1], [0, 1]]
        assert right.position_ids.tolist() == [[0, 1], [0, 0]] and left.position_ids.tolist() == [[0, 1], [0, 0]]


class TestEvaluateRollout:
    """Against plain forwards of one unpadded episode each, in double precision."""

    @staticmethod
    def direct_log_probs(policy: LlamaForCausalLM, episode: Trajectory, temperature: float) -> list[float]:
        ids = torch.tensor([episode.token_ids])
        log_probs = (policy(input_ids=ids).logits[0] / (temperature + 1e-7)).log_softmax(-1)
        return [float(log_probs[i - 1, ids[0, i]]) for i, sampled in enumerate(episode.action_mask) if sampled]

    @pytest.mark.parametrize("size", [1, 3, 8])
    @pytest.mark.parametrize("temperature", [0.7, 1.0])
    @torch.no_grad()
    def test_log_probs(self, size: int, temperature: float) -> None:
        model, reference = actor_critic(dtype=torch.float64), tiny_llama(7, torch.float64)
        update = Update(model, size=size, temperature=temperature, reference=reference)
        evaluation, mask = update.evaluation, update.layout.mask
        for b, episode in enumerate(EPISODES):
            own = self.direct_log_probs(model.policy, episode, temperature)
            theirs = self.direct_log_probs(reference, episode, temperature)
            assert evaluation.log_probs[b][mask[b]].tolist() == pytest.approx(own, abs=1e-10)
            assert evaluation.ref_log_probs[b][mask[b]].tolist() == pytest.approx(theirs, abs=1e-10)
        assert not evaluation.log_probs[~mask].any() and not evaluation.values[~mask].any()

    @torch.no_grad()
    def test_values_of_a_head(self) -> None:
        model = actor_critic(dtype=torch.float64)
        update = Update(model, size=3)
        for b, episode in enumerate(EPISODES):
            ids = torch.tensor([episode.token_ids])
            hidden = model.policy(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
            values = model.value_model(hidden).tolist()
            expected = [values[i - 1] for i, sampled in enumerate(episode.action_mask) if sampled]
            assert update.evaluation.values[b][update.layout.mask[b]].tolist() == pytest.approx(expected, abs=1e-10)
            assert float(update.evaluation.final_values[b]) == pytest.approx(values[-1], abs=1e-10)

    @torch.no_grad()
    def test_values_of_a_model_of_its_own(self) -> None:
        """A classifier reads the last token: given the text up to a state, its label is that state's value."""
        model = actor_critic("model", dtype=torch.float64)
        update = Update(model, size=3)
        for b, episode in enumerate(EPISODES):
            ids = torch.tensor([episode.token_ids])
            ends = [i for i, sampled in enumerate(episode.action_mask) if sampled]
            expected = [float(model.value_model(input_ids=ids[:, :end]).logits) for end in ends]
            assert update.evaluation.values[b][update.layout.mask[b]].tolist() == pytest.approx(expected, abs=1e-10)
            final = float(model.value_model(input_ids=ids).logits)
            assert float(update.evaluation.final_values[b]) == pytest.approx(final, abs=1e-10)

    def test_leaves_no_graph_and_enters_the_reference_once(self) -> None:
        entered = []

        @contextmanager
        def reference() -> Iterator[nn.Module]:
            entered.append(1)
            yield model.policy

        model = actor_critic()
        layout = action_layout(EPISODES)
        micro = make_micro_batches(EPISODES, layout, 2, np.random.default_rng(0))
        evaluation = evaluate_rollout(model, reference, layout, micro, 1.0)
        assert entered == [1]
        assert torch.equal(evaluation.log_probs, evaluation.ref_log_probs)
        assert not evaluation.log_probs.requires_grad and not evaluation.values.requires_grad


class TestSchedule:
    @pytest.mark.parametrize(
        ("epochs", "mini_batches", "num_episodes", "size"),
        [(1, 1, 8, 8), (1, 1, 8, 2), (3, 2, 8, 2), (2, 4, 8, 1), (2, 8, 8, 1), (4, 3, 7, 2), (1, 1, 1, 4)],
    )
    def test_one_optimizer_step_per_mini_batch_and_epoch(
        self, epochs: int, mini_batches: int, num_episodes: int, size: int
    ) -> None:
        model = actor_critic()
        hooks = Recorder(model)
        update = Update(model, EPISODES[:num_episodes], size=size)
        metrics = update.run(epochs=epochs, mini_batches=mini_batches, hooks=hooks)
        assert metrics["num_optimizer_steps"] == len(hooks.before) == epochs * mini_batches
        assert all(gradient.any() for gradient in hooks.before), "every step has something to learn from"
        assert all(hooks.cleared) and len(hooks.cleared) == len(hooks.before)

    def test_no_mini_batch_is_empty(self) -> None:
        """Four micro-batches cannot make nine mini-batches: four steps, none of them without an episode."""
        assert Update(actor_critic(), size=2).run(mini_batches=9)["num_optimizer_steps"] == 4

    def test_gradients_are_synchronised_by_the_last_micro_batch_of_each_step_only(self) -> None:
        calls: list[bool] = []

        class Watching(FakeAccelerator):
            def backward(self, loss: Tensor) -> None:
                calls.append(self.is_synchronising)
                super().backward(loss)

        Update(actor_critic(), size=2).run(epochs=2, mini_batches=2, accelerator=Watching())
        assert calls == [False, True] * 4

    @pytest.mark.parametrize("value", VALUE_MODELS)
    def test_accumulated_micro_batches_equal_one_big_batch(self, value: str) -> None:
        """8 x 1 = 4 x 2 = 1 x 8, with episodes of unequal length, over several epochs."""
        results = []
        for size in (1, 2, 3, 8):
            model = actor_critic(value, dtype=torch.float64)
            metrics = Update(model, size=size).run(epochs=3)
            results.append((weights(model), metrics))
        (expected, expected_metrics), others = results[0], results[1:]
        assert (expected - weights(actor_critic(value, dtype=torch.float64))).abs().max() > 1e-3
        for result, metrics in others:
            torch.testing.assert_close(result, expected, rtol=0, atol=1e-10)
            assert metrics == pytest.approx(expected_metrics, abs=1e-6)

    def test_accumulation_in_single_precision(self) -> None:
        results = []
        for size in (1, 8):
            model = actor_critic()
            Update(model, size=size).run(lr=0.01)
            results.append(weights(model))
        torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-6)

    def test_two_processes_equal_one(self) -> None:
        """Each has half of the episodes; gradients are averaged, as DistributedDataParallel does."""
        whole_model = actor_critic(dtype=torch.float64)
        whole = Update(whole_model, size=8)
        whole.run(epochs=2)
        models = [actor_critic(dtype=torch.float64) for _ in range(2)]
        halves = [slice(0, 3), slice(3, 8)]
        updates = [Update(model, EPISODES[half], size=2) for model, half in zip(models, halves, strict=True)]
        for update, half in zip(updates, halves, strict=True):
            size = update.layout.mask.shape[1]
            tensors = (whole.targets.advantages, whole.targets.returns, whole.targets.value_mask)
            update.targets = UpdateTargets(*(tensor[half, :size] for tensor in tensors))

        def work(rank: int, reduce: Reduce) -> dict[str, float]:
            class Averaging(StepHooks):
                def before_optimizer_step(self) -> None:
                    for parameter in models[rank].parameters():
                        parameter.grad = reduce(_gradient(parameter)) / 2

            return updates[rank].run(epochs=2, accelerator=FakeAccelerator(2), reduce=reduce, hooks=Averaging())

        in_lockstep(2, work)
        for model in models:
            torch.testing.assert_close(weights(model), weights(whole_model), rtol=0, atol=1e-10)


class TestRatios:
    @pytest.mark.parametrize("value", VALUE_MODELS)
    @pytest.mark.parametrize("temperature", [0.7, 1.0])
    def test_without_a_learning_rate_every_ratio_is_exactly_one(self, value: str, temperature: float) -> None:
        update = Update(actor_critic(value), size=3, temperature=temperature)
        metrics = update.run(lr=0.0, epochs=3, mini_batches=2)
        assert metrics["val/ratio_max_deviation"] == 0.0
        assert metrics["policy/approxkl_avg"] == 0.0 and metrics["policy/clipfrac_avg"] == 0.0

    def test_the_first_step_of_a_learning_update_starts_at_ratio_one(self) -> None:
        assert Update(actor_critic(), size=3).run(lr=0.1)["val/ratio_max_deviation"] == 0.0

    def test_checkpointing_does_not_change_the_ratios(self) -> None:
        model = actor_critic()
        update = Update(model, size=3)
        model.gradient_checkpointing_enable()
        assert update.run(lr=0.0)["val/ratio_max_deviation"] == 0.0

    def test_a_wrong_temperature_would_be_noticed(self) -> None:
        update = Update(actor_critic(), temperature=0.7)
        assert update.run(lr=0.0, temperature=1.0)["val/ratio_max_deviation"] > 0.01

    def test_the_metric_is_the_maximum_over_all_steps(self) -> None:
        """After a step the policy has moved, so only a later mini-batch can deviate."""
        update = Update(actor_critic(), size=2)
        assert update.run(lr=0.1, mini_batches=4)["val/ratio_max_deviation"] > 1e-3


class TestLearning:
    @staticmethod
    def action_probability(model: ActorCritic, advantage: float) -> tuple[float, float]:
        """Probability of a one-token action before and after an update in which it alone has an advantage."""
        episode = toy_episode([1])
        update = Update(model, [episode])
        update.targets = UpdateTargets(torch.full((1, 1), advantage), torch.zeros(1, 1), update.layout.mask)
        update.run(lr=0.05, coefficients=PPOCoefficients(0.2, 0.2, 0.0, 0.0))
        after = Update(model, [episode]).evaluation
        return float(update.evaluation.log_probs.exp()), float(after.log_probs.exp())

    def test_praise_makes_an_action_likelier_and_blame_rarer(self) -> None:
        before, praised = self.action_probability(actor_critic(), 1.0)
        same, blamed = self.action_probability(actor_critic(), -1.0)
        assert before == same and blamed < before < praised

    def test_what_stands_outside_the_action_mask_is_never_read(self) -> None:
        results = []
        for poison in (0.0, 1e6):
            model = actor_critic()
            update = Update(model)
            outside = poison * ~update.layout.mask
            targets = update.targets
            update.targets = UpdateTargets(targets.advantages + outside, targets.returns + outside, targets.value_mask)
            update.run(epochs=2)
            results.append(weights(model))
        assert torch.equal(results[0], results[1])

    def test_nothing_to_learn_changes_nothing(self) -> None:
        model = actor_critic()
        before = weights(model)
        update = Update(model)
        zeros = torch.zeros_like(update.targets.advantages)
        update.targets = UpdateTargets(zeros, update.targets.returns, update.layout.mask)
        update.run(epochs=2, mini_batches=2, coefficients=PPOCoefficients(0.2, 0.2, 0.0, 0.0))
        assert torch.equal(weights(model), before)

    def test_the_kl_loss_pulls_toward_the_reference(self) -> None:
        model = actor_critic()
        update = Update(model, reference=tiny_llama(7))
        update.targets = UpdateTargets(
            torch.zeros_like(update.targets.advantages), update.targets.returns, update.layout.mask
        )

        def k3(evaluation: Evaluation) -> float:
            difference = (evaluation.ref_log_probs - evaluation.log_probs)[update.layout.mask]
            return float((difference.exp() - 1 - difference).sum())

        before = k3(update.evaluation)
        update.run(lr=0.02, coefficients=PPOCoefficients(0.2, 0.2, 0.0, 1.0))
        assert k3(Update(model, reference=tiny_llama(7)).evaluation) < before

    def test_the_value_head_learns_the_returns(self) -> None:
        model = actor_critic()
        update = Update(model)
        coefficients = PPOCoefficients(0.2, 10.0, 1.0, 0.0)
        errors = [update.run(lr=0.1, coefficients=coefficients)["loss/value_avg"] for _ in range(10)]
        assert errors[-1] < 0.7 * errors[0]

    def test_values_are_trained_where_the_mask_says(self) -> None:
        model = actor_critic()
        update = Update(model)
        nowhere = torch.zeros_like(update.layout.mask)
        update.targets = UpdateTargets(update.targets.advantages, update.targets.returns, nowhere)
        before = weights(model.value_model)
        assert update.run(coefficients=PPOCoefficients(0.2, 0.2, 1.0, 0.0))["loss/value_avg"] == 0.0
        assert torch.equal(weights(model.value_model), before)


class TestGradientNorm:
    @pytest.mark.parametrize("value", VALUE_MODELS)
    def test_is_bounded(self, value: str) -> None:
        model = actor_critic(value)
        before = weights(model)
        metrics = Update(model).run(lr=1.0, max_grad_norm=1e-3)
        assert float((weights(model) - before).norm()) == pytest.approx(1e-3, rel=1e-2)
        assert metrics["grad_norm"] > 1e-2, "logged as it was before it was clipped"

    def test_is_unbounded_and_not_measured_without_a_limit(self) -> None:
        model = actor_critic()
        before = weights(model)
        metrics = Update(model).run(lr=1.0, max_grad_norm=None)
        assert "grad_norm" not in metrics and float((weights(model) - before).norm()) > 1e-2


def gradients(model: ActorCritic, loss: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
    """Gradients of a loss of (log-probs, values) of the tokens of the first micro-batch of four episodes."""
    layout = action_layout(EPISODES)
    batch: MicroBatch = make_micro_batches(EPISODES, layout, 4, np.random.default_rng(0))[0]
    model.zero_grad()
    tokens = layout.token_ids[batch.episodes][batch.mask]
    outputs = model(batch.tokens, batch.states, tokens, 0.7, batch.states)
    loss(outputs.log_probs, outputs.values).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def values_only(log_probs: Tensor, values: Tensor) -> Tensor:
    return values.pow(2).sum() + 0 * log_probs.sum()


def both(log_probs: Tensor, values: Tensor) -> Tensor:
    return values.pow(2).sum() + log_probs.sum()


class TestActorCritic:
    def test_the_head_leaves_the_backbone_alone_by_default(self) -> None:
        moved = gradients(actor_critic(), values_only)
        assert all(name.startswith("value_model") for name, gradient in moved.items() if gradient.any())
        assert moved["value_model.score.0.weight"].any()

    def test_the_head_trains_the_backbone_if_asked(self) -> None:
        moved = gradients(actor_critic(backbone_grad=True), values_only)
        assert moved["policy.model.layers.0.mlp.up_proj.weight"].any()
        assert not moved["policy.lm_head.weight"].any()

    def test_a_value_model_of_its_own_shares_nothing_with_the_policy(self) -> None:
        model = actor_critic("model", backbone_grad=True)
        moved = gradients(model, values_only)
        assert not model.has_value_head
        assert all(name.startswith("value_model") for name, gradient in moved.items() if gradient.any())
        assert moved["value_model.model.layers.0.mlp.up_proj.weight"].any()

    def test_a_new_head_says_zero_and_leaves_the_random_state_alone(self) -> None:
        state = torch.random.get_rng_state()
        head = ValueHead(16, seed=3)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert torch.equal(weights(head), weights(ValueHead(16, seed=3)))
        assert not torch.equal(weights(head), weights(ValueHead(16, seed=4)))
        assert head(torch.randn(5, 16)).tolist() == [0.0] * 5
        assert head.bfloat16()(torch.randn(5, 16)).dtype == torch.bfloat16

    @torch.no_grad()
    def test_padding_changes_nothing(self) -> None:
        model = actor_critic("model", dtype=torch.float64)
        short, long = EPISODES[3].token_ids, EPISODES[2].token_ids
        index = (torch.tensor([0]), torch.tensor([len(short) - 1]))
        token = torch.tensor([3])
        alone: TokenOutputs = model(pad_rows([short]), index, token, 1.0, index)
        batch: TokenBatch = pad_rows([short, long])
        for expected, padded in zip(alone[:3], model(batch, index, token, 1.0, index)[:3], strict=True):
            torch.testing.assert_close(padded, expected, rtol=0, atol=1e-12)
        assert [tensor.shape for tensor in alone[:3]] == [(1,)] * 3 and float(alone.entropy) > 0

    @pytest.mark.parametrize(("value", "backbone_grad"), [("head", False), ("head", True), ("model", False)])
    def test_gradient_checkpointing_gives_the_same_gradients(self, value: str, backbone_grad: bool) -> None:
        model = actor_critic(value, dtype=torch.float64, backbone_grad=backbone_grad).train()
        expected = gradients(model, both)
        model.gradient_checkpointing_enable()
        layers = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
        assert model.is_gradient_checkpointing and layers
        checkpointed = gradients(model, both)
        assert checkpointed.keys() == expected.keys()
        for name, gradient in checkpointed.items():
            torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-12)
        model.gradient_checkpointing_disable()
        assert not model.is_gradient_checkpointing
        assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())

    @pytest.mark.parametrize("with_adapter", [False, True])
    def test_frozen_embeddings_do_not_cut_the_graph_of_checkpointed_layers(self, with_adapter: bool) -> None:
        policy: Any = tiny_llama(dtype=torch.float64)
        if with_adapter:
            peft = pytest.importorskip("peft")
            config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
            policy = peft.get_peft_model(policy, config)
        else:
            policy.get_input_embeddings().requires_grad_(False)
        model = ActorCritic(policy, ValueHead(16).double()).train()
        expected = gradients(model, both)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
        checkpointed = gradients(model, both)
        first_layer = [name for name in expected if "layers.0" in name]
        assert first_layer and all(expected[name].any() for name in first_layer)
        for name in first_layer:
            torch.testing.assert_close(checkpointed[name], expected[name], rtol=0, atol=1e-12)
