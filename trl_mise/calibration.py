"""What calibration remembers and its gradient-free half: the replay buffer and the post-hoc maps g. numpy only.

The losses that calibrate through the model's own weights are in `calibration_losses.py`.
"""

import importlib.util
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from .serialization import trajectory_from_dict, trajectory_to_dict
from .types import StopReason, Trajectory

RETURN_TOLERANCE = 1e-6  # a sum of rewards may miss 1 by rounding


@dataclass(frozen=True, eq=False)
class CalibrationExample:
    """An episode with what was said of its steps when it was played.

    Args:
        trajectory ([`Trajectory`]): the episode, T steps.
        scores (`np.ndarray`): `(T,)` h_t in [0, 1]; kept as float64.
        reference_scores (`np.ndarray`, *optional*): `(T,)` h_t^ref, the reference model's verdicts, for the anchor.
    """

    trajectory: Trajectory
    scores: np.ndarray
    reference_scores: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scores", self._checked("scores", self.scores))
        if self.reference_scores is not None:
            object.__setattr__(self, "reference_scores", self._checked("reference_scores", self.reference_scores))

    def _checked(self, name: str, values: np.ndarray) -> np.ndarray:
        values = np.array(values, dtype=np.float64)  # a copy: the caller's batch array need not stay alive
        if values.shape != (self.trajectory.num_steps,):
            raise ValueError(
                f"CalibrationExample: {name} has shape {values.shape} but the episode has "
                f"{self.trajectory.num_steps} steps; give one score per step"
            )
        return _checked_unit(f"CalibrationExample: {name}", values)

    @property
    def episode_return(self) -> float:
        return self.trajectory.episode_return

    @property
    def success(self) -> bool:
        return self.trajectory.success


class ReplayBuffer:
    """The last `capacity` episodes, drawn balanced between successes and failures.

    Balance matters: at 2% success an unbalanced regression only learns to say "bad".

    Args:
        capacity (`int`): episodes to keep; the oldest go first.
    """

    def __init__(self, capacity: int = 512) -> None:
        if capacity < 2:
            raise ValueError(f"ReplayBuffer: capacity must be at least 2 (one success, one failure), got {capacity}")
        self._examples: deque[CalibrationExample] = deque(maxlen=capacity)

    def __len__(self) -> int:
        return len(self._examples)

    @property
    def capacity(self) -> int:
        return self._examples.maxlen or 0

    @property
    def examples(self) -> tuple[CalibrationExample, ...]:
        """Oldest first."""
        return tuple(self._examples)

    def add(self, examples: Iterable[CalibrationExample]) -> None:
        """Appends episodes, except those without a step and those that ended in an environment error (no outcome)."""
        for example in examples:
            if example.trajectory.num_steps and example.trajectory.stop_reason is not StopReason.ENV_ERROR:
                self._examples.append(example)

    def sample_balanced(self, n: int, rng: np.random.Generator) -> list[CalibrationExample]:
        """Draws `n // 2` successes and as many failures, alternating, so that every even slice is balanced too.

        A class is drawn without replacement; one that is too small is used up entirely before any episode is repeated.

        Args:
            n (`int`): episodes wanted, at least 2; an odd one is rounded down.
            rng (`np.random.Generator`): source of randomness.

        Returns:
            `list[CalibrationExample]`: success, failure, success, …; empty while one of the classes is.
        """
        if n < 2:
            raise ValueError(f"ReplayBuffer.sample_balanced: n must be at least 2 (one of each class), got {n}")
        won = [example for example in self._examples if example.success]
        lost = [example for example in self._examples if not example.success]
        if not won or not lost:
            return []
        pairs = zip(_draw(won, n // 2, rng), _draw(lost, n // 2, rng), strict=True)
        return [example for pair in pairs for example in pair]

    def set_reference_scores(
        self, examples: Sequence[CalibrationExample], reference_scores: Sequence[np.ndarray]
    ) -> dict[int, CalibrationExample]:
        """Remembers the reference model's verdicts on some of the buffer's episodes, so that it is asked only once.

        Returns:
            `dict[int, CalibrationExample]`: the completed examples by the `id` of the ones given.
        """
        completed = {
            id(example): replace(example, reference_scores=scores)
            for example, scores in zip(examples, reference_scores, strict=True)
        }
        for index, example in enumerate(self._examples):
            self._examples[index] = completed.get(id(example), example)
        return completed

    def state_dict(self) -> dict[str, Any]:
        """The episodes as JSON values, exact (floats survive `json.dumps`/`loads` unchanged)."""
        return {"examples": [_example_to_dict(example) for example in self._examples]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replaces the contents. The capacity stays this buffer's own: a smaller one keeps the newest episodes."""
        examples = [_example_from_dict(example) for example in state["examples"]]
        self._examples.clear()
        self._examples.extend(examples)


def _draw(pool: Sequence[CalibrationExample], k: int, rng: np.random.Generator) -> list[CalibrationExample]:
    rounds = -(-k // len(pool))
    order = np.concatenate([rng.permutation(len(pool)) for _ in range(rounds)])
    return [pool[i] for i in order[:k]]


def _example_to_dict(example: CalibrationExample) -> dict[str, Any]:
    reference = example.reference_scores
    return {
        "trajectory": trajectory_to_dict(example.trajectory),
        "scores": example.scores.tolist(),
        "reference_scores": None if reference is None else reference.tolist(),
    }


def _example_from_dict(state: Mapping[str, Any]) -> CalibrationExample:
    reference = state["reference_scores"]
    return CalibrationExample(
        trajectory_from_dict(state["trajectory"]),
        np.asarray(state["scores"]),
        None if reference is None else np.asarray(reference),
    )


def step_pairs(examples: Sequence[CalibrationExample]) -> tuple[np.ndarray, np.ndarray]:
    """Every step's score beside its episode's return: what a post-hoc map is fitted on.

    Args:
        examples (`Sequence[CalibrationExample]`): at least one episode; S steps in all.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: scores `(S,)` and returns `(S,)`.
    """
    if not examples:
        raise ValueError("step_pairs: no episodes; skip the fit while ReplayBuffer.sample_balanced gives none")
    scores = np.concatenate([example.scores for example in examples])
    returns = np.concatenate([np.full(len(example.scores), example.episode_return) for example in examples])
    return scores, returns


class PostHocCalibrator(Protocol):
    """A map g from a score to a calibrated one, both in [0, 1]; the identity until it is fitted."""

    def fit(self, scores: np.ndarray, returns: np.ndarray) -> None:
        """Fits g on `(S,)` scores and `(S,)` returns, both in [0, 1]."""
        ...

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Applies g elementwise."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class IdentityCalibrator:
    """g(h) = h."""

    def fit(self, scores: np.ndarray, returns: np.ndarray) -> None:
        _checked_fit(scores, returns)

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        return np.asarray(scores, dtype=np.float64)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class AffineCalibrator:
    """g(h) = clip(a h + b, 0, 1), with a and b by least squares; constant scores give a = 0, b = mean return."""

    def __init__(self) -> None:
        self.slope, self.intercept = 1.0, 0.0

    def fit(self, scores: np.ndarray, returns: np.ndarray) -> None:
        scores, returns = _checked_fit(scores, returns)
        centred = scores - scores.mean()
        variance = float(centred @ centred) / len(scores)
        # below this the scores differ by rounding only, and a slope would amplify noise
        self.slope = float(centred @ returns) / len(scores) / variance if variance > 1e-12 else 0.0
        self.intercept = float(returns.mean() - self.slope * scores.mean())

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        return np.clip(self.slope * np.asarray(scores, dtype=np.float64) + self.intercept, 0.0, 1.0)

    def state_dict(self) -> dict[str, Any]:
        return {"slope": self.slope, "intercept": self.intercept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.slope, self.intercept = float(state["slope"]), float(state["intercept"])


class PlattCalibrator:
    """g(h) = sigmoid(a logit(h) + b), by logistic regression on (soft) returns.

    Minimises `sum_t BCE(g(h_t), R_t) + strength/2 [(a - 1)^2 + b^2]`: few or separable data stay near the identity.

    Args:
        strength (`float`): weight of the pull to the identity, > 0; as much as about that many steps.
        max_iterations (`int`): Newton steps; about ten are taken.
    """

    def __init__(self, strength: float = 1.0, max_iterations: int = 100) -> None:
        if not strength > 0:
            raise ValueError(f"PlattCalibrator: strength must be > 0, got {strength}; separable data diverge without")
        self.strength, self.max_iterations = strength, max_iterations
        self.slope, self.intercept = 1.0, 0.0

    def fit(self, scores: np.ndarray, returns: np.ndarray) -> None:
        scores, returns = _checked_fit(scores, returns)
        design = np.stack([_logit(scores), np.ones(len(scores))], axis=1)
        weights = np.array([1.0, 0.0])
        for _ in range(self.max_iterations):
            fitted = _sigmoid(design @ weights)
            gradient = design.T @ (fitted - returns) + self.strength * (weights - [1.0, 0.0])
            curvature = (design * (fitted * (1 - fitted))[:, None]).T @ design + self.strength * np.eye(2)
            step = np.linalg.solve(curvature, gradient)
            before, scale = self._objective(weights, design, returns), 1.0
            while self._objective(weights - scale * step, design, returns) > before and scale > 1e-8:
                scale /= 2  # a full Newton step may overshoot where the sigmoid is flat
            weights = weights - scale * step
            if np.abs(scale * step).max() < 1e-10:
                break
        self.slope, self.intercept = float(weights[0]), float(weights[1])

    def _objective(self, weights: np.ndarray, design: np.ndarray, returns: np.ndarray) -> float:
        z = design @ weights
        loss = float((np.logaddexp(0, z) - returns * z).sum())
        return loss + self.strength / 2 * float(((weights - [1.0, 0.0]) ** 2).sum())

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        return _sigmoid(self.slope * _logit(np.asarray(scores, dtype=np.float64)) + self.intercept)

    def state_dict(self) -> dict[str, Any]:
        return {"slope": self.slope, "intercept": self.intercept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.slope, self.intercept = float(state["slope"]), float(state["intercept"])


class IsotonicCalibrator:
    """The non-decreasing g nearest to the returns in least squares, linear between its thresholds.

    Only `fit` needs scikit-learn; a fitted map is loaded and applied without it.
    """

    def __init__(self) -> None:
        self.thresholds, self.values = np.array([0.0, 1.0]), np.array([0.0, 1.0])

    def fit(self, scores: np.ndarray, returns: np.ndarray) -> None:
        try:
            from sklearn.isotonic import IsotonicRegression
        except ImportError as error:
            raise ImportError(_NO_SKLEARN) from error
        scores, returns = _checked_fit(scores, returns)
        fitted = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(scores, returns)
        self.thresholds = np.asarray(fitted.X_thresholds_, dtype=np.float64)
        self.values = np.asarray(fitted.y_thresholds_, dtype=np.float64)

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        return np.interp(np.asarray(scores, dtype=np.float64), self.thresholds, self.values)

    def state_dict(self) -> dict[str, Any]:
        return {"thresholds": self.thresholds.tolist(), "values": self.values.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.thresholds, self.values = np.asarray(state["thresholds"]), np.asarray(state["values"])


_NO_SKLEARN = (
    "posthoc_calibrator='isotonic' needs scikit-learn, which is not installed: pip install \"trl-mise[calibration]\", "
    "or choose posthoc_calibrator='platt', which needs nothing"
)
_CALIBRATORS: dict[str, Callable[[], PostHocCalibrator]] = {
    "identity": IdentityCalibrator,
    "affine": AffineCalibrator,
    "platt": PlattCalibrator,
    "isotonic": IsotonicCalibrator,
}


def make_calibrator(name: str) -> PostHocCalibrator:
    """A fresh post-hoc map by the name that `posthoc_calibrator` takes.

    Raises:
        ValueError: unknown name.
        ImportError: `"isotonic"` without scikit-learn; said here, before training, and not at the first fit.
    """
    if name not in _CALIBRATORS:
        raise ValueError(f"posthoc_calibrator={name!r} is unknown; choose one of {', '.join(map(repr, _CALIBRATORS))}")
    if name == "isotonic" and importlib.util.find_spec("sklearn") is None:
        raise ImportError(_NO_SKLEARN)
    return _CALIBRATORS[name]()


def _checked_fit(scores: np.ndarray, returns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, returns = np.asarray(scores, dtype=np.float64), np.asarray(returns, dtype=np.float64)
    if scores.ndim != 1 or scores.shape != returns.shape or len(scores) == 0:
        raise ValueError(
            f"fit: scores has shape {scores.shape} and returns {returns.shape}; give two (S,) arrays, S >= 1"
        )
    return _checked_unit("fit: scores", scores), _checked_unit("fit: returns", returns)


def _checked_unit(name: str, values: np.ndarray) -> np.ndarray:
    if len(values) and not (values.min() >= -RETURN_TOLERANCE and values.max() <= 1 + RETURN_TOLERANCE):  # also NaN
        raise ValueError(
            f"{name} must lie in [0, 1], got [{values.min()}, {values.max()}]; scores are expected utilities "
            f"in [0, 1], and rewards must be scaled so that an episode's return is in [0, 1] too"
        )
    return np.clip(values, 0.0, 1.0)


def _logit(h: np.ndarray) -> np.ndarray:
    h = np.clip(h, 1e-6, 1 - 1e-6)
    return np.log(h) - np.log1p(-h)


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -z))
