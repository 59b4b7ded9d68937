"""The generated shop stays what results were measured on: goals, rows, search order, pages, rewards, to the letter.

`python tests/test_webshop_generated_golden.py` prints the digests; they were taken before official files
were supported.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from trl_mise.envs.webshop import SMALL_SHOP, WebShopEnv, make_tasks, vocabulary
from trl_mise.envs.webshop_policies import expert_action, hasty_action
from trl_mise.webshop_recipe import WebShopRecipe

SHOPS = {
    "default": {},
    "small": dict(SMALL_SHOP),
    "recipe": WebShopRecipe().env_kwargs,
    "success": {"catalogue_seed": 5, "num_products": 600, "max_results": 20, "reward": "success", "max_steps": 9},
}
DIGESTS = {
    "default": "0a981a27040de44630951726",
    "small": "4615ded7e7fb5ec3b409d3e5",
    "recipe": "0abdd71b70104df37cdd3a86",
    "success": "81bd2d079f4eef31f45955ea",
}
EPISODE = Path(__file__).parent / "data" / "webshop" / "generated_episode.json"


def admissible_action(env, rng):
    return str(rng.choice(env.admissible_actions()))


def transcript(env, row, policy, max_turns=12):
    """Everything that an episode shows, as JSON-able values."""
    observation, info = env.reset(seed=row["seed"], options=row)
    steps = [[observation, info["instruction"], info["admissible_actions"]()]]
    for _ in range(max_turns):
        action = policy(env)
        observation, reward, terminated, truncated, info = env.step(action)
        steps.append([action, observation, reward, terminated, truncated, info["score"], info.get("won")])
        if terminated or truncated:
            break
    return steps


def record(kwargs):
    """Rows, goals, the order of searches, and episodes of three policies in both splits."""
    rng = np.random.default_rng(7)
    policies = (expert_action, lambda env: hasty_action(env, rng), lambda env: admissible_action(env, rng))
    recorded = [vocabulary(kwargs)]
    for split in ("train", "test"):
        env = WebShopEnv(split=split, **kwargs)
        rows = make_tasks(split, 45, seed=3, **kwargs)
        recorded.append([rows, [goal.instruction for goal in env.goals]])
        for goal in env.goals[:40]:
            for query in (goal.instruction, goal.product.query, " ".join((*goal.attributes, goal.product.query))):
                recorded.append(env.shop.catalogue.search(query, 50))
        recorded += [transcript(env, row, policies[number % 3]) for number, row in enumerate(rows)]
        recorded += [env.reset(seed=seed)[0] for seed in range(10)]
    return recorded


def digest(kwargs):
    return hashlib.sha256(json.dumps(record(kwargs)).encode()).hexdigest()[:24]


@pytest.mark.parametrize("shop", SHOPS)
def test_generated_shop_has_not_changed(shop):
    assert digest(SHOPS[shop]) == DIGESTS[shop]


def test_an_episode_to_read():
    env = WebShopEnv(split="test", **SMALL_SHOP)
    played = transcript(env, {"seed": 0, "goal": 1}, expert_action)
    assert [played[0][0], *(text for step in played[1:] for text in step[:2])] == json.loads(EPISODE.read_text())


if __name__ == "__main__":
    print(json.dumps({shop: digest(kwargs) for shop, kwargs in SHOPS.items()}, indent=2))
