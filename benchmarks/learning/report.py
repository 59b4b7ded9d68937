"""Writes `docs/results.md` and its plots from `benchmarks/results/learning/*.jsonl`; no number is copied by hand.

python -m benchmarks.learning.report
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._common import markdown
from benchmarks.learning.arms import ARMS
from benchmarks.learning.estimators import bootstrap_band, paired_ratios, summarise
from benchmarks.learning.runner import ResultStore
from benchmarks.learning.suites import CLAIMS, FRESH_SEEDS, Claim, areas_of, missing_for, ratio_text
from benchmarks.learning.tasks import TASKS

ROOT = Path(__file__).parents[2]
RESULTS_PAGE = ROOT / "docs" / "results.md"
ASSETS = ROOT / "docs" / "assets"
COLOURS = {
    "mise": "#1f5a99",
    "sparse": "#8a8a8a",
    "grpo": "#c8501e",
    "mise-grpo": "#6aa84f",
    "impatient": "#5bb0c9",
    "prefix": "#8e63b0",
    "flipped": "#c9a227",
}
"""Arms in the plots, the first six of them that a task has; more lines cannot be read."""
MOST_LINES = 6

JUDGED, JUDGES = "kitchen-1%-biased", ("mise", "uncalibrated", "step", "frozen")
"""Whose judges are drawn."""

Runs = list[dict[str, Any]]


def main() -> None:
    stored = {name: ResultStore().runs(name) for name in TASKS}
    ours = {name: [run for run in of_task if run["arm"] in ARMS] for name, of_task in stored.items()}
    runs = {name: [run for run in of_task if run["seed"] not in FRESH_SEEDS] for name, of_task in ours.items()}
    fresh = [run for of_task in ours.values() for run in of_task if run["seed"] in FRESH_SEEDS]
    searches = {name: [run for run in of_task if run["arm"] not in ARMS] for name, of_task in stored.items()}
    RESULTS_PAGE.write_text(page(runs, searches, fresh), encoding="utf-8")
    for name, of_task in runs.items():
        if of_task:
            plot_learning(TASKS[name].headline, of_task, ASSETS / f"results-{_file_name(name)}.png")
    plot_judges(runs, ASSETS / "results-judges.png")


def page(runs: dict[str, Runs], searches: dict[str, Runs], fresh: Runs) -> str:
    """The text of `docs/results.md`."""
    shown = [run for of_task in runs.values() for run in of_task]
    everything = [*shown, *fresh]
    hours = sum(run["seconds"] for run in everything) / 3600
    machines = sorted({run["machine"] for run in everything})
    parts = [
        "# Results\n",
        "Written by `python -m benchmarks.learning.report` from `benchmarks/results/learning/*.jsonl`, which",
        "`python -m benchmarks.learning --suite full` fills. Do not edit.\n",
        f"{len(everything)} runs, {hours:.1f} hours of one core each, on {', '.join(machines)}.",
        "Success is that of the *sampled training episodes*: **AUC** is its mean over a run, **final** over the",
        "last 10 updates, both averaged over seeds; **95%** is a bootstrap band of the mean AUC over seeds (with so",
        "few too narrow), **worst** the AUC of the worst seed, **/ sparse** the least ratio of AUCs of a pair of the",
        "same seed. All arms of a task start from the same weights (but for what machines round differently) and",
        "share PPO settings and episodes. The policies are those of [`README.md`](../README.md#results):",
        "from-scratch decoders with 0.1M parameters. PPO's runs in the shop and in TextWorld may be from before there",
        "was patience: every batch there has successes and failures, so that it never holds.\n",
        "## What the default must show\n",
        claims_table(shown),
        "",
        *fresh_section(fresh),
    ]
    for name, of_task in runs.items():
        if of_task:
            parts += task_section(name, of_task, searches[name])
    parts += [
        "## The judges\n",
        "![Judges: agreement with the outcome, and where in the episode praise goes](assets/results-judges.png)\n",
        "`python -m benchmarks.learning.report`. An episode's score is the mean of its steps', on episodes that the",
        "judge has not been calibrated on yet. It need not be the probability of winning: scores are normalised.",
        "",
    ]
    return "\n".join(parts)


def fresh_section(runs: Runs) -> list[str]:
    """What is claimed, on the seeds that no choice has seen; the other tables leave them out."""
    if not runs:
        return []
    areas = areas_of(runs)
    return [
        f"## The same on seeds {FRESH_SEEDS.start} to {FRESH_SEEDS.stop - 1}\n",
        "Run once, after every choice was made: that patience should be the default was decided with its rows on",
        "seeds 0 to 5 in view. The claims about these arms only; the tables and plots below leave the runs out.\n",
        claims_table(runs, [claim for claim in CLAIMS if not missing_for(claim, areas)]),
        "",
    ]


def claims_table(runs: Runs, claims: Sequence[Claim] = CLAIMS) -> str:
    """Every claim with its figures; those that fail stand here too."""
    areas = areas_of(runs)
    rows = []
    for claim in claims:
        row = {"task": claim.task, "claim": claim.text}
        if missing_for(claim, areas):
            rows.append({**row, "holds": "not run", "figures": ""})
        else:
            holds, figures = claim.check(areas)
            rows.append({**row, "holds": "yes" if holds else "**no**", "figures": figures})
    return markdown(rows)


def task_section(name: str, runs: Runs, searches: Runs) -> list[str]:
    """Table, plot and commands of a task."""
    title = TASKS[name].headline
    arms = [arm for arm in ARMS if any(run["arm"] == arm for run in runs)]
    seeds = sorted({run["seed"] for run in runs})
    command = (
        f"python -m benchmarks.learning --tasks {name} --arms {' '.join(arms)} --seeds {' '.join(map(str, seeds))}"
    )
    lines = [
        f"## {title} (`{name}`)\n",
        markdown([arm_row(arm, runs) for arm in arms]),
        "",
        f"![Success over episodes](assets/results-{_file_name(name)}.png)\n",
        f"`{command}` (or `--suite full`), about {statistics.mean(run['seconds'] for run in runs):.0f} s a run.",
        "",
    ]
    if searches:
        names = sorted({run["arm"] for run in searches})
        lines += [
            "Other settings that were tried (seeds of their own):\n",
            markdown([arm_row(arm, searches, title=arm) for arm in names]),
            "",
        ]
    return lines


def arm_row(arm: str, runs: Runs, title: str | None = None) -> dict[str, Any]:
    of_arm = [run for run in runs if run["arm"] == arm]
    summary = summarise([run["curves"]["env/success"] for run in of_arm])
    areas = areas_of(runs)
    task = of_arm[0]["task"]
    ratios = paired_ratios(areas[task, arm], areas.get((task, "sparse"), {}))
    return {
        "arm": title or ARMS[arm].title,
        "name": f"`{arm}`",
        "seeds": summary.seeds,
        "AUC": f"{summary.auc:.3f}",
        "95%": f"{summary.low:.2f}–{summary.high:.2f}",
        "worst": f"{summary.worst:.3f}",
        "final": f"{summary.final:.2f}",
        "/ sparse": ratio_text(ratios) if ratios and arm != "sparse" else "",
    }


def _label(arm: str, runs: Runs) -> str:
    """Of a line in a plot: the arm, and how many seeds it has."""
    return f"{ARMS[arm].title.strip('*… ')} ({len(runs)})"


def plot_learning(title: str, runs: Runs, path: Path) -> None:
    """Success over episodes, mean of the seeds with a 95% bootstrap band."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(7, 3.6))
    shown = {arm: of_arm for arm in COLOURS if (of_arm := [run for run in runs if run["arm"] == arm])}
    for arm, of_arm in list(shown.items())[:MOST_LINES]:
        curves = np.array([run["curves"]["env/success"] for run in of_arm], dtype=float)  # (seeds, updates)
        episodes = (np.arange(curves.shape[1]) + 1) * of_arm[0]["settings"]["total_episodes"] / curves.shape[1]
        curves = _smooth(curves)
        low, high = bootstrap_band(curves)
        axes.plot(episodes, curves.mean(axis=0), color=COLOURS[arm], linewidth=2, label=_label(arm, of_arm))
        axes.fill_between(episodes, low, high, color=COLOURS[arm], alpha=0.18, linewidth=0)
    axes.set(title=title, xlabel="episodes", ylabel="success (sampled)", ylim=(-0.02, 1.02))
    axes.legend(frameon=False, fontsize=8, title="arm (seeds)", title_fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def plot_judges(runs: dict[str, Runs], path: Path) -> None:
    """AUROC and Brier score over training, reliability, and the score by step."""
    plt = _pyplot()
    figure, panels = plt.subplots(2, 2, figsize=(9, 6.4))
    panels = panels.flatten()
    for arm, colour in zip(JUDGES, ("#1f5a99", "#6aa84f", "#c8501e", "#8a8a8a"), strict=True):
        of_arm = [run for run in runs.get(JUDGED, []) if run["arm"] == arm and run["by_step"]]
        if not of_arm:
            continue
        for panel, metric in zip(panels, ("hindsight/auroc", "hindsight/brier"), strict=False):
            curves = np.array([run["curves"][metric] for run in of_arm], dtype=float)
            panel.plot(_smooth(curves).mean(axis=0), color=colour, label=_label(arm, of_arm))
        panels[2].plot(*_reliability(of_arm), "o-", markersize=4, color=colour)
        panels[3].plot(np.mean([run["by_step"] for run in of_arm], axis=0), color=colour)
    panels[2].plot([0, 1], [0, 1], color="#cccccc", linewidth=1, zorder=0)
    titles = (
        ("AUROC of the episode's score", "update"),
        ("Brier score of the episode's score", "update"),
        ("calibration curve: share won by score", "mean score of the episode"),
        ("mean score by step, last update", "step"),
    )
    for panel, (title, xlabel) in zip(panels, titles, strict=True):
        panel.set(title=title, xlabel=xlabel, ylim=(-0.02, 1.02))
    if panels[0].lines:
        panels[0].legend(frameon=False, fontsize=8, title="arm (seeds)", title_fontsize=8)
    figure.suptitle(TASKS[JUDGED].headline, fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _reliability(runs: Runs) -> tuple[np.ndarray, np.ndarray]:
    """Mean score and share won of the bins, over all seeds; bins of a few episodes say nothing and are left out."""
    bins: dict[int, list[list[float]]] = {}
    for run in runs:
        for count, score, won in run.get("reliability", []):
            bins.setdefault(min(int(score * 10), 9), []).append([count, score, won])
    merged = [np.array(rows) for _, rows in sorted(bins.items()) if sum(row[0] for row in rows) >= 20]
    means = [(rows[:, 1:] * rows[:, :1]).sum(axis=0) / rows[:, 0].sum() for rows in merged]
    scores, won = np.array(means).reshape(-1, 2).T
    return scores, won


def _smooth(curves: np.ndarray, width: int = 3) -> np.ndarray:
    """Running mean along the second axis, over what is defined."""
    padded = np.stack([np.roll(curves, shift, axis=1) for shift in range(width)])
    for shift in range(width):
        padded[shift, :, :shift] = np.nan
    with np.errstate(invalid="ignore"):
        counts = np.isfinite(padded).sum(axis=0)
        return np.where(counts > 0, np.nansum(padded, axis=0) / np.maximum(counts, 1), np.nan)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _file_name(task: str) -> str:
    return task.replace("%", "pc")


if __name__ == "__main__":
    main()
