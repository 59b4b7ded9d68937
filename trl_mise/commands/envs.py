"""`trl-mise envs`: the environments by name, what is installed of them, and what installs the rest."""

import json
from collections.abc import Sequence

from ..envs.registry import ENVIRONMENTS
from ..evaluation import aligned
from .common import new_parser

EPILOG = """\
An environment of your own is module:factory, also from this folder: trl-mise check-env --env my_module:MyEnv"""


def main(argv: Sequence[str]) -> int:
    parser = new_parser("envs", "List the environments.", EPILOG)
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse_args(argv)
    if options.json:
        entries = [
            {
                "name": spec.name,
                "description": spec.description,
                "installed": spec.is_installed,
                "install": spec.install_command,
                "max_steps": spec.max_steps,
                "expert": spec.expert is not None,
            }
            for spec in ENVIRONMENTS.values()
        ]
        print(json.dumps(entries, indent=1))
        return 0
    rows = [["name", "", "what it is"]]
    for spec in ENVIRONMENTS.values():
        rows.append([spec.name, "ready" if spec.is_installed else "missing", spec.description])
    print(aligned(rows))
    missing = [spec for spec in ENVIRONMENTS.values() if not spec.is_installed]
    for spec in missing:
        print(f"\n{spec.name} needs {spec.package}:\n  {spec.install_command}")
    print(f"\n{EPILOG}")
    return 0
