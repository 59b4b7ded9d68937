"""Runs a suite, or any cells of one's own.

python -m benchmarks.learning --suite ci          # the headline rows again; fails where they no longer hold
python -m benchmarks.learning --suite full        # everything in docs/results.md, and that file
python -m benchmarks.learning --tasks kitchen --arms sparse mise --seeds 0 1
python -m benchmarks.learning --tasks shop --arms sparse --seeds 100 101 --set learning_rate=8e-4
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks._common import markdown
from benchmarks.learning import report
from benchmarks.learning.arms import ARMS
from benchmarks.learning.estimators import area, final
from benchmarks.learning.runner import RESULTS, Cell, ResultStore, run_cells
from benchmarks.learning.suites import CLAIMS, SUITES, areas_of, missing_for
from benchmarks.learning.tasks import TASKS


def main(argv: list[str] | None = None) -> None:
    options = _arguments().parse_args(argv)
    if options.suite is not None:
        run_suite(options)
        return
    store = ResultStore(options.results)
    variant = dict(_setting(text) for text in options.set)
    cells = [Cell(t, a, s, variant) for s in options.seeds for t in options.tasks for a in options.arms]
    runs = run_cells(cells, store, jobs=options.jobs)
    print(markdown([_row(run) for run in runs]))


def run_suite(options: argparse.Namespace) -> None:
    """`ci`: runs everything afresh and fails where a claim does not hold. `full`: what is missing, and the report."""
    if options.suite == "full":
        run_cells(SUITES["full"], ResultStore(options.results), jobs=options.jobs)
        report.main()
        return
    with tempfile.TemporaryDirectory() as folder:
        runs = run_cells(SUITES["ci"], ResultStore(Path(folder)), jobs=options.jobs)
    areas = areas_of(runs)
    claims = [claim for claim in CLAIMS if claim.in_ci and not missing_for(claim, areas)]
    print(markdown([_row(run) for run in runs]))
    print(report.claims_table(runs))
    # One seed cannot show how bad the worst of many is; the direction it must show.
    wrong = [claim for claim in claims if not claim.in_direction(areas)]
    if wrong:
        raise SystemExit(f"no longer so: {'; '.join(f'{claim.task}: {claim.text}' for claim in wrong)}")


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=sorted(SUITES), help="instead of --tasks, --arms and --seeds")
    parser.add_argument("--tasks", nargs="+", choices=sorted(TASKS), default=["kitchen"])
    parser.add_argument("--arms", nargs="+", choices=sorted(ARMS), default=["sparse", "mise"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--set", nargs="*", default=[], metavar="OPTION=VALUE", help="over the arms' options")
    parser.add_argument("--jobs", type=int, help="runs at a time, one thread each; default: one per core")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where finished runs are kept")
    return parser


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise SystemExit(f"--set {text!r}: write option=value, e.g. --set learning_rate=1e-3")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _row(run: dict[str, Any]) -> dict[str, Any]:
    success = run["curves"]["env/success"]
    return {
        "task": run["task"],
        "arm": run["arm"],
        "seed": run["seed"],
        "AUC": area(success),
        "final": final(success),
        "seconds": run["seconds"],
    }


if __name__ == "__main__":
    main()
