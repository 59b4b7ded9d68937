"""`trl-mise rollout`: plays episodes and prints them; of a model also what it thinks of its steps in hindsight."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..envs.registry import EnvironmentSpec, environment_spec
from ..evaluation import evaluate
from .common import (
    add_agent_options,
    add_environment_options,
    add_task_options,
    known_of_run,
    make_agent,
    make_model_agent,
    new_parser,
    read_yaml,
    tasks_to_play,
    with_known_options,
)
from .transcript import Transcripts, print_episode

EXAMPLES = """\
examples:
  trl-mise rollout --env webshop --agent expert --episodes 1
  trl-mise rollout --model_name_or_path runs/shop --temperature 1   sampled, with the run's own question to the judge
  trl-mise rollout --model_name_or_path runs/shop --output episodes.jsonl"""

# Option of the judge -> its name in a run's file.
JUDGE = {
    "prompt": "hindsight_prompt",
    "verdicts": "hindsight_verdicts",
    "utilities": "hindsight_utilities",
    "verdict_mode": "verdict_mode",
    "view": "evaluator_view",
    "context_tokens": "hindsight_context_tokens",
    "reason_tokens": "hindsight_reason_tokens",
}


def main(argv: Sequence[str]) -> int:
    options = with_known_options(_parser().parse_args(argv))
    spec = environment_spec(options.env)
    tasks = tasks_to_play(spec, options)
    records = (_model_episodes if options.agent == "model" else _scripted_episodes)(spec, tasks, options)
    for number, record in enumerate(records, 1):
        print_episode(record, title=f"episode {number} of {len(records)}, ", full=options.full)
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(record, ensure_ascii=False, default=str) + "\n" for record in records)
        options.output.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
    return int(all(record.get("stop_reason") == "env_error" for record in records))


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("rollout", "Play episodes and print them, every step with its hindsight score.", EXAMPLES)
    add_environment_options(parser)
    add_task_options(parser, episodes=3)
    parser.add_argument("--full", action="store_true", help="print whole observations")
    parser.add_argument("--output", type=Path, help="JSON lines file for the episodes, as trajectories.jsonl")
    add_agent_options(parser)
    judge = parser.add_argument_group("the judge (of the model agent)")
    judge.add_argument("--no_scores", action="store_true", help="do not ask it")
    judge.add_argument("--hindsight_prompt", help="Jinja template of the question; the same as in its training")
    judge.add_argument("--hindsight_verdicts", nargs="+", help="verdict words, best first; default: good bad")
    judge.add_argument("--hindsight_utilities", nargs="+", type=float, help="of each verdict; default: 1 0")
    judge.add_argument("--evaluator_view", choices=["full", "masked", "prefix"], help="what it sees; default: full")
    return parser


def _scripted_episodes(
    spec: EnvironmentSpec, tasks: Sequence[Mapping[str, Any]], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Of an agent that needs no model."""
    transcripts = Transcripts(spec.factory(**(options.env_kwargs or {})))
    agent = make_agent(spec.expert_action, options)
    result = evaluate(agent, transcripts, tasks, max_steps=options.max_steps or spec.max_steps)
    for index, episode in enumerate(result.episodes):
        if episode.error is not None:
            if index == len(transcripts.episodes):  # it failed before it began
                transcripts.episodes.insert(index, _unplayed(episode.task))
            transcripts.episodes[index].update(stop_reason="env_error", error=episode.error)
    return transcripts.episodes


def _unplayed(task: Mapping[str, Any]) -> dict[str, Any]:
    return {"task": dict(task), "turns": [], "final_observation": "", "return": 0.0, "success": False}


def _model_episodes(
    spec: EnvironmentSpec, tasks: Sequence[Mapping[str, Any]], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Of a language model, which also judges its steps."""
    agent = make_model_agent(options)
    from ..trajectory_log import trajectory_record

    factory = spec.factory(**(options.env_kwargs or {}))
    trajectories = agent.rollout(factory, tasks, options.max_steps or spec.max_steps)
    judged = [i for i, trajectory in enumerate(trajectories) if trajectory.num_steps and not trajectory.failed]
    if options.no_scores or not judged:
        return [trajectory_record(0, trajectory, None, None) for trajectory in trajectories]
    scores = agent.score([trajectories[i] for i in judged], **_judge_options(options))
    verdicts = (scores.split(), scores.split(scores.verdict_probs), scores.split_written())
    of_episode = dict(zip(judged, zip(*verdicts, strict=True), strict=True))
    return [trajectory_record(0, t, *of_episode.get(i, (None, None))) for i, t in enumerate(trajectories)]


def _judge_options(options: argparse.Namespace) -> dict[str, Any]:
    """What was given comes first, then `--config`, then the run's own."""
    known = known_of_run(options.model_name_or_path)
    if options.config is not None:
        known.update(read_yaml(options.config))
    known.update({name: value for name, value in vars(options).items() if value is not None})
    return {argument: known[name] for argument, name in JUDGE.items() if known.get(name) is not None}
