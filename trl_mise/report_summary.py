"""What a report says in words and single numbers: what the run was, and how it went. No torch."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from typing import Any

from .report_charts import phases
from .report_curves import Curves
from .report_statistics import judge_summary
from .run_data import RunData

# An absolute path in a message or an option says who ran it where: only its last part is shown.
_PATH = re.compile(r"""(?<![\w:/.~<\\])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'",:;()<>|]+[/\\])+([^\s/\\'",:;()<>|]*)""")
# As in page.js: what is not seen, or changes what is seen around it; also half surrogate pairs, no text for UTF-8.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
HEADLINE_UPDATES = 10
JUDGED_EPISODES = 256


@dataclass(frozen=True)
class Tile:
    """A headline number.

    Args:
        label (`str`): what it is.
        value (`str`): the number, or two with an arrow.
        detail (`str`): of what, and over how many.
    """

    label: str
    value: str
    detail: str


def without_paths(text: str) -> str:
    """`/home/someone/runs/shop` -> `…/shop`."""
    return _PATH.sub(lambda match: f"…/{match[1]}", text)


def printable(text: str) -> str:
    """Hidden characters by their numbers: `⟨U+202E⟩`."""
    return _HIDDEN.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text)


def shown_value(value: Any) -> str:
    """An option's value for people."""
    if isinstance(value, float):
        return f"{value:g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return without_paths(text)


def option_defaults(trainer: str) -> dict[str, Any]:
    """Defaults of the options that matter here, by name; a test compares them with the configurations."""
    text = (files("trl_mise") / "report_page" / "option_defaults.json").read_text(encoding="utf-8")
    return dict(json.loads(text)["MISEGRPOConfig" if "GRPO" in trainer else "MISEConfig"])


def options(run: RunData) -> tuple[list[tuple[str, str, str]], list[tuple[str, str]]]:
    """(name, value, default) of those that differ from their defaults, and (name, value) of all.

    transformers writes some values out as text, so that it is what is written that is compared.
    """
    known = run.info.get("options")
    if not isinstance(known, Mapping):
        return [], []
    defaults = option_defaults(str(run.info.get("trainer", "")))
    changed = [
        (name, shown_value(value), shown_value(defaults[name]))
        for name, value in sorted(known.items())
        if name in defaults and _written(value) != _written(defaults[name])
    ]
    return changed, [(str(name), shown_value(value)) for name, value in sorted(known.items())]


def _written(value: Any) -> str:
    """`1` and `1.0`, and `None` and "None", are the same."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{float(value):.12g}"
    return value if isinstance(value, str) else json.dumps(value) if value is not None else "None"


def facts(run: RunData) -> list[tuple[str, str]]:
    """(what, value) of run.json, as far as it says them."""
    info = run.info
    parameters = _count(info.get("num_parameters"))
    trained = _count(info.get("num_trainable_parameters"))
    processes = info.get("num_processes")
    device = str(info.get("device") or "")
    rows = {
        "Model": without_paths(str(info.get("model") or "")),
        "Parameters": parameters and f"{parameters}, {'all' if trained == parameters else trained or 'none'} trained",
        "Trainer": str(info.get("trainer") or ""),
        "Environment": str(info.get("environment") or ""),
        "Device": f"{device}, {processes} processes" if isinstance(processes, int) and processes > 1 else device,
        "Training tasks": _thousands(info.get("train_tasks")),
        "Evaluation tasks": _thousands(info.get("eval_tasks")),
        "Episodes per update": _thousands(info.get("batch_size")),
        "Started": _moment(info.get("started")),
        "Took": _took(info.get("started"), info.get("ended")),
        "Resumed": _resumed(info.get("resumed")),
    }
    return [(name, value) for name, value in rows.items() if value]


def versions(run: RunData) -> list[tuple[str, str]]:
    known = run.info.get("versions")
    return [(str(name), str(value)) for name, value in known.items()] if isinstance(known, Mapping) else []


def status(run: RunData, curves: Curves) -> tuple[str, str]:
    """One word, and what it means here."""
    word = str(run.info.get("status") or "")
    total = run.info.get("total_updates")
    done = updates_done(run, curves)
    counted = total if isinstance(total, int) and total > 0 else done
    of = f"{done:,} of {total:,}" if counted is total else f"{done:,}"
    of = f"{of} {curves.step_name}{'' if counted == 1 else 's'}"
    meanings = {
        "finished": of,
        "stopped": f"ended early, after {of}",
        "failed": f"ended by an error, after {of}",
        "running": f"after {of}; still going on when this was written, or killed",
    }
    return word, meanings.get(word, f"{of}; there is no run.json that says more" if not word else of)


def updates_done(run: RunData, curves: Curves) -> int:
    logged = [points[-1][0] for points in curves.logged.values()]
    return int(max(logged or [e.update for e in run.training] or [0]))


def tiles(run: RunData, curves: Curves) -> list[Tile]:
    """The headline numbers; what cannot be said is left out."""
    found = [
        _first_and_last(curves, "success", "Success in training"),
        *_evaluations(curves),
        _judge(run),
        _length(run, curves),
        _time(curves),
    ]
    return [tile for tile in found if tile is not None]


def _first_and_last(curves: Curves, measure: str, label: str) -> Tile | None:
    points = curves[f"env/{measure}"]
    if not points:
        return None
    count = max(1, min(HEADLINE_UPDATES, len(points) // 3))
    first, last = (sum(y for _, y in part) / count for part in (points[:count], points[-count:]))
    if len(points) == 1:
        return Tile(label, f"{last:.2f}", "logged once")
    return Tile(
        label, f"{first:.2f} → {last:.2f}", f"first and last {count if count > 1 else ''} logged".replace("  ", " ")
    )


def _evaluations(curves: Curves) -> list[Tile]:
    found = []
    episodes = curves.evaluations("episodes")
    for name, points in sorted(curves.evaluations("success").items()):
        label = f"Evaluation: {name}" if name else "Evaluation"
        (first_step, first), (last_step, last) = points[0], points[-1]
        over = f", {episodes[name][-1][1]:.0f} tasks" if episodes.get(name) else ""
        if len(points) == 1:
            found.append(Tile(label, f"{first:.2f}", f"after {curves.step_name} {first_step:.0f}{over}"))
        else:
            steps = f"{curves.step_name} {first_step:.0f} and {last_step:.0f}, greedy{over}"
            found.append(Tile(label, f"{first:.2f} → {last:.2f}", steps))
    return found


def _judge(run: RunData) -> Tile | None:
    judged = [e for e in run.training if e.mean_score is not None and not e.failed][-JUDGED_EPISODES:]
    if not judged:
        return None
    summary = judge_summary(judged)
    over = f"last {len(judged):,} episodes, {summary['won']:.0f} won"
    if "auroc" not in summary:
        return Tile("Judge's AUROC", "–", f"{over}: nothing to tell apart")
    return Tile("Judge's AUROC", f"{summary['auroc']:.2f}", over)


def _length(run: RunData, curves: Curves) -> Tile | None:
    if not run.training:
        return None
    points = curves["env/episode_length"]
    mean = sum(y for _, y in points) / len(points) if points else 0.0
    return Tile("Training episodes", f"{len(run.training):,}", f"{mean:.1f} turns on average")


def _time(curves: Curves) -> Tile | None:
    rows = phases(curves)
    steps = {x for _, _, points in rows for x, _ in points}
    if not steps:
        return None
    seconds = sum(y for _, _, points in rows for _, y in points) / len(steps)
    return Tile("An update takes", f"{seconds:.3g} s", f"mean of {len(steps):,} logged")


def _thousands(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and value > 0 else ""


def _count(value: Any) -> str:
    """`494.0M` of a number of parameters."""
    if not isinstance(value, int) or value <= 0:
        return ""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return str(value)


def _read_moment(value: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(str(value).replace("Z", "+00:00"))
    except ValueError:
        return None


def _moment(value: Any) -> str:
    moment = _read_moment(value)
    return "" if moment is None else f"{moment:%Y-%m-%d %H:%M}{' UTC' if moment.utcoffset() is not None else ''}"


def _took(start: Any, end: Any) -> str:
    moments = (_read_moment(start), _read_moment(end))
    try:
        seconds = (moments[1] - moments[0]).total_seconds() if moments[0] and moments[1] else -1.0
    except TypeError:  # one knows its time zone, the other does not
        return ""
    if seconds < 0:
        return ""
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if hours < 2 else f"{hours:.1f} h"


def _resumed(value: Any) -> str:
    known: Sequence[Any] = value if isinstance(value, list) else []
    updates = [str(entry.get("update")) for entry in known if isinstance(entry, Mapping)]
    return f"after update {', '.join(updates)}" if updates else ""
