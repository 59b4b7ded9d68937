"""Written evaluations: a short reason, then the verdict; parsed strictly, rewarded for agreeing with the return.

This is the generative self-evaluation of arXiv 2604.11611, whose calibration reward is not public: the rewards below
("Written verdicts" in the docs) are this project's own derivation. numpy only.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True, slots=True)
class WrittenVerdict:
    """What the evaluator wrote about one step.

    Args:
        token_ids (`tuple[int, ...]`): `(L,)` what it read (trajectory in view and question) and then wrote.
        start (`int`): where its own tokens begin.
        text (`str`): what it wrote.
        verdict (`int`, *optional*): index of the verdict; `None` where there is none to be read.
        log_probs (`tuple[float, ...]`): `(L - start,)` of its tokens, under the weights that wrote them.
    """

    token_ids: tuple[int, ...]
    start: int
    text: str
    verdict: int | None
    log_probs: tuple[float, ...] = ()


def parse_verdict(text: str, verdicts: Sequence[str]) -> int | None:
    """The verdict that a text ends with: a colon, one of the verdicts, at most a full stop.

    Strict on purpose: a judge that is guessed at says what the guesser likes to hear. A text in which a verdict also
    follows an earlier colon is read as none, whatever the last one says. Case and blanks do not matter.

    Args:
        text (`str`): as decoded, without the stop token.
        verdicts (`Sequence[str]`): K words or phrases.

    Returns:
        `int`, *optional*: index into `verdicts`.
    """
    words = sorted((" ".join(verdict.split()).casefold() for verdict in verdicts), key=len, reverse=True)
    pattern = "|".join(r"\s+".join(re.escape(part) for part in word.split()) for word in words)
    folded = text.casefold()
    last = re.search(rf":\s*({pattern})\s*[.!]?\s*$", folded)
    # Lookahead, so that what the last one takes up does not hide another.
    if last is None or len(re.findall(rf":(?=\s*(?:{pattern})\b)", folded)) != 1:
        return None
    found = " ".join(last[1].split())
    return next(i for i, verdict in enumerate(verdicts) if " ".join(verdict.split()).casefold() == found)


def calibration_rewards(
    utilities: Sequence[np.ndarray], returns: np.ndarray, target: Literal["sum", "step"]
) -> list[np.ndarray]:
    """What each written verdict earns for its agreement with the return, by the Brier score (a proper rule).

        target "step":   r_t = -(u_t - R)^2                               every verdict is a forecast of the return
        target "sum":    r_t = (p_{-t} - R)^2 - (p - R)^2,  p = mean_t u_t      what the verdict adds to the
                                                                          episode's forecast p

    with `p_{-t}` the forecast in which step t's utility is replaced by the mean of the batch (a difference reward,
    Wolpert and Tumer, 2001). "sum" leaves free which steps of an episode are praised, as the target "sum" of the
    expected verdicts does; "step" pulls all verdicts of an episode to its outcome.

    Args:
        utilities (`Sequence[np.ndarray]`): `(T_n,)` u_t in [0, 1] of each of N episodes; NaN = not readable, which
            earns NaN and counts for nothing.
        returns (`np.ndarray`): `(N,)` R in [0, 1].
        target (`"sum"` or `"step"`): see above.

    Returns:
        `list[np.ndarray]`: `(T_n,)` rewards.
    """
    if target not in ("sum", "step"):
        raise ValueError(f"target={target!r} is unknown; choose 'sum' or 'step'")
    returns = np.asarray(returns, dtype=np.float64)
    if returns.shape != (len(utilities),) or not ((returns >= 0) & (returns <= 1)).all():
        raise ValueError(f"returns must be ({len(utilities)},) numbers in [0, 1], got {returns}")
    if target == "step":
        return [-((u - outcome) ** 2) for u, outcome in zip(utilities, returns, strict=True)]
    known = np.concatenate([u[np.isfinite(u)] for u in utilities]) if len(utilities) else np.zeros(0)
    mean = float(known.mean()) if len(known) else 0.5
    rewards = []
    for u, outcome in zip(utilities, returns, strict=True):
        count = int(np.isfinite(u).sum())
        forecast = float(np.nansum(u)) / count if count else float("nan")
        without = forecast + (mean - u) / max(count, 1)
        rewards.append((without - outcome) ** 2 - (forecast - outcome) ** 2)
    return rewards


def balanced_advantages(rewards: Sequence[np.ndarray], won: np.ndarray) -> list[np.ndarray]:
    """Centred and of unit scale, with won and lost episodes of equal weight in the whole and in the sum.

    Without the balance a judge that succeeds on a failing policy learns to condemn everything.

    Args:
        rewards (`Sequence[np.ndarray]`): `(T_n,)` of N episodes; NaN = left out.
        won (`np.ndarray`): `(N,)` bool.

    Returns:
        `list[np.ndarray]`: `(T_n,)` advantages, 0 where left out; all 0 while a class is missing.
    """
    won = np.asarray(won, dtype=bool)
    advantages = [np.zeros(len(r)) for r in rewards]
    classes = [
        np.concatenate([r[np.isfinite(r)] for r, w in zip(rewards, won, strict=True) if w == wanted] or [np.zeros(0)])
        for wanted in (True, False)
    ]
    if min(len(values) for values in classes) == 0:
        return advantages
    centre = (classes[0].mean() + classes[1].mean()) / 2
    total = len(classes[0]) + len(classes[1])
    weights = {True: total / (2 * len(classes[0])), False: total / (2 * len(classes[1]))}
    scale = np.sqrt(sum(((values - centre) ** 2).mean() for values in classes) / 2)
    for values, r, w in zip(advantages, rewards, won.tolist(), strict=True):
        readable = np.isfinite(r)
        values[readable] = weights[w] * (r[readable] - centre) / max(float(scale), 1e-6)
    return advantages
