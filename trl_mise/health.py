"""`HindsightHealthWarning`: which way a judge is failing, and the option that helps. numpy only.

Warnings look at metrics that are logged anyway and change nothing. Each is given once in a run.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .metrics import auroc


class HindsightHealthWarning(UserWarning):
    """The self-evaluation looks ill; the message names the failure, the figures and the option that helps."""


@dataclass(frozen=True)
class HealthThresholds:
    """When something counts as ill. What they mean is in `docs/diagnostics.md`.

    Args:
        patience (`int`): updates in a row.
        window (`int`): most episodes that an AUROC is measured on.
        min_outcomes (`int`): won, and lost, episodes that it needs at least.
        collapsed_information (`float`): nats of `mise/mutual_information`, below: the same is said of everything.
        solved (`float`): success from which a judge that praises everything is right.
        drift (`float`): fall of the AUROC from its best.
        useless_auroc (`float`): below, a fallen AUROC is a drifting judge.
        opposed_auroc (`float`): below, the judge praises what loses.
        longer (`float`): growth of the episodes that is not natural without more success.
    """

    patience: int = 5
    window: int = 256
    min_outcomes: int = 20
    collapsed_information: float = 1e-3
    solved: float = 0.9
    drift: float = 0.25
    useless_auroc: float = 0.6
    opposed_auroc: float = 0.4
    longer: float = 1.5


class HealthMonitor:
    """Watches the updates of a run.

    Args:
        thresholds ([`HealthThresholds`], *optional*).
    """

    def __init__(self, thresholds: HealthThresholds | None = None) -> None:
        self.thresholds = thresholds or HealthThresholds()
        self._outcomes: deque[tuple[float, bool]] = deque(maxlen=self.thresholds.window)
        self._flat = 0
        self._best_auroc = self._success_at_best = 0.0
        self._history: deque[dict[str, float]] = deque(maxlen=self.thresholds.patience)
        self._first: list[dict[str, float]] = []
        self._said: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "outcomes": [[score, won] for score, won in self._outcomes],
            "flat": self._flat,
            "best_auroc": self._best_auroc,
            "success_at_best": self._success_at_best,
            "history": list(self._history),
            "first": self._first,
            "said": sorted(self._said),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._outcomes.clear()
        self._outcomes.extend((float(score), bool(won)) for score, won in state["outcomes"])
        self._flat = int(state["flat"])
        self._best_auroc, self._success_at_best = float(state["best_auroc"]), float(state["success_at_best"])
        self._history.clear()
        self._history.extend(dict(metrics) for metrics in state["history"])
        self._first = [dict(metrics) for metrics in state["first"]]
        self._said = set(state["said"])

    def update(self, metrics: Mapping[str, float], episode_scores: np.ndarray, won: np.ndarray) -> list[str]:
        """Takes in one update and returns what is to be said of it, each failure once in a run.

        Args:
            metrics: of the update, as logged.
            episode_scores (`np.ndarray`): `(N,)` mean score of each episode.
            won (`np.ndarray`): `(N,)` bool.
        """
        self._outcomes.extend(zip(episode_scores.tolist(), won.tolist(), strict=True))
        self._history.append(dict(metrics))
        if len(self._first) < self.thresholds.patience:
            self._first.append(dict(metrics))
        found = {
            "collapsed": self._collapsed(metrics),
            **self._by_auroc(),
            "length": self._longer_without_success(),
        }
        new = {name: message for name, message in found.items() if message and name not in self._said}
        self._said.update(new)
        return list(new.values())

    def _collapsed(self, metrics: Mapping[str, float]) -> str | None:
        t = self.thresholds
        information = metrics.get("mise/mutual_information", float("inf"))
        flat = information < t.collapsed_information and metrics.get("env/success", 0.0) < t.solved
        self._flat = self._flat + 1 if flat else 0
        if self._flat < t.patience:
            return None
        return (
            f"collapsed verdicts: for {self._flat} updates the judge has said the same of every step "
            f"(mise/mutual_information {information:.1e} nats), so hindsight teaches nothing. If it was so from the "
            "start, reword hindsight_prompt or hindsight_verdicts; if it became so, raise calibration_anchor_coef, or "
            "set calibration_target='sum' if it is 'step'"
        )

    def _by_auroc(self) -> dict[str, str | None]:
        t = self.thresholds
        scores = np.array([score for score, _ in self._outcomes])
        won = np.array([outcome for _, outcome in self._outcomes], dtype=bool)
        if min(won.sum(), (~won).sum()) < t.min_outcomes:
            return {}
        measured = auroc(scores, won)
        success = _means(self._history).get("env/success", 0.0)
        if measured > self._best_auroc:
            self._best_auroc, self._success_at_best = measured, success
        opposed = drifting = None
        if measured < t.opposed_auroc:
            opposed = (
                f"anti-correlated judge: over the last {len(won)} episodes those that won scored lower than those "
                f"that lost (AUROC {measured:.2f}). Keep hindsight_gate='agreement', which stops listening; "
                "posthoc_calibrator='affine' turns such scores round; check that hindsight_utilities belong to "
                "hindsight_verdicts in their order"
            )
        # Where success rises, the policy has learned what the judge knows, and what is left are the judge's errors.
        fell = self._best_auroc - measured > t.drift and measured < t.useless_auroc
        if fell and success <= self._success_at_best:
            drifting = (
                f"drifting judge: the AUROC of episode scores against outcomes fell from {self._best_auroc:.2f} to "
                f"{measured:.2f}, and success did not rise. Lower calibration_learning_rate or raise "
                "calibration_anchor_coef; or let evaluator_model='reference' judge, which cannot drift"
            )
        return {"opposed": opposed, "drifting": drifting}

    def _longer_without_success(self) -> str | None:
        t = self.thresholds
        if len(self._history) < t.patience or len(self._first) < t.patience:
            return None
        then, now = _means(self._first), _means(self._history)
        if not {"env/episode_length", "env/success", "hindsight/score_mean"} <= then.keys() & now.keys():
            return None
        growth = now["env/episode_length"] / max(then["env/episode_length"], 1e-9)
        praised = now["hindsight/score_mean"] >= then["hindsight/score_mean"]
        if growth < t.longer or now["env/success"] > then["env/success"] or not praised:
            return None
        return (
            f"length hacking: episodes are {growth:.1f} x as long as at the start ({now['env/episode_length']:.1f} "
            f"steps), praised as much, and win no more often ({then['env/success']:.2f} then, "
            f"{now['env/success']:.2f} now). Use hindsight_placement='advantage', which does not add praise up, and "
            "gamma below 1; or lower hindsight_coef"
        )


def _means(history: "list[dict[str, float]] | deque[dict[str, float]]") -> dict[str, float]:
    """Means of the metrics that all entries have."""
    names = set.intersection(*(set(entry) for entry in history))
    return {name: float(np.mean([entry[name] for entry in history])) for name in names}
