"""Episodes to look at, every step in the colour of its hindsight score: HTML for notebooks. No torch, no IPython."""

import html
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .trajectory_log import trajectory_record
from .types import Trajectory

BLAME, NEUTRAL, PRAISE = (244, 165, 96), (232, 232, 232), (122, 178, 235)
"""Colours (red, green, blue) of the scores 0, 1/2 and 1: orange and blue look different to everybody."""
INK = "#111111"
"""What is written on them: fixed like them, so that neither depends on whether the page is light or dark."""
NO_SCORE = "\N{EN DASH}"

_CELL = "text-align:left;vertical-align:top;padding:3px 10px 3px 0;border:none"
_CHIP = "display:inline-block;padding:0 6px;border-radius:4px;font-family:monospace"
_FAINT = "opacity:0.8"
_JOINERS = "\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}"
"""Control characters that emoji and several scripts cannot be written without."""


class EpisodeView:
    """An episode that a notebook shows as HTML and a terminal as text.

    Args:
        record_or_trajectory (`Mapping` or [`Trajectory`]): a line of `trajectories.jsonl`, or a played episode.
        scores (`Sequence[float]`, *optional*): one per step, in place of those in the record.
        title (`str`, *optional*): a line above it.
        max_chars (`int`): of every observation, and of every action; the rest is cut off.
    """

    def __init__(
        self,
        record_or_trajectory: Mapping[str, Any] | Trajectory,
        scores: Sequence[float | None] | None = None,
        *,
        title: str = "",
        max_chars: int = 1000,
    ) -> None:
        self._episode = _read(record_or_trajectory, scores, max_chars)
        self._title = title

    def _repr_html_(self) -> str:
        episode = self._episode
        rows = "".join(_row(number, step) for number, step in enumerate(episode.steps, 1))
        title = f"<div><b>{_escaped(self._title)}</b></div>" if self._title else ""
        task = f"<div>{_escaped(episode.instruction)}</div>" if episode.instruction else ""
        head = "".join(f'<th style="{_CELL}">{name}</th>' for name in ("", "what it saw", "what it did", "score"))
        # Prices in dollars are no formulas: MathJax skips these classes, and see _escaped.
        return (
            f'<div class="tex2jax_ignore mathjax_ignore" style="line-height:1.45;max-width:70em">{title}{task}'
            f'<table style="border-collapse:collapse;margin:6px 0"><thead><tr>{head}</tr></thead>'
            f"<tbody>{rows}</tbody></table>"
            f'<div><span style="{_FAINT}">{_escaped(episode.ending)}</span> <b>{_escaped(episode.outcome)}</b></div>'
            "</div>"
        )

    def __repr__(self) -> str:
        episode = self._episode
        lines = [_visible(line) for line in (self._title, episode.instruction) if line]
        for number, step in enumerate(episode.steps, 1):
            lines.append(f"{number:>3}  {_visible(step.observation)}")
            lines.append(f"  {step.score_text:>5} > {_visible(step.action)}{_remarks(step)}")
        return "\n".join([*lines, f"     {_visible(episode.ending)}", f"  {_visible(episode.outcome)}"])


def episode_html(
    record_or_trajectory: Mapping[str, Any] | Trajectory, scores: Sequence[float | None] | None = None
) -> str:
    """An episode as a fragment of HTML: what was seen, what was done, and the score as colour and number.

    Everything that comes from the episode is escaped. Styles stand at the elements, so that the fragment can be put
    anywhere, and it can be read without them.

    Args:
        record_or_trajectory (`Mapping` or [`Trajectory`]): a line of `trajectories.jsonl`, or a played episode. What
            a record does not have is left out.
        scores (`Sequence[float]`, *optional*): one per step, in place of those in the record; `None` and NaN are
            steps without a verdict.

    Raises:
        TypeError: it is neither.
        ValueError: the number of scores is not that of the steps.
    """
    return EpisodeView(record_or_trajectory, scores)._repr_html_()


def score_colour(score: float) -> str:
    """The background of a score in [0, 1], as `#rrggbb`: orange, light grey, blue, all light enough for dark ink."""
    towards, share = (PRAISE, 2 * score - 1) if score >= 0.5 else (BLAME, 1 - 2 * score)
    share = min(max(share, 0.0), 1.0)
    mixed = (round(start + share * (end - start)) for start, end in zip(NEUTRAL, towards, strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)


@dataclass(frozen=True)
class _Step:
    observation: str
    action: str
    score: float | None
    reward: float | None
    valid: bool
    evaluation: str

    @property
    def score_text(self) -> str:
        return NO_SCORE if self.score is None else f"{self.score:.2f}"


@dataclass(frozen=True)
class _Episode:
    instruction: str
    steps: tuple[_Step, ...]
    ending: str
    outcome: str


def _read(given: Mapping[str, Any] | Trajectory, scores: Sequence[float | None] | None, max_chars: int) -> _Episode:
    record: Mapping[str, Any]
    if isinstance(given, Trajectory):
        record = trajectory_record(0, given, None, None)
    elif isinstance(given, Mapping):
        record = given
    else:
        raise TypeError(
            f"an episode must be a Trajectory or a line of trajectories.jsonl (a dict), got {type(given).__name__}; "
            "json.loads() makes a dict of a line"
        )
    turns = record.get("turns") or []
    if scores is None:
        scores = [turn.get("score") for turn in turns]
    if len(scores) != len(turns):
        raise ValueError(
            f"scores has {len(scores)} entries, but the episode has {len(turns)} steps; give one per step, "
            "e.g. one part of HindsightScores.split()"
        )
    steps = tuple(
        _Step(
            observation=_cut(turn.get("observation"), max_chars),
            action=_cut(turn.get("action"), max_chars),
            score=_finite(score),
            reward=_finite(turn.get("reward")),
            valid=turn.get("action_valid") is not False,
            evaluation=_cut(turn.get("evaluation"), max_chars),
        )
        for turn, score in zip(turns, scores, strict=True)
    )
    return _Episode(
        _cut(record.get("instruction"), max_chars),
        steps,
        _cut(record.get("final_observation"), max_chars),
        _outcome(record, len(steps)),
    )


def _outcome(record: Mapping[str, Any], num_steps: int) -> str:
    parts = [] if record.get("success") is None else ["success" if record["success"] else "no success"]
    total = _finite(record.get("return"))
    if total is not None:
        parts.append(f"return {total:.2f}")
    parts.append(f"{num_steps} step{'' if num_steps == 1 else 's'}")
    if record.get("stop_reason") not in (None, "terminated"):
        parts.append(f"stopped: {record['stop_reason']}")
    if record.get("error"):
        parts.append(f"error: {_cut(record['error'], 300)}")
    return ", ".join(parts)


def _row(number: int, step: _Step) -> str:
    action = _escaped(step.action) or "(nothing)"
    said = f'<div style="{_FAINT}">{_escaped(step.evaluation)}</div>' if step.evaluation else ""
    cells = (
        f'<span style="{_FAINT}">{number}</span>',
        f'<span style="{_FAINT}">{_escaped(step.observation)}</span>',
        f"{_chip(action, step.score)}{_escaped(_remarks(step))}{said}",
        _chip(step.score_text, step.score),
    )
    return "<tr>" + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in cells) + "</tr>"


def _chip(escaped: str, score: float | None) -> str:
    """Text on the colour of a score; without one, the page's own colours."""
    colours = "" if score is None else f"background-color:{score_colour(score)};color:{INK};"
    return f'<span style="{colours}{_CHIP}">{escaped}</span>'


def _remarks(step: _Step) -> str:
    reward = f" reward {step.reward:.3g}" if step.reward else ""
    return reward if step.valid else f"{reward} not understood"


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _cut(value: Any, max_chars: int) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= max_chars else f"{text[:max_chars]} \N{HORIZONTAL ELLIPSIS}"


def _visible(text: str) -> str:
    """Control characters spelt out, so that none of them turns the reading direction, hides text or ends the page."""
    hidden = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "".join(
        c if c in "\n\t" + _JOINERS or unicodedata.category(c) not in hidden else f"\\u{ord(c):04x}" for c in text
    )


def _escaped(text: str) -> str:
    """The text for HTML, line breaks kept, and with nothing that a formula could begin or end with."""
    escaped = html.escape(_visible(text), quote=True).replace("\n", "<br>")
    # A formula cannot run across elements, so that a delimiter in one of its own opens none.
    return "".join(f"<span>{c}</span>" if c in "$\\" else c for c in escaped)
