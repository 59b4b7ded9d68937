"""Shopping by hand: `python -m trl_mise.envs.webshop --play`."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

HELP = "an action is search[words] or click[target]; ? lists what can be clicked, q (or Ctrl-D) ends"


def main(
    make_env: Callable[..., Any], argv: Sequence[str] | None = None, small: Mapping[str, Any] | None = None
) -> int:
    """Reads actions from the standard input, one a line, and prints pages until the purchase.

    Args:
        make_env (callable): the class of the environment.
        argv (`Sequence[str]`, *optional*): arguments. Default: those of the command line.
        small (`Mapping[str, Any]`, *optional*): arguments of the small shop.

    Returns:
        `int`: exit status; 2 if the shop cannot be opened.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    if not args.play:
        parser.print_help()
        return 0
    try:
        env = make_env(**_env_kwargs(args, small or {}))
        observation, info = env.reset(seed=args.seed, options={} if args.goal is None else {"goal": args.goal})
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{HELP}\n\n{observation}")
    try:
        _loop(env, info)
    except (EOFError, KeyboardInterrupt):
        print("\nbye")
    finally:
        env.close()
    return 0


def _loop(env: Any, info: Mapping[str, Any]) -> None:
    while True:
        line = input("\n> ").strip()
        if line in ("q", "quit", "exit"):
            raise EOFError
        if line in ("?", ""):
            print("\n".join(info["admissible_actions"]()) if line else HELP)
            continue
        observation, reward, terminated, _, info = env.step(line)
        if not info["action_valid"]:
            print(f"that does nothing here; {HELP}")
            continue
        print(f"\n{observation}")
        if terminated:
            print(f"\nreward {reward:.3f}, {'won' if info['won'] else 'not all that was wanted'}")
            return


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trl_mise.envs.webshop", description="Shop by hand in a terminal.")
    parser.add_argument("--play", action="store_true", help="open the shop")
    parser.add_argument("--data_dir", help="folder with the official WebShop files; without it the shop is generated")
    parser.add_argument("--items_file", help="which items_shuffle*.json of data_dir, if there are several")
    parser.add_argument("--split", default="train", help="train, test or, with --data_dir, dev (%(default)s)")
    parser.add_argument("--goal", type=int, help="number of the goal in the split; default: drawn from --seed")
    parser.add_argument("--seed", type=int, default=0, help="seed of the goal (%(default)s)")
    parser.add_argument("--observation_mode", choices=("text", "text_rich"), default="text_rich", help="(%(default)s)")
    parser.add_argument("--catalogue", choices=("small", "default"), default="default", help="generated shop's size")
    return parser


def _env_kwargs(args: argparse.Namespace, small: Mapping[str, Any]) -> dict[str, Any]:
    kwargs = {"split": args.split, "observation_mode": args.observation_mode}
    if args.data_dir is not None:
        return {**kwargs, "data_dir": args.data_dir, "items_file": args.items_file}
    return {**kwargs, **(small if args.catalogue == "small" else {})}
