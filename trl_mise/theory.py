"""Why hindsight self-evaluation works, as pure functions on tables (numpy, nats).

Write `q(e|s,a)` for the verdict distribution, `q(e|s) = sum_a pi(a|s) q(e|s,a)`, `Z = sum_e exp(u_e / beta)`,
`p_R(e) = exp(u_e / beta) / Z` and `pi_R(a|s) = pi(a|s) q(good|s,a) / q(good|s)`. At every state s

    E_a KL( q(.|s,a) || p_R )  =  I(A;E|s) + KL( q(.|s) || p_R )
    E_{a,e}[u_e]               =  -beta [ I(A;E|s) + KL( q(.|s) || p_R ) ] - beta H(E|s,A) + beta log Z
    E_a[ log q(good|s,a) ]     =  -KL( pi(.|s) || pi_R(.|s) ) + log q(good|s)

The paper (arXiv 2604.11611) announces a theorem of this kind; the derivation here is this project's own, and
`tests/test_theory.py` checks the three lines on random tables.
"""

import numpy as np


def entropy(p: np.ndarray) -> np.ndarray:
    """Shannon entropy `H(p) = -sum_k p_k log p_k`, with `0 log 0 = 0`.

    Args:
        p (`np.ndarray`): `(..., K)` probabilities.

    Returns:
        `np.ndarray`: `(...)` nats.
    """
    p = np.asarray(p, dtype=np.float64)
    return -(p * _log_or_zero(p)).sum(axis=-1)


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Kullback-Leibler divergence `KL(p || q) = sum_k p_k log(p_k / q_k)`; infinite where `q_k = 0 < p_k`.

    Args:
        p (`np.ndarray`): `(..., K)` probabilities.
        q (`np.ndarray`): `(..., K)` probabilities, broadcast against `p`.

    Returns:
        `np.ndarray`: `(...)` nats.
    """
    p, q = np.broadcast_arrays(np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64))
    divergence = (p * (_log_or_zero(p) - _log_or_zero(q))).sum(axis=-1)
    return np.where(((q == 0) & (p > 0)).any(axis=-1), np.inf, divergence)


def proxy_distribution(utilities: np.ndarray, beta: float) -> np.ndarray:
    """The verdict distribution that the reward asks for, `p_R(e) ∝ exp(u_e / beta)`.

    Args:
        utilities (`np.ndarray`): `(K,)` u_e.
        beta (`float`): temperature, > 0.

    Returns:
        `np.ndarray`: `(K,)` probabilities.
    """
    return np.exp(_tilt(utilities, beta) - log_partition(utilities, beta))


def log_partition(utilities: np.ndarray, beta: float) -> float:
    """`log Z = log sum_e exp(u_e / beta)`: `beta * log Z` is the constant of the expected-utility identity.

    Args:
        utilities (`np.ndarray`): `(K,)` u_e.
        beta (`float`): temperature, > 0.
    """
    tilt = _tilt(utilities, beta)
    return float(tilt.max() + np.log(np.exp(tilt - tilt.max()).sum()))


def mutual_information_table(pi: np.ndarray, q: np.ndarray) -> float:
    """`I(A;E|s) = sum_a pi(a|s) KL(q(.|s,a) || q(.|s))` at one state; 0 when the verdict ignores the action.

    Args:
        pi (`np.ndarray`): `(A,)` pi(a|s).
        q (`np.ndarray`): `(A, K)` q(e|s,a), a row per action.

    Returns:
        `float`: nats.
    """
    pi, q = np.asarray(pi, dtype=np.float64), np.asarray(q, dtype=np.float64)
    if pi.ndim != 1 or q.ndim != 2 or len(pi) != len(q):
        raise ValueError(
            f"mutual_information_table: pi has shape {pi.shape} and q {q.shape}; give pi as (A,) and q as (A, K)"
        )
    taken = pi > 0  # an action that is never taken says nothing, whatever its verdicts
    return float(pi[taken] @ kl(q[taken], pi @ q))


def proxy_policy(pi: np.ndarray, q_good: np.ndarray) -> np.ndarray:
    """The policy that praise pulls towards, `pi_R(a|s) = pi(a|s) q(good|s,a) / q(good|s)`.

    Args:
        pi (`np.ndarray`): `(A,)` pi(a|s).
        q_good (`np.ndarray`): `(A,)` q(good|s,a); some action that pi takes must have q_good > 0.

    Returns:
        `np.ndarray`: `(A,)` probabilities.
    """
    praised = np.asarray(pi, dtype=np.float64) * np.asarray(q_good, dtype=np.float64)
    if not praised.sum() > 0:
        raise ValueError(
            "proxy_policy: q(good|s) is 0, no action that pi takes is ever called good; pi_R is undefined"
        )
    return praised / praised.sum()


def _tilt(utilities: np.ndarray, beta: float) -> np.ndarray:
    if not beta > 0:
        raise ValueError(f"beta must be > 0, got {beta}; it is the temperature of p_R(e) ∝ exp(u_e / beta)")
    return np.asarray(utilities, dtype=np.float64) / beta


def _log_or_zero(p: np.ndarray) -> np.ndarray:
    """log p, and 0 where p is 0 (the factor in front of it is 0 there, or the caller says what happens)."""
    return np.log(np.where(p > 0, p, 1.0))
