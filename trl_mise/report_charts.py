"""The charts of a report: which measures belong together, and what good looks like. No torch."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .report_curves import MOST_POINTS, Chart, Curves, Look, Series, note_on, over_updates, rounded
from .report_statistics import Point, histogram, judge_summary, means_by_step, moving_average, reliability, thinned
from .run_data import EpisodeRecord, RunData

HISTOGRAM_BINS = 20

# Learning


def outcome_chart(curves: Curves, measure: str, title: str, good: str, unit: bool) -> Chart:
    """Sampled training episodes, their moving average, and the evaluations beside them."""
    sampled = curves[f"env/{measure}"]
    window = max(1, len(sampled) // 12)
    series = []
    if sampled:
        look: Look = "faint" if window > 1 else "line"
        series = [Series("training episodes (sampled)", thinned(sampled, MOST_POINTS), look, 0)]
        averaged = thinned(moving_average(sampled, window), MOST_POINTS)
        series += [Series(f"mean of the last {window}", averaged, "line", 0)] if window > 1 else []
    for k, (name, points) in enumerate(sorted(curves.evaluations(measure).items())):
        label = f"evaluation: {name}" if name else "evaluation (greedy)"
        series.append(Series(label, thinned(points, MOST_POINTS), "dots", 1 + k))
    return Chart(measure, title, good, series, x=curves.step_name, unit=unit, note=note_on(curves, [f"env/{measure}"]))


def learning_charts(curves: Curves) -> list[Chart]:
    """How the episodes went."""
    success = outcome_chart(
        curves,
        "success",
        "Success",
        "Rises, and the evaluation on held-out tasks rises with it. Training episodes are sampled, evaluations are "
        "greedy: a gap between the two is natural, one that grows is over-fitting to the training tasks.",
        unit=True,
    )
    returns = outcome_chart(
        curves,
        "return",
        "Return",
        "The sum of the environment's own rewards, without praise. It should rise with success; where it rises alone, "
        "the reward pays for something else.",
        unit=False,
    )
    length = outcome_chart(
        curves,
        "episode_length",
        "Turns per episode",
        "Falls, or stays, as the policy learns to waste no turn. Longer episodes without more success are a warning: "
        "see length hacking in docs/diagnostics.md.",
        unit=False,
    )
    rates = over_updates(
        curves,
        "rates",
        "What goes wrong in episodes",
        "All near 0. Invalid actions fall first; truncated episodes ran out of turns or tokens; errors are the "
        "environment's own failures, and teach nothing.",
        [
            ("env/invalid_action_rate", "invalid actions"),
            ("env/truncated_rate", "truncated episodes"),
            ("env/error_rate", "failed episodes"),
        ],
    )
    policy = over_updates(
        curves,
        "policy",
        "The policy",
        "KL to the reference grows slowly; entropy falls without reaching 0. A sudden leap of either: lower the "
        "learning rate.",
        [
            ("objective/kl", "KL to the reference"),
            ("kl", "KL to the reference"),
            ("policy/entropy_avg", "entropy"),
            ("entropy", "entropy"),
            ("policy/clipfrac_avg", "clipped share"),
            ("clip_ratio/region_mean", "clipped share"),
        ],
    )
    # A return that is the success says nothing new.
    told = [returns] if curves["env/return"] != curves["env/success"] or not curves["env/success"] else []
    return [success, *told, length, rates, policy]


# The judge


def thirds(run: RunData) -> list[tuple[str, list[EpisodeRecord]]]:
    """Judged training episodes of the first and of the last third of the updates (of all, where they are few)."""
    judged = [e for e in run.training if e.mean_score is not None and not e.failed]
    updates = sorted({e.update for e in judged})
    if len(updates) < 3:
        return [("all updates", judged)] if judged else []
    third = len(updates) // 3
    first, last = updates[third - 1], updates[-third]
    return [
        (_span(updates[0], first), [e for e in judged if e.update <= first]),
        (_span(last, updates[-1]), [e for e in judged if e.update >= last]),
    ]


def _span(first: int, last: int) -> str:
    return f"update {first}" if first == last else f"updates {first} to {last}"


def judge_charts(curves: Curves) -> list[Chart]:
    """Is the judge right, honest about its odds, and fair to every place?"""
    missing = "No training episode of this run has scores: hindsight was off, or its episodes were not logged."
    judged = [e for e in curves.run.training if e.mean_score is not None and not e.failed]
    return [
        _reliability_chart(curves.run, missing),
        _distribution_chart(judged, missing),
        _step_chart(judged, missing),
        over_updates(
            curves,
            "forecast",
            "The judge as a forecaster",
            "AUROC above .6 and rising: episodes that are praised win. Brier score and ECE fall. An AUROC below .5 "
            "praises what loses; that of one batch with few wins is noise.",
            [("hindsight/auroc", "AUROC"), ("hindsight/brier", "Brier score"), ("hindsight/ece", "ECE")],
            unit=True,
            marked=True,
            missing=missing,
        ),
    ]


def _reliability_chart(run: RunData, missing: str) -> Chart:
    series = []
    for k, (name, episodes) in enumerate(thirds(run)):
        scores, won = np.array([e.mean_score for e in episodes]), np.array([e.success for e in episodes])
        bins = reliability(scores, won)
        counts = [b.count for b in bins]
        series.append(Series(name, [(b.score, b.won) for b in bins], "line", 1 - k, counts))
    if series:
        series.append(Series("perfectly calibrated", [(0.0, 0.0), (1.0, 1.0)], "diagonal", 5))
    return Chart(
        "reliability",
        "Reliability",
        "Points near the diagonal: of the episodes with a mean score of .7, seven in ten won. Points above it: the "
        "judge is too strict; below: too kind. A steep line is fine (only a matter of scale), a flat or falling one "
        "is not.",
        series,
        x="mean score of the episodes in a bin",
        y="share that won",
        unit=True,
        missing=missing,
    )


def _distribution_chart(judged: Sequence[EpisodeRecord], missing: str) -> Chart:
    series = []
    for name, won, colour in (("steps of won episodes", True, 0), ("steps of lost episodes", False, 1)):
        values = [e.scores[np.isfinite(e.scores)] for e in judged if e.success is won]
        if values:
            counts = histogram(np.concatenate(values), HISTOGRAM_BINS)
            total = sum(counts)
            points = [((k + 0.5) / HISTOGRAM_BINS, count / total) for k, count in enumerate(counts)]
            series.append(Series(f"{name} ({total:,})", points, "bar", colour, counts))
    edges = [f"{k / HISTOGRAM_BINS:.2f}" for k in range(HISTOGRAM_BINS)]
    return Chart(
        "distribution",
        "Scores of won and of lost episodes",
        "Two hills that overlap: steps of won episodes further right. Two needles at 0 and 1 mean that the judge saw "
        "the outcome and nothing else (try evaluator_view='masked'); one needle, that it says the same of everything.",
        series,
        x="score, from",
        y="share of the steps",
        categories=edges,
        missing=missing,
    )


def _step_chart(judged: Sequence[EpisodeRecord], missing: str) -> Chart:
    groups = {
        "won": means_by_step([e.scores for e in judged if e.success]),
        "lost": means_by_step([e.scores for e in judged if not e.success]),
    }
    series = [
        Series(f"{name} episodes", [(m.first + 1.0, m.mean) for m in means], "line", k, [m.count for m in means])
        for k, (name, means) in enumerate(groups.items())
        if means
    ]
    wide = any(mean.last > mean.first for means in groups.values() for mean in means)
    return Chart(
        "by-step",
        "Score by step",
        "Flat, or as the task is. Where one end is always praised, the judge praises a place, not a step: reword "
        "hindsight_prompt so that it does not name the step's number.",
        series,
        x="step (from)" if wide else "step",
        y="mean score",
        unit=True,
        missing=missing,
    )


def judge_table(run: RunData) -> list[tuple[str, dict[str, float]]]:
    """Rows of the table beside the charts: first and last third of the updates, and all of them."""
    groups = thirds(run)
    if len(groups) > 1:
        groups.append(("all updates", list(run.training)))
    return [(name, judge_summary(episodes, run.utilities)) for name, episodes in groups]


# Health and time


def health_charts(curves: Curves) -> list[Chart]:
    """Does the judge tell steps apart, and is it listened to?"""
    told: dict[str, Any] = {
        "marked": True,
        "missing": "Nothing is known of the judge's health: hindsight was off, or nothing was logged.",
    }
    return [
        over_updates(
            curves,
            "credit",
            "Does the judge tell steps apart?",
            "Spread within an episode well above 0: this is the credit there is to give. The gap between won and lost "
            "grows slowly; large from the start beside a spread near 0, the outcome leaks into the scores.",
            [
                ("hindsight/within_episode_spread", "spread within an episode"),
                ("hindsight/score_gap", "gap, won minus lost"),
                ("hindsight/score_mean", "mean score"),
                ("hindsight/unreadable_rate", "unreadable evaluations"),
            ],
            **told,
        ),
        over_updates(
            curves,
            "information",
            "What verdicts say, in nats",
            "Information well above 0; a fall while success rises is natural. Near 0 from the start: collapsed "
            "verdicts. Entropy near 0: the judge is always sure.",
            [
                ("mise/mutual_information", "information about actions"),
                ("mise/kl_to_proxy", "KL to the verdicts asked for"),
                ("hindsight/verdict_entropy", "entropy of a verdict"),
            ],
            **told,
        ),
        over_updates(
            curves,
            "gate",
            "Is the judge listened to?",
            "Gate at 1: praise and return agree. It closes while they do not, which is its purpose. The share of "
            "praise in what steps get: below .3 once episodes succeed, otherwise lower hindsight_coef.",
            [("hindsight/gate", "gate"), ("hindsight/shaping_share", "share of praise")],
            unit=True,
            **told,
        ),
        over_updates(
            curves,
            "agreement",
            "Praise and advantage agree?",
            "Above 0: what is praised does better than expected. Below 0 the gate closes; at -2 it is at .05.",
            [("hindsight/agreement_z", "agreement, in standard errors")],
            **told,
        ),
        over_updates(
            curves,
            "calibration",
            "Calibration",
            "The loss falls from .69 (knows nothing) once there are won and lost episodes to compare; the anchor "
            "stays small. Nothing is learned while all episodes end alike.",
            [
                ("calibration/loss", "loss"),
                ("calibration/anchor", "anchor"),
                ("calibration/reward", "reward of written verdicts"),
            ],
            **told,
        ),
    ]


PHASES = {
    "rollout": "rollout (playing)",
    "evaluate": "evaluate (log-probabilities)",
    "scoring": "scoring (the judge)",
    "update": "update (training)",
    "calibrate": "calibrate (the judge)",
    "evaluation": "evaluation episodes",
    "finish": "finish",
    "other": "other",
}


def phases(curves: Curves) -> list[tuple[str, str, list[Point]]]:
    """(phase, its name, seconds per update) in the order of an update; phases that nobody listed come last."""
    found = [name.removeprefix("time/") for name in curves.logged if name.startswith("time/")]
    order = [*(p for p in PHASES if p in found), *sorted(p for p in found if p not in PHASES)]
    return [(phase, PHASES.get(phase, phase), curves.logged[f"time/{phase}"]) for phase in order]


def time_chart(curves: Curves) -> Chart:
    """Seconds of every update, phase by phase."""
    rows = phases(curves)
    steps = sorted({x for _, _, points in rows for x, _ in points})
    series = []
    for k, (_, name, points) in enumerate(rows):
        seconds = dict(points)
        series.append(Series(name, thinned([(x, seconds.get(x, 0.0)) for x in steps], MOST_POINTS), "bar", k))
    width = -(-len(steps) // MOST_POINTS)
    return Chart(
        "time",
        "Seconds of an update",
        "Rollouts take most of it where actions are sampled one token at a time; the judge (scoring, calibrate) "
        "should be a small part. See What it costs in README.md.",
        series,
        x=curves.step_name,
        y="seconds",
        categories=[f"{rounded(x)}" for x, _ in series[0].points] if series else (),
        stacked=True,
        note=f"Each bar is the mean of {width} logged values." if width > 1 else "",
        missing="This run did not record what its phases took.",
    )


def time_table(curves: Curves) -> list[tuple[str, float, float]]:
    """(phase, mean seconds of an update, share), longest first."""
    rows_of = phases(curves)
    updates = len({x for _, _, points in rows_of for x, _ in points})
    # Over all updates: an evaluation that takes place now and then is a small part of the average update.
    means = [(name, sum(y for _, y in points) / updates) for _, name, points in rows_of]
    total = sum(seconds for _, seconds in means)
    rows = [(name, seconds, seconds / total if total > 0 else 0.0) for name, seconds in means]
    return sorted(rows, key=lambda row: -row[1])
