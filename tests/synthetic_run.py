"""Run directories that no training made: plausible, deterministic, in every shape that a report must read.

A clerk of skill `s` plays a web shop; skill grows over the updates, and the judge learns to tell good steps from bad
ones. Texts are page-like (lists of wares, prices, reviews), long and various enough that their size is realistic.
"""

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

WORDS = {
    "brand": "sorano mirel quillon norvik veldt tundrix arbol kestra lumen pavo orrin calder brisa fenwick isolde",
    "quality": "vegan padded foldable lightweight quilted heated washable wireless ceramic wooden organic fairtrade "
    "insulated stackable reversible antique glossy matte compact adjustable ribbed woven waterproof unscented",
    "ware": "backpack lamp rug blanket kettle teapot jacket mug basket stool notebook candle bottle mirror tray",
    "colour": "red blue black white green amber",
}
BRANDS, QUALITIES, WARES, COLOURS = (words.split() for words in WORDS.values())
REVIEWS = (
    "arrived on time and looks as in the picture",
    "the seam came loose after a week, but the shop replaced it",
    "smaller than I thought; measure before you buy",
    "my second one, and the first still works",
    "colour is a little darker than shown",
    "sturdy, quiet, easy to clean",
    "good value for the price",
    "the strap could be longer",
)
MISTAKES = ("take the first result", "skip the options", "search again", "go back", "open the reviews")


@dataclass(frozen=True)
class Shape:
    """What the run is like.

    Args:
        updates, batch (`int`): updates, and episodes of each.
        turns, shortest (`int`): of the longest and of the shortest episodes.
        train_tasks (`int`): they come again when all were played.
        evaluations (`Sequence[int]`): updates after which the evaluation tasks are played; 0 is before training.
        eval_tasks (`int`): played at every evaluation.
        verdicts (`Sequence[str]`): of the judge, best first; empty: hindsight off.
        written (`bool`): the judge writes its evaluations (generate mode).
        grpo (`bool`): a run of `MISEGRPOTrainer`: several episodes of a task, two optimizer steps an update.
        status (`str`): of run.json.
        placement (`str`): where praise is added.
        seed (`int`): of all of it.
    """

    updates: int = 40
    batch: int = 16
    turns: int = 16
    shortest: int = 12
    train_tasks: int = 320
    evaluations: Sequence[int] = (0, 20, 40)
    eval_tasks: int = 12
    verdicts: Sequence[str] = ("good", "bad")
    written: bool = False
    grpo: bool = False
    status: str = "finished"
    placement: str = "advantage"
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)


def utilities(shape: Shape) -> list[float]:
    last = max(len(shape.verdicts) - 1, 1)
    return [round(1 - k / last, 3) for k in range(len(shape.verdicts))]


class Shop:
    """Pages of a shop that does not exist."""

    def __init__(self, seed: int, wares: int = 1500) -> None:
        rng = random.Random(seed)
        self.wares = [self.ware(rng) for _ in range(wares)]

    @staticmethod
    def ware(rng: random.Random) -> tuple[str, str, float]:
        title = f"{rng.choice(BRANDS)} {' '.join(rng.sample(QUALITIES, 3))} {rng.choice(WARES)}, {rng.choice(COLOURS)}"
        return f"b{rng.randrange(10**6):06d}", title, rng.randrange(500, 9900) / 100

    def goal(self, number: int) -> tuple[str, str, float]:
        return self.wares[number * 7 % len(self.wares)]

    def instruction(self, number: int) -> str:
        _, title, price = self.goal(number)
        return (
            f"Find me a {title.split(' ', 1)[1]}, with a price lower than {math.ceil(price / 5) * 5 + 5}.00 dollars."
        )

    def page(self, rng: random.Random, number: int) -> str:
        """About 600 characters: results, or one ware with its reviews."""
        if rng.random() < 0.6:
            start = rng.randrange(50)
            shown = [self.wares[(start * 29 + number * 11 + k) % len(self.wares)] for k in range(10)]
            lines = [f"Page {rng.randrange(1, 6)} of {rng.randrange(5, 9)} ({rng.randrange(10, 99)} results)"]
            lines += [f"[{code}] {title}  ${price:.2f}" for code, title, price in shown]
            return "\n".join(["Back to search | Next >", *lines])
        code, title, price = self.wares[rng.randrange(len(self.wares))]
        reviews = [f'"{rng.choice(REVIEWS)}" ({rng.randrange(1, 6)} of 5, {rng.randrange(2, 400)} found this helpful)']
        reviews += [f'"{text}" ({rng.randrange(1, 6)} of 5)' for text in rng.sample(REVIEWS, 5)]
        options = " ".join(f"( ) {colour}" for colour in COLOURS)
        return "\n".join([f"{title} [{code}]", f"${price:.2f}  in stock: {rng.randrange(1, 500)}", options, *reviews])


def skill(shape: Shape, update: int) -> float:
    """Share of episodes won after so many updates."""
    x = update / max(shape.updates, 1)
    return 0.16 + 0.68 / (1 + math.exp(-9 * (x - 0.45)))


def verdict_of(shape: Shape, rng: random.Random, right: bool, update: int) -> list[float]:
    """q(e) of one step; the judge grows surer and righter."""
    sure = 0.55 + 0.35 * update / max(shape.updates, 1)
    centre = sure if right == (rng.random() < 0.85 + 0.1 * update / max(shape.updates, 1)) else 1 - sure
    score = min(max(rng.gauss(centre, 0.12), 0.02), 0.98)
    weights = [math.exp(-((score - u) ** 2) / 0.18) for u in utilities(shape)]
    if len(weights) == 2:
        weights = [score, 1 - score]
    total = sum(weights)
    return [round(w / total, 6) for w in weights]


def episode(shape: Shape, shop: Shop, update: int, task: int, rng: random.Random, judged: bool) -> dict[str, Any]:
    """One line of trajectories.jsonl, or (not judged) of evaluations.jsonl."""
    length = rng.randrange(min(shape.shortest, shape.turns), shape.turns + 1)
    won = rng.random() < skill(shape, update)
    right = [rng.random() < (0.86 if won else 0.6) for _ in range(length)]
    turns: list[dict[str, Any]] = []
    for step in range(length):
        good, last = right[step], step == length - 1
        code = shop.goal(task)[0]
        action = f"click[{code}]" if good else rng.choice(MISTAKES)
        turn: dict[str, Any] = {
            "observation": shop.page(rng, task),
            "action": "click[buy now]" if last else action,
            "reward": float(won and last),
            "action_valid": rng.random() > 0.03,
        }
        if judged and shape.verdicts:
            probs = verdict_of(shape, rng, good, update)
            score = sum(p * u for p, u in zip(probs, utilities(shape), strict=True))
            praise = 0.1 * (score - 0.5) / 0.25 if shape.placement == "advantage" else 0.03 * (score - 0.5) / 0.25
            turn.update(score=round(score, 6), verdict_probs=probs, shaping=round(praise, 6))
            if shape.written:
                word = shape.verdicts[max(range(len(probs)), key=probs.__getitem__)]
                turn["evaluation"] = f"The step {'brought the ware nearer' if good else 'lost time'}. Verdict: {word}."
        if judged:
            turn["advantage"] = round(rng.gauss(0.8 if won else -0.6, 0.4) + turn.get("shaping", 0.0), 6)
        turns.append(turn)
    return {
        "update": update,
        "task": {"seed": 1000 + task, "goal": task, "split": "train" if judged else "test"},
        "seed": 1000 + task,
        "instruction": shop.instruction(task),
        "turns": turns,
        "final_observation": "Thank you for shopping with us!" if won else "Your order was not what was asked for.",
        "return": float(won),
        "success": won,
        "stop_reason": "terminated" if rng.random() > 0.04 else "max_turns",
    }


def failed_episode(update: int, task: int) -> dict[str, Any]:
    return {
        "update": update,
        "task": {"seed": 1000 + task, "goal": task, "split": "train"},
        "seed": 1000 + task,
        "instruction": "",
        "turns": [],
        "final_observation": "",
        "return": 0.0,
        "success": False,
        "stop_reason": "env_error",
        "error": "EnvironmentTimeout: step() took longer than 60 s; the process was stopped",
    }


def metrics_of(shape: Shape, update: int, episodes: Sequence[dict[str, Any]], rng: random.Random) -> dict[str, Any]:
    """What the trainer logs about the update. Only what is drawn is exact; the rest is plausible."""
    x = update / max(shape.updates, 1)
    played = [e for e in episodes if e["stop_reason"] != "env_error"]
    mean = lambda values: sum(values) / len(values) if values else 0.0  # noqa: E731
    entry: dict[str, Any] = {
        "step": update * (2 if shape.grpo else 1),
        "epoch": round(update * shape.batch / shape.train_tasks, 4),
        "env/success": mean([float(e["success"]) for e in played]),
        "env/return": mean([e["return"] for e in played]),
        "env/episode_length": mean([len(e["turns"]) for e in played]),
        "env/invalid_action_rate": mean([not t["action_valid"] for e in played for t in e["turns"]]),
        "env/truncated_rate": mean([e["stop_reason"] == "max_turns" for e in played]),
        "env/error_rate": 1 - len(played) / len(episodes),
        "loss/policy_avg": rng.gauss(-0.01, 0.01),
        "loss/value_avg": 0.2 * math.exp(-3 * x) + 0.02 * rng.random(),
        "policy/entropy_avg": 1.2 - 0.8 * x + 0.03 * rng.gauss(0, 1),
        "objective/kl": 0.3 * x + 0.02 * rng.random(),
        "policy/clipfrac_avg": 0.05 + 0.02 * rng.random(),
        "lr": 3e-6 * (1 - x),
        "episode": update * shape.batch,
        "time/rollout": 9 + rng.random(),
        "time/evaluate": 1.6 + 0.1 * rng.random(),
        "time/update": 6.4 + 0.3 * rng.random(),
        "time/other": 0.2 + 0.05 * rng.random(),
    }
    if shape.grpo:
        entry.update(
            {"reward": entry["env/return"], "kl": entry.pop("objective/kl"), "loss": entry.pop("loss/policy_avg")}
        )
    if shape.verdicts:
        entry |= {
            "hindsight/auroc": min(0.99, 0.62 + 0.3 * x + 0.04 * rng.gauss(0, 1)),
            "hindsight/brier": 0.26 - 0.12 * x + 0.01 * rng.gauss(0, 1),
            "hindsight/ece": abs(0.2 - 0.14 * x + 0.02 * rng.gauss(0, 1)),
            "hindsight/score_mean": 0.48 + 0.3 * x + 0.01 * rng.gauss(0, 1),
            "hindsight/score_gap": 0.05 + 0.16 * x + 0.01 * rng.gauss(0, 1),
            "hindsight/within_episode_spread": 0.19 - 0.03 * x + 0.005 * rng.gauss(0, 1),
            "hindsight/verdict_entropy": 0.58 - 0.2 * x,
            "hindsight/shaping_share": 0.6 - 0.4 * x,
            "hindsight/gate": 1.0 if rng.random() > 0.1 else 0.6,
            "hindsight/agreement_z": 0.5 + 3 * x + 0.3 * rng.gauss(0, 1),
            "mise/mutual_information": 0.09 - 0.03 * x + 0.004 * rng.gauss(0, 1),
            "mise/kl_to_proxy": 0.12 + 0.1 * x,
            "calibration/loss": 0.69 - 0.3 * x + 0.02 * rng.gauss(0, 1),
            "calibration/anchor": 0.02 + 0.04 * x,
            "time/scoring": 0.9 + 0.05 * rng.random(),
            "time/calibrate": 0.7 + 0.05 * rng.random(),
        }
    return entry


def run_info(shape: Shape) -> dict[str, Any]:
    options: dict[str, Any] = {
        "output_dir": "/home/someone/secret-project/runs/shop",
        "learning_rate": 1e-5,
        "total_episodes": shape.updates * shape.batch,
        "seed": shape.seed,
        "gamma": 1.0,
        "max_turns": shape.turns,
        "hindsight_coef": 0.1 if shape.verdicts else 0,
        "hindsight_placement": shape.placement,
        "hindsight_verdicts": list(shape.verdicts) or ["good", "bad"],
        "hindsight_utilities": utilities(shape) if shape.verdicts else [1.0, 0.0],
        "hindsight_gate": "agreement",
        "verdict_mode": "generate" if shape.written else "expected",
        "evaluator_view": "masked",
        "calibration_target": "sum",
        **shape.options,
    }
    failed = shape.status == "failed"
    return {
        "schema": 1,
        "trainer": "MISEGRPOTrainer" if shape.grpo else "MISETrainer",
        "status": shape.status,
        "started": "2026-11-20T09:00:00+00:00",
        "ended": None if shape.status == "running" else "2026-11-20T09:14:20+00:00",
        "error": "NonFiniteUpdate: update 40: loss or gradient is not finite (11 in a row)" if failed else None,
        "model": "example/shop-clerk-0.5B",
        "num_parameters": 494032768,
        "num_trainable_parameters": 8798208,
        "device": "cpu",
        "num_processes": 1,
        "environment": "webshop",
        "train_tasks": shape.train_tasks,
        "eval_tasks": shape.eval_tasks if shape.evaluations else None,
        "total_updates": shape.updates * (2 if shape.grpo else 1),  # of GRPO: optimizer steps
        "batch_size": shape.batch,
        "versions": {
            "trl-mise": "0.4.0",
            "trl": "1.16.0",
            "transformers": "5.24.0",
            "torch": "2.13.0",
            "python": "3.11",
        },
        "options": options,
        "resumed": [{"update": shape.updates // 2, "at": "2026-11-20T09:07:00+00:00"}],
    }


EVENTS = (
    (
        0.2,
        "health",
        "collapsed verdicts: for 5 updates the judge has said the same of every step "
        "(mise/mutual_information 6.1e-04 nats), so hindsight teaches nothing. Reword hindsight_prompt",
    ),
    (0.55, "skipped", "loss or gradient is not finite, the optimizer step is not taken (1 in a row)"),
)


def training_episodes(shape: Shape, shop: Shop) -> Iterator[list[dict[str, Any]]]:
    """The episodes of each update, from 1."""
    rng = random.Random(shape.seed)
    copies = 4 if shape.grpo else 1
    for update in range(1, shape.updates + 1):
        first = (update - 1) * shape.batch // copies
        tasks = [(first + k // copies) % shape.train_tasks for k in range(shape.batch)]
        played = [episode(shape, shop, update, task, rng, judged=True) for task in tasks]
        if update == 3:
            played[-1] = failed_episode(update, tasks[-1])
        yield played


def evaluation_episodes(shape: Shape, shop: Shop) -> Iterator[dict[str, Any]]:
    rng = random.Random(shape.seed + 1)
    for update in shape.evaluations:
        for task in range(shape.eval_tasks):
            yield episode(shape, shop, update, 5000 + task, rng, judged=False)


def write_lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")


def write_run(folder: Path, shape: Shape | None = None, **changes: Any) -> Path:
    """Writes the five files of a run into `folder` (made if need be), and returns it.

    Args:
        folder (`Path`): the run directory.
        shape ([`Shape`], *optional*): what the run is like.
        changes: fields of the shape to change.
    """
    shape = replace(shape or Shape(), **changes)
    folder.mkdir(parents=True, exist_ok=True)
    shop, rng = Shop(shape.seed), random.Random(shape.seed + 2)
    training: list[dict[str, Any]] = []
    log: list[dict[str, Any]] = []
    evaluations = list(evaluation_episodes(shape, shop))
    log += [evaluation_entry(evaluations, 0)] if 0 in shape.evaluations else []
    for update, episodes in enumerate(training_episodes(shape, shop), start=1):
        training += episodes
        log.append(metrics_of(shape, update, episodes, rng))
        if update in shape.evaluations:
            log.append(evaluation_entry(evaluations, update) | {"step": log[-1]["step"]})
    write_lines(folder / "trajectories.jsonl", training)
    write_lines(folder / "metrics.jsonl", log)
    if shape.evaluations:
        write_lines(folder / "evaluations.jsonl", evaluations)
    events = [
        {"update": max(1, int(x * shape.updates)), "kind": k, "message": m}
        for x, k, m in EVENTS
        if shape.verdicts or k != "health"
    ]
    write_lines(folder / "events.jsonl", events)
    (folder / "run.json").write_text(json.dumps(run_info(shape), indent=2), encoding="utf-8")
    return folder


def evaluation_entry(episodes: Sequence[dict[str, Any]], update: int) -> dict[str, Any]:
    played = [e for e in episodes if e["update"] == update]
    return {
        "step": update,
        "eval_success": sum(e["success"] for e in played) / len(played),
        "eval_return": sum(e["return"] for e in played) / len(played),
        "eval_episode_length": sum(len(e["turns"]) for e in played) / len(played),
        "eval_episodes": float(len(played)),
    }
