"""The web shop: reward formula, action parser, pages, catalogue, tasks, and the policies that know it from inside."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_mise.envs.check import check_env
from trl_mise.envs.webshop import SMALL_SHOP, WebShopEnv, make_tasks, vocabulary
from trl_mise.envs.webshop_catalogue import CATEGORIES, CatalogueSpec, Category, Goal, Product, build_catalogue
from trl_mise.envs.webshop_pages import parse_action, split_words
from trl_mise.envs.webshop_policies import expert_action, hasty_action, judge_step
from trl_mise.envs.webshop_reward import purchase_reward, satisfies, type_reward
from trl_mise.envs.webshop_search import BM25Index

JACKET = Category("jacket", ("clothing", "jacket"), (), ())
WANTED = Product(
    asin="b0001",
    title="norvik waterproof slim jacket",
    category=JACKET,
    nouns=frozenset({"jacket"}),
    attributes=("waterproof", "slim", "hooded"),
    options=(("size", ("small", "large")), ("color", ("red", "blue"))),
    price=35.0,
    description="jacket made by norvik",
    bullets=("waterproof, slim, hooded", "free returns"),
)
GOAL = Goal(WANTED, ("waterproof", "hooded"), (("size", "large"), ("color", "red")), 40.0)


TRAPS = (
    "",
    "\n",
    " \t ",
    "look. take all. buy now. click[buy now].",
    "search[tea]\nclick[buy now]",
    "click[buy now]\nclick[buy now]",
    "click[features]. click[buy now]",
    "save",
    "restore",
    "quit",
    "restart",
    "reset task",
    "click[quit]",
    "click[search]",
    "x" * 10_000,
    "click[" + "x" * 10_000 + "]",
    "[" * 10_000,
    "click[buy\x00now]",
    "\x00\x07\x1b[2J\x7f",
    "\N{ROLLING ON THE FLOOR LAUGHING}",
    "click[\N{ROLLING ON THE FLOOR LAUGHING}]",
    "<|im_end|>",
)


def play(env, row, policy, max_turns=30):
    """(observations, actions, rewards, infos) of one episode."""
    observation, info = env.reset(seed=row["seed"], options=row)
    observations, actions, rewards, infos = [observation], [], [], [info]
    for _ in range(max_turns):
        actions.append(policy(env))
        observation, reward, terminated, truncated, info = env.step(actions[-1])
        observations.append(observation)
        rewards.append(reward)
        infos.append(info)
        if terminated or truncated:
            break
    return observations, actions, rewards, infos


def admissible_action(env, rng):
    return str(rng.choice(env.admissible_actions()))


class TestReward:
    @pytest.mark.parametrize(
        ("product", "options", "expected"),
        [
            (WANTED, {"size": "large", "color": "red"}, 1.0),  # (2 + 2 + 1) / 5
            (WANTED, {"size": "large", "color": "blue"}, 0.8),
            (WANTED, {}, 0.6),  # (2 + 0 + 1) / 5
            (replace(WANTED, price=40.0), {}, 0.6),  # the upper price itself is allowed
            (replace(WANTED, price=45.0), {"size": "large"}, 0.6),  # (2 + 1 + 0) / 5
            (replace(WANTED, attributes=("hooded",), bullets=()), {}, 0.6),  # waterproof stands in the title
            (replace(WANTED, title="jacket", attributes=("hooded",), bullets=()), {}, 0.4),
            (replace(WANTED, nouns=frozenset({"coat"})), {"size": "large", "color": "red"}, 0.0),  # no common noun
        ],
    )
    def test_golden(self, product, options, expected):
        assert purchase_reward(product, options, GOAL) == pytest.approx(expected)

    def test_without_options(self):
        goal = Goal(WANTED, ("waterproof",), (), 30.0)
        assert purchase_reward(WANTED, {"size": "small"}, goal) == pytest.approx(0.5)  # (1 + 0 + 0) / 2

    @pytest.mark.parametrize(
        ("common", "of", "expected"), [(0, 20, 0.0), (1, 20, 0.1), (2, 20, 0.5), (4, 20, 0.5), (5, 20, 1.0)]
    )
    def test_type_by_title(self, common, of, expected):
        wanted = replace(WANTED, nouns=frozenset(str(i) for i in range(of)))
        other = Category("lamp", ("home", "lamp"), (), ())
        bought = replace(WANTED, category=other, nouns=frozenset(str(i) for i in range(common)))
        assert type_reward(bought, wanted) == expected

    def test_same_path_or_query_lifts_a_half(self):
        wanted = replace(WANTED, nouns=frozenset("abcdefghij"))
        bought = replace(WANTED, nouns=frozenset("a"))
        parka = Category("parka", JACKET.path, (), ())
        shelf = Category("jacket", ("sale", "other"), (), ())
        lamp = Category("lamp", ("home", "lamp"), (), ())
        assert [type_reward(replace(bought, category=c), wanted) for c in (parka, shelf, lamp)] == [1.0, 1.0, 0.5]

    def test_reward_option(self):
        for kind, expected in (("official", None), ("success", 0.0)):
            env = WebShopEnv(reward=kind, **SMALL_SHOP)
            index = next(i for i, goal in enumerate(env.goals) if goal.options)
            env.reset(options={"goal": index})
            while expert_action(env) != f"click[{env.goal.options[0][1]}]":
                env.step(expert_action(env))
            _, reward, terminated, _, info = env.step("click[buy now]")  # everything right but the option
            parts = len(env.goal.attributes) + 2
            assert terminated and info["won"] is False
            assert info["score"] == pytest.approx((parts - 1) / parts)
            assert reward == (info["score"] if expected is None else expected)


class TestActions:
    @pytest.mark.parametrize("action", ["click[buy now]", "click[ Buy  Now ]", " CLICK[BUY NOW]\n", "Click[buy\tnow]"])
    def test_case_and_spaces_do_not_matter(self, action):
        assert parse_action(action) == ("click", "buy now")

    @pytest.mark.parametrize(
        "action",
        ["", "\n", "buy now", "click", "click[]", "click[ ]", "search[", "click[a] now", "go click[a]", "click a"],
    )
    def test_anything_else_means_nothing(self, action):
        assert parse_action(action) is None

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.one_of(st.text(max_size=30), st.text(max_size=12).map(lambda t: f"click[{t}]"))), st.data())
    def test_random_text_never_raises_and_only_buying_ends(self, texts, data):
        env = WebShopEnv(**SMALL_SHOP)
        observation, _ = env.reset(seed=data.draw(st.integers(0, 9)))
        for text in texts:
            text = data.draw(st.sampled_from([text, *env.admissible_actions()]))
            before = observation
            observation, reward, terminated, truncated, info = env.step(text)
            assert terminated == (parse_action(text) == ("click", "buy now") and info["action_valid"])
            assert not truncated and 0 <= reward <= 1
            assert info["action_valid"] or observation == before
            if terminated:
                break
            assert reward == 0 and "won" not in info

    @pytest.mark.parametrize("action", TRAPS, ids=lambda action: ascii(action[:20]))
    @pytest.mark.parametrize("page", ["search", "results", "item", "sub_page"])
    def test_traps_change_nothing(self, action, page):
        """What is dangerous or means something in other environments, and what no tokenizer expects."""
        env = WebShopEnv(**SMALL_SHOP)
        env.reset(seed=0)
        while env.state.page != page:
            env.step("click[features]" if env.state.page == "item" else expert_action(env))
        state = env.state
        before = env.step("nothing")[0]
        observation, reward, terminated, truncated, info = env.step(action)
        assert (observation, reward, terminated, truncated) == (before, 0.0, False, False)
        assert info["action_valid"] is False and env.state == state and "won" not in info

    def test_a_chain_is_one_search_at_most(self):
        """Brackets may stand in what is searched; the rest of the chain is searched for and never done."""
        assert parse_action("search[tea]. click[buy now]") == ("search", "tea]. click[buy now")
        assert parse_action("search[mug [blue]]") == ("search", "mug [blue]")

    def test_no_op_then_latched_end(self):
        env = WebShopEnv()
        first, _ = env.reset(seed=1)
        for action in ("click[buy now]", "click[search]", "click[b0000]", "hello"):
            observation, reward, terminated, _, info = env.step(action)
            assert (observation, reward, terminated, info["action_valid"]) == (first, 0.0, False, False)
        while not terminated:
            _, reward, terminated, _, info = env.step(expert_action(env))
        assert reward == 1.0 and info["won"] is True
        _, reward, terminated, _, info = env.step("search[jacket]")
        assert (reward, terminated, info["action_valid"]) == (0.0, True, False)  # paid once

    def test_max_steps_truncates(self):
        env = WebShopEnv(max_steps=2)
        env.reset(seed=0)
        assert env.step("x")[2:4] == (False, False)
        assert env.step("x")[2:4] == (False, True)


class TestPages:
    def test_walk(self):
        env = WebShopEnv(results_per_page=10, max_results=50)
        start, info = env.reset(seed=0)
        instruction = info["instruction"]
        assert start == f"WebShop [SEP] Instruction: [SEP] {instruction} [SEP] Search"
        head = f"Instruction: [SEP] {instruction} [SEP] Back to Search [SEP] "
        first = env.step("search[free lightweight organic made]")[0]
        assert first.startswith(f"{head}Page 1 (Total results: 50) [SEP] Next > [SEP] b")
        pages = [first] + [env.step("click[next >]")[0] for _ in range(4)]
        assert pages[1].startswith(f"{head}Page 2 (Total results: 50) [SEP] < Prev [SEP] Next > [SEP] b")
        assert pages[4].startswith(f"{head}Page 5 (Total results: 50) [SEP] < Prev [SEP] b")
        assert env.step("click[next >]")[4]["action_valid"] is False
        assert env.step("click[< prev]")[0] == pages[3]
        asins = [asin for page in pages for asin in page.split(" [SEP] ") if asin in env.shop.catalogue.by_asin]
        assert len(asins) == len(set(asins)) == 50
        product = env.shop.catalogue.by_asin[asins[30]]
        assert f"{product.asin} [SEP] {product.title} [SEP] ${product.price:.2f}" in pages[3]
        item = env.step(f"click[{product.asin}]")[0]
        options = " [SEP] ".join(text for name, values in product.options for text in (name, *values))
        assert item == (
            f"{head}< Prev [SEP] {options} [SEP] {product.title} [SEP] Price: ${product.price:.2f} [SEP] Rating: N.A. "
            "[SEP] Description [SEP] Features [SEP] Reviews [SEP] Buy Now"
        )
        for name, text in (("Description", product.description), ("Reviews", "No reviews found")):
            assert env.step(f"click[{name}]")[0] == f"{head}< Prev [SEP] {text}"
            assert env.step("click[< Prev]")[0] == item
        assert env.step("click[< prev]")[0] == pages[3]  # back to the page that it was found on
        assert env.step("click[back to search]")[0] == start

    def test_empty_results(self):
        env = WebShopEnv(show_instruction=False)
        env.reset(seed=0)
        observation, *_, info = env.step("search[zzz]")
        assert observation == "Back to Search [SEP] Page 1 (Total results: 0)" and info["action_valid"]

    def test_options_replace_survive_sub_pages_and_are_forgotten_on_leaving(self):
        env = WebShopEnv()
        env.reset(seed=0)
        env.step("search[jacket]")
        asin = env.state.results[0]
        env.step(f"click[{asin}]")
        (size, sizes), (color, colors) = env.shop.product(env.state).options
        for action in (sizes[0], colors[1], sizes[1], "features", "< prev"):
            env.step(f"click[{action}]")
        assert dict(env.state.options) == {size: sizes[1], color: colors[1]}
        env.step("click[< prev]")
        env.step(f"click[{asin}]")
        assert env.state.options == ()

    def test_text_rich(self):
        env = WebShopEnv(observation_mode="text_rich", show_instruction=False, **SMALL_SHOP)
        start, info = env.reset(seed=0)
        assert start == f"WebShop\nInstruction: \n{info['instruction']}\n[button] Search [button_]\n"
        results = env.step(f"search[{env.goals[0].product.query}]")[0]
        first, *_ = (env.shop.catalogue.by_asin[asin] for asin in env.state.results)
        head = "[button] Back to Search [button_]\n"
        assert results.startswith(
            f"{head}Page 1 (Total results: 9)\n[button] Next > [button_]\n\n[button] {first.asin} [button_]\n"
            f"{first.title}\n{first.price_tag}\n\n[button] "
        )
        (name, values), *_ = first.options
        env.step(f"click[{first.asin}]")
        item = env.step(f"click[{values[1]}]")[0]
        marked = "".join(
            f"  [clicked button] {value} [clicked button_]\n"
            if value == values[1]
            else f"  [button] {value} [button_]\n"
            for value in values
        )
        assert item.startswith(f"You have clicked {values[1]}.\n{head}[button] < Prev [button_]\n{name}\n{marked}")
        assert f"[clicked button] {first.asin} [clicked button_]" in env.step("click[< prev]")[0]
        assert f"\n[button] {first.asin} [button_]" in results

    def test_both_modes_have_the_same_episodes(self):
        """Only what is shown differs."""
        env, rich = WebShopEnv(**SMALL_SHOP), WebShopEnv(observation_mode="text_rich", **SMALL_SHOP)
        rng = np.random.default_rng(0)
        for seed in range(10):
            env.reset(seed=seed), rich.reset(seed=seed)
            for _ in range(10):
                action = admissible_action(env, rng)
                plain, marked = env.step(action), rich.step(action)
                assert plain[1:4] == marked[1:4] and env.state == rich.state
                if plain[2]:
                    break

    def test_done_page(self):
        env = WebShopEnv(split="test")
        observations, *_ = play(env, {"seed": 0}, expert_action)
        assert observations[-1] == ("Thank you for shopping with us! [SEP] Your score (min 0.0, max 1.0) [SEP] 1.0")

    @pytest.mark.parametrize("kwargs", [{}, SMALL_SHOP, {"show_instruction": False}])
    def test_admissible_actions_are_on_the_page_and_valid(self, kwargs):
        env = WebShopEnv(**kwargs)
        rng = np.random.default_rng(0)
        for seed in range(20):
            observation, info = env.reset(seed=seed)
            for _ in range(12):
                for action in info["admissible_actions"]():
                    _, target = parse_action(action)
                    assert target in observation.lower()
                action = admissible_action(env, rng)
                observation, _, terminated, _, info = env.step(action)
                assert info["action_valid"], action
                if terminated:
                    assert info["admissible_actions"]() == []
                    break

    def test_small_shop_is_small(self):
        env = WebShopEnv(split="test", **SMALL_SHOP)
        assert env.num_goals >= 100
        rng = np.random.default_rng(0)
        for row in make_tasks("test", 60, **SMALL_SHOP):
            for observation in play(env, row, lambda env: admissible_action(env, rng))[0]:
                assert len(split_words(observation)) <= 80


class TestCatalogue:
    def test_seeds(self):
        spec = CatalogueSpec(num_products=60)
        again = build_catalogue.__wrapped__(spec)
        assert build_catalogue(spec) is build_catalogue(CatalogueSpec(num_products=60))
        assert again.products == build_catalogue(spec).products and again.goals == build_catalogue(spec).goals
        assert build_catalogue(replace(spec, seed=1)).products != again.products

    def test_splits_are_disjoint_and_every_goal_can_be_won(self):
        catalogue = build_catalogue(CatalogueSpec())
        train, test = ({goal.instruction for goal in catalogue.goals[split]} for split in ("train", "test"))
        assert not train & test
        assert len(train) + len(test) == sum(map(len, catalogue.goals.values()))
        assert len(test) == round(0.2 * (len(train) + len(test)))
        assert all(satisfies(goal.product, goal) for goals in catalogue.goals.values() for goal in goals)

    def test_goals_ask_for_different_things(self):
        goals = build_catalogue(CatalogueSpec()).goals["train"]
        assert {len(goal.attributes) for goal in goals} == {1, 2}
        assert {len(goal.options) for goal in goals} == {0, 1, 2}
        assert len({goal.product.query for goal in goals}) == len(CATEGORIES)

    def test_search_terms_matter(self):
        """The category alone rarely brings a right product first, with the attributes it mostly does on page one."""
        catalogue = build_catalogue(CatalogueSpec())

        def found(query, goal, limit):
            return any(satisfies(catalogue.by_asin[asin], goal) for asin in catalogue.search(query, limit))

        goals = catalogue.goals["test"]
        assert np.mean([found(goal.product.query, goal, 1) for goal in goals]) < 0.2
        assert np.mean([found(" ".join((*goal.attributes, goal.product.query)), goal, 10) for goal in goals]) > 0.8

    def test_no_attribute_hides_in_another_word(self):
        """Attributes are looked for inside texts, so that e.g. 'red' would be found in 'layered'."""
        attributes = {word for category in CATEGORIES for word in category.attributes}
        texts = {
            word for product in build_catalogue(CatalogueSpec()).products for word in split_words(product.document)
        }
        assert not [(a, word) for a in attributes for word in texts | attributes if a in word and a != word]

    def test_option_values_are_not_ambiguous(self):
        for category in CATEGORIES:
            values = [value for _, values in category.options for value in values]
            assert len(values) == len(set(values)) and not set(values) & set(category.attributes)

    def test_bm25_golden(self):
        index = BM25Index(["red tea", "red red jacket", "blue lamp"])
        idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
        length = 7 / 3
        expected = [
            idf * 1 / (1 + 0.9 * (0.6 + 0.4 * 2 / length)),
            idf * 2 / (2 + 0.9 * (0.6 + 0.4 * 3 / length)),
            0.0,
        ]
        assert index.scores("RED!") == pytest.approx(expected)
        assert index.scores("red red") == pytest.approx([2 * score for score in expected])
        assert index.rank("red", 10) == (1, 0) and index.rank("red", 1) == (1,)
        assert index.rank("unknown", 10) == () == index.rank("", 10)
        assert BM25Index(["a b", "b a", "c"]).rank("a b", 9) == (0, 1)  # a tie: document order


class TestTasks:
    def test_rows(self):
        env = WebShopEnv(split="test", **SMALL_SHOP)
        rows = make_tasks("test", env.num_goals + 5, **SMALL_SHOP)
        goals = [row["goal"] for row in rows]
        assert sorted(goals[: env.num_goals]) == list(range(env.num_goals)) and len(goals) == env.num_goals + 5
        assert rows == make_tasks("test", env.num_goals + 5, **SMALL_SHOP)
        assert rows != make_tasks("test", env.num_goals + 5, seed=1, **SMALL_SHOP)
        seeds = {row["seed"] for row in rows}
        assert not seeds & {row["seed"] for row in make_tasks("train", 300, **SMALL_SHOP)}
        assert make_tasks("train", 0) == []

    def test_seed_and_goal_choose_the_episode(self):
        env, other = WebShopEnv(), WebShopEnv()
        assert env.reset(seed=3)[0] == other.reset(seed=3)[0] == env.reset(seed=3)[0]
        assert len({env.reset(seed=seed)[0] for seed in range(20)}) > 15
        assert len({env.reset()[0] for _ in range(20)}) > 15  # goes on drawing
        assert env.reset(seed=1, options={"goal": 7})[0] == env.reset(seed=2, options={"goal": np.int64(7)})[0]
        assert env.reset(seed=3, options={"goal": None})[0] == other.reset(seed=3)[0]

    @pytest.mark.parametrize("goal", [-1, 10**6, "3", 1.0, True])
    def test_bad_goal(self, goal):
        with pytest.raises(ValueError, match=r'options\["goal"\] must be an int from 0'):
            WebShopEnv().reset(options={"goal": goal})

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"split": "dev"}, "split must be one of"),
            ({"reward": "dense"}, "reward must be one of"),
            ({"results_per_page": 0}, "results_per_page must be at least 1, got 0"),
            ({"max_steps": 0}, "max_steps must be at least 1"),
            ({"num_categories": 13}, "num_categories must be between 1 and 12, got 13"),
            ({"attributes_per_product": 9}, "attributes_per_product must be between"),
        ],
    )
    def test_bad_arguments(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            WebShopEnv(**kwargs)

    def test_step_before_reset(self):
        with pytest.raises(RuntimeError, match="call reset"):
            WebShopEnv().step("search[tea]")


class TestPolicies:
    @pytest.mark.parametrize(
        "kwargs", [{}, SMALL_SHOP, {"catalogue_seed": 5, "num_products": 1500, "max_results": 20}]
    )
    def test_expert_wins_and_every_step_is_good(self, kwargs):
        env = WebShopEnv(split="test", **kwargs)
        won = []
        for row in make_tasks("test", 100, **kwargs):
            env.reset(options=row)
            judged = []

            def expert(env, judged=judged):
                judged.append(judge_step(env, expert_action(env)))
                return expert_action(env)

            _, _, rewards, infos = play(env, row, expert)
            won.append(infos[-1].get("won", False))
            assert sum(rewards) == rewards[-1] and (rewards[-1] == 1.0) == won[-1]
            assert all(judged)
        assert np.mean(won) >= 0.95

    @pytest.mark.parametrize("kwargs", [{}, SMALL_SHOP])
    def test_hasty_rarely_wins_and_without_habits_it_is_the_expert(self, kwargs):
        env = WebShopEnv(split="test", **kwargs)
        rng = np.random.default_rng(0)
        rows = make_tasks("test", 100, **kwargs)
        won = [play(env, row, lambda env: hasty_action(env, rng))[3][-1]["won"] for row in rows]
        assert np.mean(won) <= 0.2
        calm = {"p_search": 0.0, "p_first": 0.0, "p_keep": 0.0, "p_skip": 0.0}
        for row in rows[:20]:
            assert play(env, row, lambda env: hasty_action(env, rng, **calm))[1] == play(env, row, expert_action)[1]

    def test_judge(self):
        env = WebShopEnv()
        index = next(i for i, goal in enumerate(env.goals) if len(goal.options) == 2)
        env.reset(options={"goal": index})
        goal, by_asin = env.goal, env.shop.catalogue.by_asin
        assert not judge_step(env, "search[zzz]") and not judge_step(env, "click[buy now]")
        assert judge_step(env, expert_action(env))
        env.step(f"search[{' '.join(goal.attributes)} {goal.product.query}]")
        assert not judge_step(env, "click[back to search]")
        wrong = next(a for a in env.state.shown(env.shop.layout) if not satisfies(by_asin[a], goal))
        assert not judge_step(env, f"click[{wrong}]")
        env.step(f"click[{wrong}]")
        assert judge_step(env, "click[< prev]") and not judge_step(env, "click[buy now]")
        env.step("click[< prev]")
        while env.state.page == "results":
            assert judge_step(env, expert_action(env))
            env.step(expert_action(env))
        (name, value), (_, other_value) = goal.options
        assert judge_step(env, f"click[{value}]") and judge_step(env, f"click[{other_value}]")
        misfit = next(
            v for n, values in env.shop.product(env.state).options for v in values if n == name and v != value
        )
        for action in (f"click[{misfit}]", "click[buy now]", "click[< prev]", "click[features]", "search[tea]", "x"):
            assert not judge_step(env, action), action
        env.step(f"click[{value}]")
        assert not judge_step(env, f"click[{value}]")  # chosen already
        env.step(f"click[{other_value}]")
        assert judge_step(env, "click[buy now]") and not judge_step(env, f"click[{misfit}]")

    def test_judge_does_not_move_the_environment(self):
        env = WebShopEnv()
        env.reset(seed=0)
        before = env.state
        judge_step(env, expert_action(env))
        assert env.state == before and env.score == 0.0


@pytest.mark.parametrize("kwargs", [{}, SMALL_SHOP])
def test_vocabulary_covers_all_episodes(kwargs):
    words = vocabulary(kwargs)
    assert words == sorted(set(words))
    rng = np.random.default_rng(0)
    policies = [expert_action, lambda env: hasty_action(env, rng), lambda env: admissible_action(env, rng)]
    seen = set()
    for split in ("train", "test"):
        env = WebShopEnv(split=split, **kwargs)
        for number, row in enumerate(make_tasks(split, 150, **kwargs)):
            observations, actions, _, infos = play(env, row, policies[number % 3])
            for text in (*observations, *actions, infos[0]["instruction"]):
                seen.update(split_words(text))
    assert not seen - set(words)
    assert len(words) < 1.6 * len(seen)  # closed and tight


def test_split_words():
    assert split_words("click[buy now]") == ["click[", "buy", "now", "]"]
    assert split_words("a [SEP] Price: $25.00 (min)?") == [
        "a",
        "[SEP]",
        "Price",
        ":",
        "$",
        "25",
        ".",
        "00",
        "(",
        "min",
        ")",
        "?",
    ]


@pytest.mark.parametrize("kwargs", [{}, SMALL_SHOP, {"max_steps": 5}])
def test_keeps_the_contract(kwargs):
    for seed in range(5):
        check_env(lambda: WebShopEnv(**kwargs), task={"goal": seed}, seed=seed)
    check_env(WebShopEnv(**kwargs), steps=30)
