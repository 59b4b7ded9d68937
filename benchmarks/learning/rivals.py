"""What hindsight is compared with: spoiled copies of itself, and other ways to make a sparse reward dense."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from trl_mise.calibration import CalibrationExample
from trl_mise.callback import CalibrationCallback
from trl_mise.hindsight import HindsightReward
from trl_mise.token_batch import pad_rows
from trl_mise.types import HindsightScores, Trajectory


class ShuffledSteps(HindsightReward):
    """The model's verdicts, dealt out again among the steps of each episode: the same praise, no credit."""

    def normalise(
        self, scores: HindsightScores, gather: Callable[[np.ndarray], np.ndarray] = lambda values: values
    ) -> np.ndarray:
        values = super().normalise(scores, gather)
        return np.concatenate([self._rng.permutation(part) for part in scores.split(values)])


class ShuffledReturns(CalibrationCallback):
    """Calibration toward the returns of other episodes."""

    def _unit_returns(self, batch: list[CalibrationExample]) -> list[float]:
        return [float(value) for value in self.rng.permutation(super()._unit_returns(batch))]


class PotentialShaping(HindsightReward):
    """Potential-based shaping (Ng, Harada and Russell, 1999), with the self-evaluation so far as the potential.

        Phi(s_t) = sum_{i<t} n_i,  Phi(terminal) = 0,  F_t = Phi(s_{t+1}) - Phi(s_t)

    At gamma = 1 that is n_t at every step, and all of it taken back at the end, so that the optimal policy cannot
    change. For placement `"return"`.
    """

    def normalise(
        self, scores: HindsightScores, gather: Callable[[np.ndarray], np.ndarray] = lambda values: values
    ) -> np.ndarray:
        parts = scores.split(super().normalise(scores, gather))
        for part in parts:
            if len(part):
                part[-1] -= part.sum()
        return np.concatenate(parts)


class ReturnDecomposition(HindsightReward):
    """A learned return decomposition in the manner of RUDDER (Arjona-Medina et al., arXiv 1806.07857).

    A recurrent net reads the episode's tokens and predicts, after every action, the return at the end; the step's
    credit is by how much its action (and what came between) changed the prediction. It is trained on the last
    `capacity` episodes, balanced by outcome, before it is asked; while all of them ended alike it predicts that.

        loss = (g_T - R)^2 + 1/2 mean_t (g_t - R)^2,      credit_t = g_t - g_{t-1},  g_0 = mean return
    """

    capacity, width, steps, batch_size = 512, 64, 20, 32

    def verdict_probs(self, model: nn.Module, trajectories: Sequence[Trajectory]) -> np.ndarray:
        if not hasattr(self, "net"):
            vocab_size = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator, union-attr]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(self._rng.integers(2**31)))
                self.net = ReturnPredictor(vocab_size, self.width)
            self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-3)
            self.memory: list[Trajectory] = []
        self.memory = [*self.memory, *(t for t in trajectories if t.num_steps)][-self.capacity :]
        with torch.enable_grad():
            self._learn()
        with torch.no_grad():
            predictions = self.net(trajectories)
        start = float(np.mean([t.episode_return for t in self.memory]))
        credit = np.concatenate([np.diff(np.array([start, *part.tolist()])) for part in predictions])
        # Any increasing map into probabilities will do: the scores are normalised afterwards.
        good = np.clip(0.5 + 0.5 * credit, 0.0, 1.0)
        return np.stack([good, 1 - good], axis=1)

    def _learn(self) -> None:
        won = [t for t in self.memory if t.success]
        lost = [t for t in self.memory if not t.success]
        if not won or not lost:
            return
        for _ in range(self.steps):
            pick = [won[i] for i in self._rng.integers(len(won), size=self.batch_size // 2)]
            pick += [lost[i] for i in self._rng.integers(len(lost), size=self.batch_size // 2)]
            losses = []
            for trajectory, part in zip(pick, self.net(pick), strict=True):
                errors = (part - trajectory.episode_return) ** 2
                losses.append(errors[-1] + 0.5 * errors.mean())
            self.optimizer.zero_grad()
            torch.stack(losses).mean().backward()
            self.optimizer.step()


class ReturnPredictor(nn.Module):
    """A GRU over the tokens of an episode; the return that it expects at the end of every action."""

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, 1)

    def forward(self, trajectories: Sequence[Trajectory]) -> list[Tensor]:
        """`(T,)` predictions per episode, each after the step's result."""
        batch = pad_rows([t.token_ids for t in trajectories], self.head.weight.device)
        outputs = self.head(self.gru(self.embed(batch.input_ids))[0]).squeeze(-1)  # (B, L)
        return [
            outputs[row, torch.tensor([turn.result_end - 1 for turn in t.turns], dtype=torch.long)]
            for row, t in enumerate(trajectories)
        ]


RIVALS: dict[str, type[HindsightReward]] = {
    "shuffled_steps": ShuffledSteps,
    "potential": PotentialShaping,
    "decomposition": ReturnDecomposition,
}
