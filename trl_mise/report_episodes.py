"""Packs the episodes of a run into a report: columns of numbers, every text once, compressed. No torch.

Where all of it would be too large, numbers stay and texts go, first the ends of long ones, then those of episodes that
are not in a sample which is spread evenly over the run. What was done is told in [`PackedEpisodes.notes`].
"""

import base64
import gzip
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from .run_data import EpisodeRecord, StepRecord

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
SHORTER_TEXTS = (20_000, 4_000)
SHORT_ACTION = 200
TOGETHER = 8
NEARLY_FULL = 0.97
COMPRESSION = 9


@dataclass(frozen=True)
class PackedEpisodes:
    """What the page unpacks.

    Args:
        data (`str`): base64 of gzip of JSON.
        notes (`tuple[str, ...]`): what was left out to make it fit; empty where all is there.
        kept (`int`): episodes in it.
        complete (`int`): episodes whose texts are complete, or shortened at most.
    """

    data: str
    notes: tuple[str, ...]
    kept: int
    complete: int


@dataclass(frozen=True)
class Cut:
    """What is left out.

    Args:
        longest (`int`, *optional*): most characters of a text.
        sample (`frozenset[int]`, *optional*): episodes that keep their texts; of others only short actions are kept.
        only (`frozenset[int]`, *optional*): episodes that are kept at all.
        numbers_only (`bool`): others than the sample keep no action either.
    """

    longest: int | None = None
    sample: frozenset[int] | None = None
    only: frozenset[int] | None = None
    numbers_only: bool = False


def pack_episodes(
    episodes: Sequence[EpisodeRecord], most_bytes: int, extra: dict[str, Any] | None = None
) -> PackedEpisodes:
    """As much of the episodes as fits.

    Args:
        episodes (`Sequence[EpisodeRecord]`): of training and evaluation.
        most_bytes (`int`): of the packed text.
        extra (`dict[str, Any]`, *optional*): more JSON values to put beside the episodes.

    Raises:
        ValueError: not even an empty list fits.
    """
    encode = partial(_encode, episodes, extra or {})
    order = spread_order(episodes)
    total = len(episodes)
    most_characters = max((len(text) for e in episodes for text in _texts_of(e)), default=0)
    told_longest: tuple[str, ...] = ()
    longest, data = None, encode(Cut())
    for shorter in SHORTER_TEXTS:
        if len(data) <= most_bytes:
            break
        if most_characters > shorter:
            longest, told_longest = shorter, (_told_longest(shorter),)
            data = encode(Cut(longest))
    if len(data) <= most_bytes:
        return PackedEpisodes(data, told_longest, total, total)

    def sampled(number: int) -> Cut:
        return Cut(longest, frozenset(order[:number]))

    fitting = _most_that_fit(lambda n: encode(sampled(n)), total, most_bytes, len(data))
    if fitting is not None:
        count, data = fitting
        return PackedEpisodes(data, (_told_sample(count, total), *told_longest), total, count)
    return _numbers_alone(encode, order, most_bytes)


def _numbers_alone(encode: Callable[[Cut], str], order: Sequence[int], most_bytes: int) -> PackedEpisodes:
    """No text at all, and where that is still too much, fewer episodes."""
    total = len(order)
    data = encode(Cut(sample=frozenset(), numbers_only=True))
    if len(data) <= most_bytes:
        told = f"All texts were left out, of the actions too: the numbers of {total:,} episodes fill the page."
        return PackedEpisodes(data, (told,), total, 0)

    def only(number: int) -> Cut:
        return Cut(sample=frozenset(), only=frozenset(order[:number]), numbers_only=True)

    fitting = _most_that_fit(lambda n: encode(only(n)), total, most_bytes, len(data))
    if fitting is None:
        raise ValueError(f"{most_bytes} bytes do not even hold an empty list of episodes; give more")
    count, data = fitting
    told = (
        f"The list holds {count:,} of {total:,} episodes, spread evenly over the run, and only their numbers. Charts "
        "and tables are of all episodes."
    )
    return PackedEpisodes(data, (told,), count, 0)


def _texts_of(episode: EpisodeRecord) -> Iterator[str]:
    yield from (episode.instruction, episode.final_observation, episode.error or "")
    for step in episode.steps:
        yield from (step.observation, step.action, step.evaluation or "")


def _told_longest(longest: int) -> str:
    return f"Texts of more than {longest:,} characters are shortened in the middle; each says by how much."


def _told_sample(count: int, total: int) -> str:
    return (
        f"The texts of {count:,} of {total:,} episodes are here, spread evenly over the run, those of one task "
        f"together. Of the others observations are left out, and actions end after {SHORT_ACTION} characters; all "
        "their numbers are here."
    )


def _most_that_fit(
    encode: Callable[[int], str], total: int, most_bytes: int, size_of_all: int
) -> tuple[int, str] | None:
    """About the largest number whose encoding fits, and that encoding; `None` where not even 0 does.

    An encoding takes seconds in a long run, and the last episodes that might fit are not worth one.
    """
    data = encode(0)
    if len(data) > most_bytes:
        return None
    best, low, high, size_low, size_high = data, 0, total, len(data), size_of_all
    while high - low > max(1, total // 50) and size_low < NEARLY_FULL * most_bytes:
        share = (most_bytes - size_low) / max(size_high - size_low, 1)
        guess = low + int((high - low) * min(max(share * 0.96, 0.02), 0.98))
        middle = min(max(guess, low + 1), high - 1)
        data = encode(middle)
        if len(data) <= most_bytes:
            best, low, size_low = data, middle, len(data)
        else:
            high, size_high = middle, len(data)
    return low, best


def spread_order(episodes: Sequence[EpisodeRecord]) -> list[int]:
    """Numbers of the episodes, so that any beginning of the list is spread evenly over the run.

    Up to `TOGETHER` episodes of a task follow one another, its first and its last before the others: they are there to
    be compared.
    """
    groups: dict[str, list[int]] = {}
    for number, episode in enumerate(episodes):
        groups.setdefault(f"{episode.kind} {episode.task_key}", []).append(number)
    tasks = [_ends_first(numbers) for numbers in groups.values()]
    most = max((len(numbers) for numbers in tasks), default=0)
    return [
        number
        for start in range(0, most, TOGETHER)
        for k in _turned_round(len(tasks))
        for number in tasks[k][start : start + TOGETHER]
    ]


def _ends_first(numbers: list[int]) -> list[int]:
    between = numbers[1:-1]
    return [*numbers[:1], *numbers[1:][-1:], *(between[k] for k in _turned_round(len(between)))]


def _turned_round(size: int) -> Iterator[int]:
    """0 to size - 1 by their binary digits read backwards: 0, 4, 2, 6, 1, 5, 3, 7."""
    bits = max(size - 1, 1).bit_length()
    return (k for k in (int(f"{k:0{bits}b}"[::-1], 2) for k in range(1 << bits)) if k < size)


def shortened(text: str, longest: int | None) -> str:
    """The beginning and the end of a text that is too long, and how much is missing between."""
    if longest is None or len(text) <= longest:
        return text
    head, tail = longest * 3 // 4, longest // 4
    return f"{text[:head]}\n[… {len(text) - head - tail:,} characters left out …]\n{text[-tail:]}"


def pieces_of(text: str) -> list[str]:
    """Lines, and what `[SEP]` separates within a line; put together they are the text.

    Pages repeat piece by piece, and from farther away than the 32 kB that gzip looks back.
    """
    lines = [text] if "\n" not in text else _cut_after("\n", text)
    return [part for line in lines for part in (_cut_after("[SEP] ", line) if "[SEP] " in line else [line])]


def _cut_after(mark: str, text: str) -> list[str]:
    *parts, last = text.split(mark)
    return [*(part + mark for part in parts), *([last] if last else [])]


class _Texts:
    """Every text once, and every piece of a text once."""

    def __init__(self, longest: int | None) -> None:
        self.longest = longest
        self.pieces: dict[str, int] = {}
        self.texts: dict[str, int] = {"": 0}
        self.encoded: list[list[int]] = [[]]

    def number(self, text: str) -> int:
        known = self.texts.get(text)
        if known is None:
            known = self.texts[text] = len(self.encoded)
            parts = pieces_of(shortened(text, self.longest))
            self.encoded.append([self.pieces.setdefault(part, len(self.pieces)) for part in parts])
        return known


def _encode(episodes: Sequence[EpisodeRecord], extra: dict[str, Any], cut: Cut) -> str:
    texts = _Texts(cut.longest)
    kept = [number for number in range(len(episodes)) if cut.only is None or number in cut.only]
    records = [episodes[number] for number in kept]
    complete = [cut.sample is None or number in cut.sample for number in kept]
    tasks: dict[str, int] = {}
    values = {
        **extra,
        "episodes": {
            "kind": [int(e.kind == "evaluation") for e in records],
            "split": [texts.number(e.split) for e in records],
            "update": [e.update for e in records],
            "task": [tasks.setdefault(e.task_key, len(tasks)) for e in records],
            "seed": [e.seed for e in records],
            "instruction": [
                texts.number(e.instruction) if full else 0 for e, full in zip(records, complete, strict=True)
            ],
            "final": [
                texts.number(e.final_observation) if full else 0 for e, full in zip(records, complete, strict=True)
            ],
            "return": [_rounded(e.episode_return) for e in records],
            "success": [int(e.success) for e in records],
            "stop": [texts.number(e.stop_reason) for e in records],
            "error": [texts.number(e.error or "") for e in records],
            "score": [_thousandths(e.mean_score) for e in records],
            "length": [len(e.steps) for e in records],
            "complete": [int(full) for full in complete],
        },
        "steps": _step_columns(records, complete, texts, cut),
        "tasks": [shortened(_task_label(key), SHORT_ACTION) for key in tasks],
        "texts": texts.encoded,
        "pieces": list(texts.pieces),
    }
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # Half a surrogate pair is no text that UTF-8 could hold; JSON's escape can.
    escaped = _LONE_SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    return base64.b64encode(gzip.compress(escaped.encode("utf-8"), COMPRESSION, mtime=0)).decode("ascii")


def _task_label(key: str) -> str:
    """The row of the dataset, its seed left out where it says the same twice."""
    task, seed, _ = json.loads(key)
    shown = {
        name: value for name, value in task.items() if value is not None and not (name == "seed" and value == seed)
    }
    return ", ".join(f"{name}: {value}" for name, value in shown.items())


def _step_columns(
    records: Sequence[EpisodeRecord], complete: Sequence[bool], texts: _Texts, cut: Cut
) -> dict[str, Any]:
    """One list for each property of a step, over the steps of all episodes."""
    steps = [(step, full) for e, full in zip(records, complete, strict=True) for step in e.steps]

    def action(step: StepRecord, full: bool) -> int:
        if full or not cut.numbers_only:
            return texts.number(step.action if full else shortened(step.action, SHORT_ACTION))
        return 0

    most = max((len(step.verdict_probs) for step, _ in steps), default=0)
    columns: dict[str, Any] = {
        "observation": [texts.number(step.observation) if full else 0 for step, full in steps],
        "action": [action(step, full) for step, full in steps],
        "evaluation": _unless_all(0, (texts.number(step.evaluation or "") if full else 0 for step, full in steps)),
        "reward": _unless_all(0, (_rounded(step.reward) for step, _ in steps)),
        "invalid": _unless_all(0, (int(not step.action_valid) for step, _ in steps)),
        "score": _unless_all(None, (_thousandths(step.score) for step, _ in steps)),
        "shaping": _unless_all(None, (_thousandths(step.shaping) for step, _ in steps)),
        "advantage": _unless_all(None, (_thousandths(step.advantage) for step, _ in steps)),
        "probs": [
            [_thousandths(step.verdict_probs[k]) if k < len(step.verdict_probs) else None for step, _ in steps]
            for k in range(most)
        ],
    }
    return columns


def _unless_all(nothing: int | None, values: Iterable[Any]) -> list[Any] | None:
    """The list, or `None` where it says nothing."""
    known = list(values)
    return None if all(value == nothing for value in known) else known


def _thousandths(value: float | None) -> int | None:
    return None if value is None else round(value * 1000)


def _rounded(value: float) -> float:
    number = float(f"{value:.6g}")
    return int(number) if number.is_integer() and abs(number) < 1e15 else number
