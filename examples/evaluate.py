"""Plays an environment with a random agent, an expert or a model, and says how well it went: `trl-mise eval`.

    python examples/evaluate.py --env textworld --agent expert --episodes 20   # is everything installed? must win all
    python examples/evaluate.py --env webshop --agent model --config examples/configs/webshop.yaml --episodes 100
    python examples/evaluate.py --agent model --model_name_or_path runs/kitchen   # a run of `trl-mise train`

A model is a folder that a trainer saved to, a LoRA adapter, or a name on the hub. The policies of the other examples
also need what their environment is called: `--env kitchen --model_name_or_path runs/kitchen`.
"""

import sys

import _paths  # noqa: F401

from trl_mise.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
