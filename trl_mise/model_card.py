"""The model card, `README.md` beside saved weights: the method, the data of the run, how to use it, whom to cite.

A card that was edited is somebody's work and is never written over: a card of ours ends with a comment that holds the
checksum of what stands above it.
"""

import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from .card_facts import SHOWN, CardFacts
from .card_texts import cite, how_it_was_trained, how_to_use, limits, what_it_is
from .markdown import code, escape, one_line, table

CARD_NAME = "README.md"
_MARKER = re.compile(r"\n<!-- written by trl-mise (\w{64}); an edited card is kept as it is -->\n\Z")

MEASURES = {
    "env/success": "success",
    "env/return": "return",
    "reward": "reward",
    "env/episode_length": "steps of an episode",
    "env/invalid_action_rate": "invalid actions",
    "hindsight/auroc": "judge: AUROC of an episode's score against its outcome",
    "hindsight/ece": "judge: expected calibration error (ECE)",
    "hindsight/brier": "judge: Brier score",
    "hindsight/gate": "judge: share of the weight that is let through",
    "mise/mutual_information": "I(action; verdict), nats",
}


def card_text(facts: CardFacts) -> str:
    """The whole card, with its metadata and the comment that says whose it is."""
    parts = [
        f"---\n{_metadata(facts)}\n---",
        f"# {escape(facts.model_name)}",
        what_it_is(facts),
        "## How it was trained",
        how_it_was_trained(facts),
        "\n".join(table(("", ""), _run(facts))),
        "## Results",
        *_results(facts),
        *_judge(facts),
        "## How to use it",
        how_to_use(facts),
        "## Limits",
        limits(facts),
        "## Versions",
        ", ".join(f"{escape(name)} {escape(version)}" for name, version in facts.versions.items()),
        "## Citation",
        cite(facts),
    ]
    return sealed("\n\n".join(parts) + "\n")


def sealed(text: str) -> str:
    """The text with the comment at its end by which [`is_edited`] knows it."""
    return f"{text}\n<!-- written by trl-mise {_digest(text)}; an edited card is kept as it is -->\n"


def is_edited(path: str | os.PathLike[str]) -> bool:
    """Whether there is a card that is not exactly as this package wrote it: somebody's own, or another program's."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    except UnicodeDecodeError:
        return True
    marker = _MARKER.search(text)
    return marker is None or _digest(text[: marker.start()]) != marker[1]


def write_card(text: str, folder: str | os.PathLike[str]) -> None:
    """Writes the card into a folder, whole or not at all; not over an edited one."""
    path = Path(folder) / CARD_NAME
    if is_edited(path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"_{CARD_NAME}")  # a name that is not uploaded
    aside.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(aside, path)


@contextmanager
def edited_card_kept(folder: str | os.PathLike[str]) -> Iterator[bool]:
    """Around a library's saving (PEFT writes cards, and into those it finds): gives whether there is an edited card.

    An edited card is afterwards as it was; what was written in place of none is gone.
    """
    path = Path(folder) / CARD_NAME
    kept = path.read_bytes() if is_edited(path) else None
    yield kept is not None
    if kept is None:
        path.unlink(missing_ok=True)
    elif path.read_bytes() != kept:
        path.write_bytes(kept)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="backslashreplace")).hexdigest()


# Metadata


def _metadata(facts: CardFacts) -> str:
    results = [
        EvalResult(
            task_type="reinforcement-learning",
            task_name="text environment",
            dataset_type=re.sub(r"[^a-z0-9]+", "-", dataset.lower()).strip("-") or "tasks",
            dataset_name=dataset,
            metric_type=metric,
            metric_name=f"{metric} after update {entry['step']}",
            metric_value=round(float(entry[f"{prefix}_{metric}"]), 4),
        )
        for prefix, entries in facts.evaluations().items()
        for entry in entries[-1:]
        for dataset in [_dataset(facts, prefix)]
        for metric in ("success", "return", "reward")
        if _is_number(entry.get(f"{prefix}_{metric}"))
    ]
    data = ModelCardData(
        base_model=facts.base_model,
        base_model_relation=_relation(facts),
        datasets=None if facts.dataset_name is None else one_line(facts.dataset_name, 200),
        library_name="transformers" if facts.adapter is None else "peft",
        license=facts.license,
        model_name=one_line(facts.model_name, 200),
        pipeline_tag="text-generation",
        tags=[one_line(tag, 100) for tag in facts.tags],
        eval_results=results or None,
    )
    return data.to_yaml().strip()


def _relation(facts: CardFacts) -> str | None:
    if facts.base_model is None:
        return None
    return "finetune" if facts.adapter is None else "adapter"


def _dataset(facts: CardFacts, prefix: str) -> str:
    """What was evaluated: the environment, and the dataset's name where there are several."""
    name = "prompts" if facts.environment is None else facts.environment.name
    part = prefix.removeprefix("eval").removeprefix("_")
    return one_line(f"{name}, {part}" if part else name, 200)


# The run


def _run(facts: CardFacts) -> list[tuple[str, str]]:
    """Rows of the table of the run: Markdown already."""
    rows: list[tuple[str, Any]] = [
        ("trained from", _base(facts)),
        ("what was trained", _trained(facts)),
        ("environment", None if facts.environment is None else _environment(facts)),
        ("reward functions", ", ".join(code(name) for name in facts.rewards)),
        ("tasks", facts.train_tasks),
        ("held-out tasks", facts.eval_tasks),
        ("updates", f"{facts.updates} of {facts.total_updates}"),
        ("episodes", facts.episodes),
        ("episodes of an update", facts.batch_size),
        ("processes", facts.processes if facts.processes > 1 else None),
        ("seed", facts.seed),
        ("interrupted, and gone on with, after update", ", ".join(map(str, facts.resumed))),
    ]
    for name, label in SHOWN.items():
        value = getattr(facts.options, name, None)
        if value is not None and (facts.uses_hindsight or name != "hindsight_coef"):
            rows.append((label, code(value)))
    rows += [(f"option {code(name)}", code(value)) for name, value in facts.changed.items()]
    return [(label, str(value)) for label, value in rows if value not in (None, "")]


def _base(facts: CardFacts) -> str:
    if facts.base_model is None:
        return "a model that is not on the hub"
    name = facts.base_model
    return f"[{escape(name)}](https://huggingface.co/{name})" + (
        "" if facts.quantisation is None else f", in {escape(facts.quantisation)}"
    )


def _trained(facts: CardFacts) -> str:
    share = f"{facts.num_trainable_parameters:,} of {facts.num_parameters:,} parameters"
    return (
        f"all parameters ({facts.num_parameters:,})" if facts.adapter is None else f"{escape(facts.adapter)}: {share}"
    )


def _environment(facts: CardFacts) -> str:
    assert facts.environment is not None
    kwargs = ", ".join(f"{name}={value!r}" for name, value in facts.environment.kwargs.items())
    return escape(facts.environment.name) + (f", {code(kwargs)}" if kwargs else "")


# Results


def _results(facts: CardFacts) -> list[str]:
    logs = facts.train_logs
    if not logs:
        return ["Nothing was logged: it has not been trained, or `logging_steps` is more than its updates."]
    first, last = logs[0], logs[-1]
    rows = [
        (label, _figure(first.get(name)), _figure(last.get(name)))
        for name, label in MEASURES.items()
        if _is_number(first.get(name)) or _is_number(last.get(name))
    ]
    header = ("training episodes (sampled)", f"up to update {first['step']}", f"up to update {last['step']}")
    found = ["\n".join(table(header, rows))]
    evaluated = [row for prefix, entries in facts.evaluations().items() for row in _evaluated(facts, prefix, entries)]
    if not evaluated:
        return [*found, "It was not evaluated on held-out tasks."]
    header_2 = ("evaluated", "after update", "success", "return", "episodes")
    return [*found, "\n".join(table(header_2, evaluated))]


def _evaluated(facts: CardFacts, prefix: str, entries: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """The first evaluation of a dataset and the last two, by which one sees whether it had settled."""
    shown = entries if len(entries) <= 3 else [entries[0], *entries[-2:]]
    for entry in shown:
        value = {name: entry.get(f"{prefix}_{name}") for name in ("success", "return", "reward", "episodes")}
        returned = value["return"] if value["return"] is not None else value["reward"]
        count = value["episodes"]
        name = escape(_dataset(facts, prefix))
        yield (
            name,
            str(entry.get("step")),
            _figure(value["success"]),
            _figure(returned),
            "" if count is None else f"{count:.0f}",
        )


def _judge(facts: CardFacts) -> list[str]:
    if not facts.uses_hindsight:
        return []
    said = []
    for name, label in (("hindsight/auroc", "AUROC"), ("hindsight/ece", "ECE")):
        known = [(entry[name], entry["step"]) for entry in facts.log if _is_number(entry.get(name))]
        if known:
            said.append(f"{label} {known[-1][0]:.3f} (update {known[-1][1]})")
    measured = (
        f"Calibration of the verdicts at the end, on sampled training episodes: {', '.join(said)}."
        if said
        else "How well the verdicts are calibrated is not known: AUROC needs won and lost episodes."
    )
    warned = [f"* {escape(message, 600)}" for message in facts.health]
    listed = "\n".join(["Warnings during the training:", "", *warned]) if warned else ""
    return [part for part in (measured, listed) if part]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _figure(value: Any) -> str:
    return f"{value:.3f}" if _is_number(value) else ""
