"""`trl-mise report`: one HTML file about a run."""

from collections.abc import Sequence
from pathlib import Path

from .common import new_parser


def main(argv: Sequence[str]) -> int:
    parser = new_parser("report", "Make one HTML file of a run: curves, calibration, health, timings, episodes.")
    parser.add_argument("run_dir", type=Path, help="output_dir of the run; it may still be going on")
    parser.add_argument("--output", type=Path, help="the file; default: RUN_DIR/report.html")
    parser.add_argument(
        "--max_megabytes", type=float, default=5.0, help="texts of some episodes are left out beyond; default: 5"
    )
    options = parser.parse_args(argv)
    from ..report import write_report

    path = write_report(options.run_dir, options.output, max_megabytes=options.max_megabytes)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB): open it in a browser, it needs no network")
    return 0
