"""`trl-mise env`: versions, for a bug report."""

from collections.abc import Sequence

from .. import versions
from ..envs.registry import ENVIRONMENTS
from .common import new_parser


def main(argv: Sequence[str]) -> int:
    new_parser("env", "Print the versions of what is installed; paste them into a bug report.").parse_args(argv)
    rows = versions.report(devices=True)
    rows["environments"] = ", ".join(spec.name for spec in ENVIRONMENTS.values() if spec.is_installed)
    width = max(map(len, rows))
    print("\n".join(f"{name.ljust(width)}  {value}" for name, value in rows.items()))
    return 0
