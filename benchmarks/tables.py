"""Writes the tables of `benchmarks/README.md`, and the short ones of `README.md`, from `benchmarks/results`.

No number is copied by hand:

    python -m benchmarks.tables
"""

import json
from pathlib import Path
from typing import Any

from benchmarks._common import markdown
from benchmarks.learning.estimators import summarise
from benchmarks.learning.runner import ResultStore
from benchmarks.learning.suites import FRESH_SEEDS
from benchmarks.learning.tasks import TASKS

FOLDER = Path(__file__).parent
MARKER = "<!-- Everything below is written by `python -m benchmarks.tables`. -->\n"


LEARNING = (
    "<!-- results: written by `python -m benchmarks.tables` from benchmarks/results/learning -->\n",
    "<!-- end of results -->\n",
)
COSTS = ("<!-- costs: written by `python -m benchmarks.tables` -->\n", "<!-- end of costs -->\n")


def main() -> None:
    readme = FOLDER.parent / "README.md"
    for path, fill in ((FOLDER / "README.md", with_tables), (readme, with_costs), (readme, with_learning)):
        path.write_text(fill(path.read_text(encoding="utf-8")), encoding="utf-8")


def with_tables(text: str) -> str:
    """The text up to the marker, and a section for every result."""
    results = [result(path.stem) for path in sorted((FOLDER / "results").glob("*.json"))]
    order = ["update", "vs_ppo_trainer", "rollout", "scoring", "environments", "soak", "attacks", "import_time"]
    results.sort(key=lambda result: order.index(result["benchmark"]))
    return text.split(MARKER)[0] + MARKER + "".join(map(section, results))


def result(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / "results" / f"{name}.json").read_text(encoding="utf-8"))


def with_learning(text: str) -> str:
    """The text with the headline rows of the learning benchmark between the two markers."""
    before, rest = text.split(LEARNING[0])
    return f"{before}{LEARNING[0]}{headlines(ResultStore())}\n{LEARNING[1]}{rest.split(LEARNING[1])[1]}"


def headlines(store: ResultStore) -> str:
    """A row per task, a column per arm: mean AUC over the seeds, the worst seed's and the number of seeds."""
    arms = {
        "MISE": "mise",
        "sparse PPO": "sparse",
        "MISE-GRPO": "mise-grpo",
        "TRL's GRPO": "grpo",
        "judge of the past": "prefix",
        "MISE without patience": "impatient",
    }
    rows = []
    for task in TASKS.values():
        runs = [run for run in store.runs(task.name) if run["seed"] not in FRESH_SEEDS]
        cells = {title: _area([run for run in runs if run["arm"] == arm]) for title, arm in arms.items()}
        if any(cells.values()):
            rows.append({"task": task.headline, **cells})
    return markdown(rows)


def _area(runs: list[dict[str, Any]]) -> str:
    if not runs:
        return ""
    summary = summarise([run["curves"]["env/success"] for run in runs])
    return f"{summary.auc:.2f} ({summary.worst:.2f}; {summary.seeds})"


def with_costs(text: str) -> str:
    """The text with the ratios that a user asks about first between the two markers."""
    before, rest = text.split(COSTS[0])
    after = rest.split(COSTS[1])[1]
    update, single, rollout = result("update"), result("vs_ppo_trainer"), result("rollout")
    tokens, turns = update["settings"]["episode_tokens"], update["settings"]["turns"]
    ours = [row(single, f"ours, value {kind}") for kind in ("model", "head")]
    speed, memory = ([of[f"{what} / TRL's"] for of in ours] for what in ("speed", "memory"))
    scoring = row(result("scoring_0.5b"), "cached_packed")
    lines = [
        {
            "": f"a whole iteration with MISE, {turns} turns and {tokens:.0f} tokens an episode",
            "ratio": f"{row(update, 'whole iteration')['MISE / PPO']:.2f} x the same PPO without it",
        },
        {
            "": "an update of a single-turn PPO, vocabulary 150,000",
            "ratio": f"{speed[0]:.2f} x TRL's speed, {memory[0]:.2f} x its memory "
            f"(with our value head {speed[1]:.2f} x and {memory[1]:.2f} x)",
        },
        {
            "": f"rollout with the cache kept, {rollout['settings']['turns']} turns",
            "ratio": f"{row(rollout, 'kept cache')['speed / first']:.1f} x the speed of reading from the beginning",
        },
        {
            "": "15 questions about 1,024 tokens in one pass of their own, a 0.5B model",
            "ratio": f"{scoring['/ unit']:.2f} x one forward; {scoring['naive /']:.1f} x cheaper than one by one",
        },
    ]
    return f"{before}{COSTS[0]}{markdown(lines)}\n{COSTS[1]}{after}"


def row(of: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in of["rows"] if name in row.values())


def section(result: dict[str, Any]) -> str:
    settings = ", ".join(f"{name} {_short(value)}" for name, value in result["settings"].items())
    where = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    return f"\n### {result['benchmark']}: {settings}\n\n{markdown(result['rows'])}\n\n{where}\n"


def _short(value: Any) -> str:
    return f"{value:.0f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
