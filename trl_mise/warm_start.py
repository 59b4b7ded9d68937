"""Supervised warm start of a tiny policy: noisy demonstrations for its actions, noisy verdicts for its judgement."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .chat import PromptFormat
from .envs.base import EnvironmentFactory, EnvironmentFailure
from .heads import backbone_hidden, lm_logits
from .hindsight import HindsightReward
from .packing import ScoringRow
from .rollout import RolloutLimits, collect_rollouts
from .scoring import score_rows
from .tiny import Progress
from .token_batch import pad_rows
from .types import Trajectory
from .writing import written_log_probs
from .written import WrittenVerdict

Act = Callable[[Any, random.Random], str]
"""A scripted policy: the action for the environment as it stands."""
Judge = Callable[[Any, str], bool]
"""Is the action, not yet taken, a good one in the environment as it stands?"""


@dataclass(frozen=True)
class ScriptedEpisodes:
    """Episodes of a scripted policy, with the tokens that a rollout would have given them.

    Args:
        trajectories (`list[Trajectory]`): one per task.
        judged_good (`list[tuple[bool, ...]]`): the judge's word on every step of each; empty tuples without a judge.
    """

    trajectories: list[Trajectory]
    judged_good: list[tuple[bool, ...]]


@dataclass(frozen=True)
class VerdictExamples:
    """Questions about steps, and how likely the first verdict ("good") should be as the answer.

    Args:
        rows (`list[ScoringRow]`): one per trajectory.
        good_probs (`list[tuple[float, ...]]`): of each step, in [0, 1].
        verdict_ids (`tuple[tuple[int, ...], ...]`): tokens of good and of bad.
    """

    rows: list[ScoringRow]
    good_probs: list[tuple[float, ...]]
    verdict_ids: tuple[tuple[int, ...], ...]

    def draw(self, rng: np.random.Generator, size: int) -> "VerdictExamples":
        """`size` random episodes with their questions."""
        chosen = rng.integers(len(self.rows), size=size)
        return VerdictExamples([self.rows[i] for i in chosen], [self.good_probs[i] for i in chosen], self.verdict_ids)


@dataclass(frozen=True)
class WrittenExamples:
    """Evaluations to imitate.

    Args:
        written (`list[list[WrittenVerdict]]`): of each episode, one per step.
    """

    written: list[list[WrittenVerdict]]

    def draw(self, rng: np.random.Generator, size: int) -> "WrittenExamples":
        """The evaluations of `size` random episodes."""
        return WrittenExamples([self.written[i] for i in rng.integers(len(self.written), size=size)])


@dataclass(frozen=True)
class Phase:
    """One stretch of supervised learning, with an optimizer of its own.

    Args:
        name (`str`): for the progress display.
        steps (`int`): optimizer steps.
        demonstrations (`list[Trajectory]`): their action tokens are imitated.
        verdicts ([`VerdictExamples`] or [`WrittenExamples`]): learned at the same time.
        learning_rate (`float`): of Adam; rises over the first steps and falls to a tenth along a cosine.
        batch_size (`int`): demonstrations per step.
        verdict_batch_size (`int`): episodes per step whose every step is judged.
    """

    name: str
    steps: int
    demonstrations: list[Trajectory]
    verdicts: VerdictExamples | WrittenExamples
    learning_rate: float = 3e-3
    batch_size: int = 32
    verdict_batch_size: int = 16


def scripted_rollouts(
    env_factory: EnvironmentFactory,
    tasks: Sequence[Mapping[str, Any]],
    act: Act,
    chat: PromptFormat,
    limits: RolloutLimits,
    *,
    seed: int = 0,
    judge: Judge | None = None,
) -> ScriptedEpisodes:
    """Plays a scripted policy through [`collect_rollouts`], so that tokens and spans are laid out as in training.

    Args:
        env_factory: makes the environment; one is played at a time, because the script looks into it.
        tasks: dataset rows, one episode each.
        act: the scripted policy; its random source is seeded with `seed`.
        chat: the tokenizer's conversation format; the action is encoded by it and closed with its first stop token.
        limits: bounds of an episode.
        judge (*optional*): asked about every action before it is taken.

    Raises:
        ValueError: an action has more tokens than `limits.max_new_tokens`.
        EnvironmentFailure: an environment failed.
    """
    env, rng = env_factory(), random.Random(f"script-{seed}")
    flat: list[bool] = []

    def generate(contexts: Sequence[Sequence[int]]) -> list[list[int]]:
        action = act(env, rng)
        ids = [*chat.encode_text(action), chat.stop_token_ids[0]]
        if len(ids) > limits.max_new_tokens:
            raise ValueError(
                f"the scripted action {action!r} has {len(ids)} tokens, more than max_new_tokens="
                f"{limits.max_new_tokens}; raise it"
            )
        if judge is not None:
            flat.append(judge(env, action))
        return [ids]

    trajectories = collect_rollouts(tasks, [env], generate, chat, limits)
    env.close()
    failed = next((trajectory.error for trajectory in trajectories if trajectory.failed), None)
    if failed is not None:
        # A script has no use for the rest: its verdicts would belong to other steps.
        raise EnvironmentFailure(f"scripted episodes: {failed}")
    words = iter(flat)
    judged = [() if judge is None else tuple(next(words) for _ in t.turns) for t in trajectories]
    return ScriptedEpisodes(trajectories, judged)


def verdict_examples(
    episodes: ScriptedEpisodes, evaluators: Sequence[HindsightReward], accuracy: float
) -> VerdictExamples:
    """Questions about every step, with soft answers: the judge's word holds with probability `accuracy`.

    The soft label is the mean of labels that are flipped at random, without their sampling noise.

    Args:
        episodes ([`ScriptedEpisodes`]): played with a judge.
        evaluators (`Sequence[HindsightReward]`): they word the questions; episode i is asked by evaluator i modulo
            their number, so that several views can be taught.
        accuracy (`float`): in [0.5, 1].
    """
    _check_accuracy(accuracy)
    rows: list[ScoringRow] = []
    good_probs: list[tuple[float, ...]] = []
    for index, (trajectory, judged) in enumerate(zip(episodes.trajectories, episodes.judged_good, strict=True)):
        if len(judged) != trajectory.num_steps:
            raise ValueError(f"episode {index} was played without a judge; pass judge= to scripted_rollouts")
        rows.extend(evaluators[index % len(evaluators)].questions([trajectory]))
        good_probs.append(tuple(accuracy if good else 1.0 - accuracy for good in judged))
    return VerdictExamples(rows, good_probs, evaluators[0].verdict_ids)


def written_examples(
    episodes: ScriptedEpisodes,
    evaluator: HindsightReward,
    accuracy: float,
    reason: Callable[[Trajectory, int, bool], str],
    *,
    seed: int = 0,
) -> WrittenExamples:
    """Evaluations of every step as somebody would write them: a reason, a colon, and the judge's word.

    Args:
        episodes ([`ScriptedEpisodes`]): played with a judge.
        evaluator ([`HindsightReward`]): words the questions, and knows the verdicts.
        accuracy (`float`): in [0.5, 1]; the word is turned round with the remaining probability.
        reason: of an episode, a step and whether it is praised; without a colon.
        seed (`int`): of the words that are turned round.
    """
    _check_accuracy(accuracy)
    rng, chat = random.Random(f"written-{seed}"), evaluator.chat_format
    examples = []
    for trajectory, judged in zip(episodes.trajectories, episodes.judged_good, strict=True):
        of_episode = []
        for step, (context, good) in enumerate(zip(evaluator.contexts([trajectory]), judged, strict=True)):
            truthful = rng.random() < accuracy
            verdict = 0 if good == truthful else 1
            text = f"{reason(trajectory, step, verdict == 0)} : {evaluator.verdicts[verdict]}"
            own = [*chat.encode_text(text), chat.stop_token_ids[0]]
            of_episode.append(WrittenVerdict((*context, *own), len(context), text, verdict))
        examples.append(of_episode)
    return WrittenExamples(examples)


def warm_start(model: nn.Module, phases: Sequence[Phase], *, seed: int = 0, progress: Progress | None = None) -> None:
    """Trains `model` in place, phase by phase, on imitation plus verdict cross-entropy; no global random state.

    Every phase starts a new optimizer: after clean data Adam's second moments are tiny, and the first noisy batches
    would throw away with giant steps what has been learned.

    Args:
        model (`nn.Module`): causal LM.
        phases (`Sequence[Phase]`): in order. Easy before hard and clean before noisy: what is noisy from the start is
            never learned.
        seed (`int`): of the batches.
        progress ([`Progress`], *optional*): called after every step with (phase, steps done, steps in all).
    """
    rng = np.random.default_rng(seed)
    total = sum(phase.steps for phase in phases)
    done = 0
    model.train()
    for phase in phases:
        optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.98))
        for step in range(phase.steps):
            for group in optimizer.param_groups:
                group["lr"] = phase.learning_rate * _schedule(step, phase.steps)
            loss = imitation_loss(model, _draw(rng, phase.demonstrations, phase.batch_size))
            loss = loss + judgement_loss(model, phase.verdicts.draw(rng, phase.verdict_batch_size))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            done += 1
            if progress is not None:
                progress(phase.name, done, total)
    model.eval()


def _check_accuracy(accuracy: float) -> None:
    if not 0.5 <= accuracy <= 1.0:
        raise ValueError(f"verdict accuracy must be in [0.5, 1], got {accuracy!r}; below 0.5 the verdicts would lie")


def _schedule(step: int, steps: int, warmup: int = 20) -> float:
    """Linear warm-up; cosine to a tenth."""
    return min(1.0, (step + 1) / warmup) * (0.1 + 0.45 * (1 + math.cos(math.pi * step / steps)))


def _draw(rng: np.random.Generator, items: Sequence[Any], size: int) -> list[Any]:
    return [items[i] for i in rng.integers(len(items), size=size)]


def imitation_loss(model: nn.Module, trajectories: Sequence[Trajectory]) -> Tensor:
    """Mean cross-entropy of the action tokens, stop tokens included, given everything before them."""
    batch = pad_rows([t.token_ids for t in trajectories], next(model.parameters()).device)
    where = [(b, i) for b, t in enumerate(trajectories) for turn in t.turns for i in range(*turn.action_span)]
    rows, columns = torch.tensor(where).unbind(1)  # (N,) each
    hidden = backbone_hidden(model, batch.input_ids, batch.attention_mask, batch.position_ids)
    logits = lm_logits(model, hidden[rows, columns - 1])  # (N, V)
    return nn.functional.cross_entropy(logits, batch.input_ids[rows, columns])


def judgement_loss(model: nn.Module, examples: VerdictExamples | WrittenExamples) -> Tensor:
    """Cross-entropy of verdicts, or of all tokens of written evaluations."""
    if isinstance(examples, VerdictExamples):
        return verdict_loss(model, examples)
    return -torch.cat(written_log_probs(model, [w for of_episode in examples.written for w in of_episode], 1.0)).mean()


def verdict_loss(model: nn.Module, examples: VerdictExamples) -> Tensor:
    """Mean cross-entropy between the soft answers and the model's distribution over the two verdicts."""
    logits = score_rows(model, examples.rows, examples.verdict_ids, requires_grad=True).logits  # (S, 2)
    good = torch.tensor([prob for probs in examples.good_probs for prob in probs], device=logits.device)  # (S,)
    return nn.functional.cross_entropy(logits, torch.stack((good, 1 - good), dim=1).to(logits.dtype))
