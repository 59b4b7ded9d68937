"""`trl-mise report`: one HTML file about a training run, for people who were not there. No torch.

The file holds all that it shows: data, charts, the library that draws them. It asks no server for anything, which its
own Content-Security-Policy enforces, and whatever a model or an environment said gets onto the page as text.
"""

import base64
import hashlib
import json
import os
import warnings
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from .report_charts import health_charts, judge_charts, judge_table, learning_charts, time_chart, time_table
from .report_curves import MOST_POINTS, Chart, Curves, rounded
from .report_episodes import pack_episodes
from .report_statistics import thinned
from .report_summary import facts, options, printable, status, tiles, versions, without_paths
from .run_data import RunData, read_run

STYLES = ("report.css", "viewer.css")
SCRIPTS = ("page.js", "charts.js", "store.js", "detail.js", "viewer.js", "main.js")
LIBRARY = "vendor/chart.umd.min.js"
LICENCES = ("vendor/chart.js-LICENSE.md", "vendor/kurkle-color-LICENSE.md")
LAST_SCRIPT = "startReport();"
MEGABYTE = 1_000_000


def write_report(
    run_dir: str | os.PathLike[str], output: str | os.PathLike[str] | None = None, *, max_megabytes: float = 5.0
) -> Path:
    """Writes a report on a training run: curves, calibration, health, timings, and every episode step by step.

    Args:
        run_dir (`str` or `os.PathLike`): `output_dir` of the run, finished or not.
        output (`str` or `os.PathLike`, *optional*): the file; defaults to `report.html` in `run_dir`.
        max_megabytes (`float`): most that the file may weigh. Where the episodes do not fit, numbers are kept and
            texts go, which the page and a warning tell.

    Returns:
        `Path`: the file.

    Raises:
        ValueError: `run_dir` is no run directory, or `max_megabytes` is less than an empty report.
    """
    run = read_run(run_dir)
    text, left_out = render_report(run, max_megabytes)
    path = Path(run_dir) / "report.html" if output is None else Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8"))
    for note in left_out:
        warnings.warn(f"the report of {run.name} is limited to {max_megabytes:g} MB: {note}", stacklevel=2)
    return path


def render_report(run: RunData, max_megabytes: float = 5.0) -> tuple[str, tuple[str, ...]]:
    """The page, and what had to be left out of it.

    Args:
        run ([`RunData`]): the run.
        max_megabytes (`float`): most that the page may weigh, in millions of bytes.
    """
    if not 0 < max_megabytes < float("inf"):
        raise ValueError(f"max_megabytes must be a positive, finite number, got {max_megabytes}")
    curves = Curves(run)
    shown = _shown(run, curves)
    # With room for the notes, which are not known before the episodes are packed.
    rest = int(max_megabytes * MEGABYTE) - len(_page(shown, "", ()).encode("utf-8")) - 2_000
    measures = {name: _columns(thinned(curves[name], MOST_POINTS)) for name in curves.names()}
    episodes = (*run.training, *run.evaluation)
    try:
        packed = pack_episodes(episodes, max(rest, 0), {"measures": measures})
    except ValueError as error:
        raise ValueError(
            f"max_megabytes={max_megabytes:g} is less than the page weighs without an episode; give at least "
            f"{max_megabytes + (3_000 - min(rest, 0)) / MEGABYTE + 0.05:.2f}"
        ) from error
    return _page(shown, packed.data, packed.notes), packed.notes


def _columns(points: Any) -> list[list[float]]:
    return [[rounded(x) for x, _ in points], [rounded(y) for _, y in points]]


def _page(shown: dict[str, Any], packed: str, left_out: tuple[str, ...]) -> str:
    notes = [*shown["notes"], *left_out]
    return _template().render({**shown, "packed": packed, "notes": notes})


def _shown(run: RunData, curves: Curves) -> dict[str, Any]:
    """What the template shows of a run, and the page's own parts."""
    learning, judge, health = learning_charts(curves), judge_charts(curves), health_charts(curves)
    timing = time_chart(curves)
    changed, known = options(run)
    style, script, library = _joined(STYLES), _script(), _library()
    error = run.info.get("error")
    return {
        "policy": _policy(style, (library, script, LAST_SCRIPT)),
        "style": Markup(style),
        "chart_library": Markup(library),
        "chart_version": chart_library_facts()["version"],
        "licences": [_asset(name).strip() for name in LICENCES],
        "script": Markup(script),
        "last_script": Markup(LAST_SCRIPT),
        "data": Markup(_embedded(_page_data(run, curves, [*learning, *judge, *health, timing]))),
        "name": run.name,
        "status": status(run, curves),
        "facts": facts(run),
        "error": without_paths(str(error)) if error else None,
        "tiles": tiles(run, curves),
        "notes": run.notes,
        "learning": learning,
        "judge": judge,
        "judge_table": judge_table(run),
        "health": health,
        "events": [replace(event, message=without_paths(event.message)) for event in run.events],
        "events_known": "events.jsonl" in run.files,
        "time": timing,
        "time_table": time_table(curves),
        "step_name": curves.step_name,
        "changed_options": changed,
        "all_options": known,
        "versions": versions(run),
        "files": run.files,
    }


def _page_data(run: RunData, curves: Curves, charts: list[Chart]) -> dict[str, Any]:
    utilities = run.utilities
    return {
        "charts": [chart.as_json() for chart in charts if chart.series],
        "marks": sorted({event.update for event in run.events if event.update is not None}),
        "stepName": curves.step_name,
        "facts": {
            "verdicts": list(run.verdicts),
            "utilities": None if utilities is None else list(utilities),
            "placement": run.option("hindsight_placement"),
        },
    }


def _embedded(value: Any) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(style: str, scripts: tuple[str, ...]) -> str:
    """Nothing is loaded, nothing is sent, and no script runs but those that were written with the page."""

    def source(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"

    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {' '.join(map(source, scripts))}",
            f"style-src {source(style)}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


# The parts of the page


@cache
def _asset(name: str) -> str:
    return (files("trl_mise") / "report_page").joinpath(*name.split("/")).read_text(encoding="utf-8")


def chart_library_facts() -> dict[str, str]:
    """Which release of Chart.js this is, from where, under which licence."""
    return dict(json.loads(_asset("vendor/chart.js.json")))


def _joined(names: tuple[str, ...]) -> str:
    return "\n".join(_asset(name) for name in names)


def _script() -> str:
    return f'const startReport = (() => {{\n"use strict";\n{_joined(SCRIPTS)}\nreturn startViewer;\n}})();'


def _library() -> str:
    """Without the name of its source map, which developer tools would ask for."""
    lines = _asset(LIBRARY).splitlines()
    return "\n".join(line for line in lines if not line.startswith("//# sourceMappingURL"))


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, finalize=_finalize, keep_trailing_newline=True
    )
    return environment.from_string(_asset("template.html"))


def _finalize(value: Any) -> Any:
    """What a run said is printed with its hidden characters in sight; what is the page's own stays as it is."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
