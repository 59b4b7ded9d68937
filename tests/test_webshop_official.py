"""`WebShopEnv(data_dir=...)`: files, products, goals, splits and their manifest, pages, on files made for these tests.

`data/webshop/official` has the official schema and invented contents. While this was written, pages, clickables, goals
and rewards on these files were compared with the official simulator, step by step over random episodes.
"""

import collections
import hashlib
import json
import math
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("nltk", reason='the official files need pip install "trl-mise[webshop]"')
pytest.importorskip("regex", reason='the official files need pip install "trl-mise[webshop]"')

from trl_mise import notices
from trl_mise.envs import webshop_files
from trl_mise.envs.check import check_env
from trl_mise.envs.webshop import WebShopEnv, make_tasks, vocabulary
from trl_mise.envs.webshop_files import find_files, read_array
from trl_mise.envs.webshop_goals import HumanGoals, draw_upper_price, split_goals
from trl_mise.envs.webshop_manifest import default_path
from trl_mise.envs.webshop_official import load_official, read_options, read_prices
from trl_mise.envs.webshop_pages import parse_action
from trl_mise.envs.webshop_policies import expert_action, hasty_action, judge_step

OFFICIAL = Path(__file__).parent / "data" / "webshop" / "official"
DATA = str(OFFICIAL)
SPLITS = ("train", "dev", "test")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Manifests of these tests go nowhere else."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """A copy of the files, to be changed."""
    return Path(shutil.copytree(OFFICIAL, tmp_path / "official"))


def make(data_dir=DATA, **kwargs):
    return WebShopEnv(data_dir=str(data_dir), **{"title_tagger": "approximate", **kwargs})


def find_goal(env, asin, number=0):
    """Opens the goal `number` of a product, whatever its split."""
    for split in SPLITS:
        names = env.shop.catalogue.goals[split].names()
        if f"{asin}-{number}" in names:
            return env.reset(options={"goal": names.index(f"{asin}-{number}"), "split": split})
    raise AssertionError(asin)


def walk(env, *actions):
    """The last observation; every action must mean something."""
    for action in actions:
        observation, _, _, _, info = env.step(action)
        assert info["action_valid"], action
    return observation


class TestFiles:
    def test_no_products(self, tmp_path):
        (tmp_path / "items_human_ins.json").write_text("{}")
        (tmp_path / "notes.txt").write_text("")
        with pytest.raises(FileNotFoundError, match=r"no items_shuffle\*.json.*found are items_human_ins.json, notes"):
            WebShopEnv(data_dir=str(tmp_path))
        with pytest.raises(FileNotFoundError, match="is not a folder"):
            WebShopEnv(data_dir=str(tmp_path / "nowhere"))

    def test_several_candidates(self, folder):
        items = folder / "items_shuffle_20.json"
        shutil.copy(items, folder / "items_shuffle.json")
        with pytest.raises(ValueError, match="items_shuffle.json, items_shuffle_20.json; choose one with items_file="):
            make(folder)
        chosen = find_files(str(folder), "items_shuffle_20.json")
        assert (chosen.items, chosen.attributes) == (items, folder / "items_ins_v2_20.json")
        shutil.copy(folder / "items_ins_v2_20.json", folder / "items_ins_v2.json")
        assert find_files(str(folder), "items_shuffle.json").attributes == folder / "items_ins_v2.json"
        assert find_files(str(folder), "items_shuffle_20.json").attributes == folder / "items_ins_v2_20.json"
        items.rename(folder / "mine.json")
        (folder / "items_shuffle.json").unlink()
        with pytest.raises(ValueError, match="choose one with attributes_file="):
            make(folder, items_file="mine.json")
        assert make(folder, items_file="mine.json", attributes_file="items_ins_v2.json").num_goals == 10
        with pytest.raises(FileNotFoundError, match="items_file='yours.json' is not in .* found are"):
            make(folder, items_file="yours.json")

    def test_without_human_instructions(self, folder):
        (folder / "items_human_ins.json").unlink()
        notices.warn_once.cache_clear()
        with pytest.warns(UserWarning, match="no items_human_ins.json, so that goals are synthetic"):
            env = make(folder)
        assert env.num_goals == make(human_goals=False).num_goals
        with pytest.raises(FileNotFoundError, match="human_goals=True needs items_human_ins.json"):
            make(folder, human_goals=True)

    def test_without_attributes(self, folder):
        (folder / "items_ins_v2_20.json").unlink()
        notices.warn_once.cache_clear()
        with pytest.warns(UserWarning, match="products have no attributes"):
            env = make(folder)
        assert env.num_goals == make().num_goals
        assert not any(product.attributes for product in env.shop.catalogue.products)
        with pytest.raises(FileNotFoundError, match=r"synthetic goals need items_ins_v2\*.json"):
            make(folder, human_goals=False)
        (folder / "items_human_ins.json").unlink()
        with pytest.raises(FileNotFoundError, match=r"synthetic goals need items_ins_v2\*.json"):
            make(folder)

    def test_instructions_of_other_products(self, folder):
        (folder / "items_human_ins.json").write_text('{"B0NOTHERE1": []}')
        with pytest.raises(ValueError, match="give 0 goals for 20 products"):
            make(folder)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{}", "must hold a JSON array of products"),
            ('[{"asin": "B1", "name": "x"}', "no complete JSON array, after entry 1"),
            ("[1]", "entry 0 must be an object"),
            ('[{"asin": "B1"}]', r"product 0 has no text under \['name'\]"),
        ],
    )
    def test_broken_products(self, folder, text, message):
        (folder / "items_shuffle_20.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            make(folder)

    def test_broken_table(self, folder):
        (folder / "items_human_ins.json").write_text("[1, 2")
        with pytest.raises(ValueError, match="items_human_ins.json is no JSON"):
            make(folder)
        (folder / "items_human_ins.json").write_text("[1, 2]")
        with pytest.raises(ValueError, match="must hold a JSON dict, got list"):
            make(folder)

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=30))), st.integers(1, 40), st.booleans())
    def test_arrays_are_read_in_pieces(self, tmp_path_factory, entries, chunk, indented):
        path = tmp_path_factory.mktemp("array") / "array.json"
        path.write_text(json.dumps(entries, indent=1 if indented else None, ensure_ascii=False), encoding="utf-8")
        before = webshop_files._CHUNK
        try:
            webshop_files._CHUNK = chunk
            assert list(read_array(path)) == entries
        finally:
            webshop_files._CHUNK = before

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"data_dir": DATA, "num_categories": 3}, "num_categories=3: for the generated shop only"),
            ({"human_goals": True}, "human_goals=True: with data_dir= only"),
            ({"split_manifest": "x.json"}, "split_manifest='x.json': with data_dir= only"),
            ({"data_dir": DATA, "split": "valid"}, "split must be one of .*'dev'"),
            ({"observation_mode": "html"}, "observation_mode must be one of"),
        ],
    )
    def test_bad_arguments(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            WebShopEnv(**kwargs)

    def test_no_vocabulary(self):
        with pytest.raises(ValueError, match="vocabulary.. lists the words of a generated shop"):
            vocabulary({"data_dir": DATA, "title_tagger": "approximate"})


class TestProducts:
    def test_what_counts_as_a_product(self):
        """The fixture ends with a duplicate, an ASIN "nan", and one of more than ten letters."""
        products = make().shop.catalogue.products
        assert len(products) == 20 == len({product.asin for product in products})
        assert products[3].title.startswith("Brindle Hill Organic")
        assert len(make(num_products=7).shop.catalogue.products) == 7

    @pytest.mark.parametrize(
        ("pricing", "expected"),
        [
            ("$12.50", (12.5,)),
            ("$39.99$64.50", (39.99, 64.5)),
            ("$1,024.00", (1024.0,)),
            ("$79.00 - $129.00$149.00", (79.0, 129.0)),
            ("", (100.0,)),
            (None, (100.0,)),
            ("Currently unavailable", (100.0,)),
            ("$ n/a$5", (5.0,)),
        ],
    )
    def test_prices(self, pricing, expected):
        assert read_prices(pricing) == expected

    def test_options(self):
        raw = {"Color Name": [{"value": " Navy/Red "}, {"value": "BLACK"}], "Size": None, "Empty": []}
        assert read_options(raw) == (("color name", ("navy | red", "black")), ("empty", ()))
        assert read_options("") == read_options(None) == ()

    def test_fields(self):
        by_asin = make().shop.catalogue.by_asin
        shoe, tea, plain = by_asin["B0SHOE0001"], by_asin["B0TEA00001"], by_asin["B0TEA00003"]
        assert shoe.price_tag == "$39.99 to $64.5" and 39.99 <= shoe.price <= 64.5
        assert shoe.query == "mens trail shoes" and shoe.attributes == ("rubber sole", "water proof", "hiking")
        assert shoe.category.path == ("Clothing, Shoes & Jewelry", "Men", "Shoes", "Athletic")
        assert (tea.rating, tea.reviews[1]) == ("4.5", ("Weak", "2.0", "")) and shoe.rating == "N.A."
        assert (plain.bullets, plain.price, plain.price_tag) == (("One single feature, as a string",), 100.0, "$100.0")
        assert tea.document == (
            "brindle hill organic green tea bags, 40 count (pack of 2) green tea without caffeine, from small gardens."
            " certified organic and caffeine free flavor name: mint, lemon ginger, jasmine, and size: 40 count (pack "
            "of 1), 40 count (pack of 2)"
        )

    def test_prices_are_drawn_from_the_seed(self):
        ranges = ("B0SHOE0001", "B0SOFA0002", "B0HEAD0003")
        first, again, other = (
            [load_official(DATA, seed=seed, num_products=number).by_asin.get(asin) for asin in ranges]
            for seed, number in ((0, None), (0, 9), (1, None))
        )
        assert first[0].price == again[0].price and first[2].price == again[2].price == 25.0  # of the seed alone
        assert [p.price for p in first[:2]] != [p.price for p in other[:2]]
        assert all(
            low <= p.price <= high for p, low, high in zip(other, (39.99, 79, 25), (64.5, 129, 25), strict=True)
        )

    def test_one_catalogue_per_process(self, folder):
        assert make().shop.catalogue.data is make(split="test", max_steps=3).shop.catalogue.data
        before = make(folder).shop.catalogue.data
        items = folder / "items_shuffle_20.json"
        items.write_text(items.read_text(encoding="utf-8") + " ", encoding="utf-8")
        assert load_official(str(folder)) is not before  # changed files are read again


class TestGoals:
    def test_human(self):
        env = make()
        _, info = find_goal(env, "B0SHOE0001")
        assert info["instruction"] == env.goal.instruction
        assert env.goal.instruction == (
            "i want waterproof trail shoes in size 9 wide, navy colored, and price lower than "
            f"{env.goal.price_upper:.2f} dollars"
        )
        assert env.goal.attributes == ("water proof",)
        assert env.goal.options == (("", "9 wide"), ("", "navy | red"))
        assert env.goal.price_upper > env.goal.product.price

    def test_human_goals_without_attributes_are_left_out(self):
        names = [name for goals in make().shop.catalogue.goals.values() for name in goals.names()]
        assert collections.Counter(name[:10] for name in names)["B0SHOE0001"] == 2 and len(names) == 19

    def test_no_upper_price_above_the_last(self):
        env = make()
        find_goal(env, "B0SHOE0003")  # $1,024
        assert env.goal.price_upper == 1000000 and env.goal.instruction.endswith("that i can hand wash")
        find_goal(env, "B0SOFA0001")  # $985: only 990 is above
        assert env.goal.price_upper == 1000000

    def test_synthetic(self):
        env = make(human_goals=False)
        options = dict(env.shop.catalogue.by_asin["B0SHOE0001"].options)
        find_goal(env, "B0SHOE0001", 1)  # options by name: color changes slowest
        assert env.goal.options == (("color", "navy | red"), ("size", "8.5"))
        price = f", and price lower than {env.goal.price_upper:.2f} dollars"
        assert env.goal.instruction == (
            "Find me waterproof, rubber sole men's trail shoes with color: navy | red, and size: 8.5" + price
        )
        find_goal(env, "B0SHOE0001", 11)
        assert env.goal.options == (("color", options["color"][2]), ("size", options["size"][3]))
        assert price in env.goal.instruction  # one price for all goals of a product
        find_goal(env, "B0COOK0002")
        assert env.goal.options == () and " with " not in env.goal.instruction

    def test_synthetic_weights(self):
        source = make(human_goals=False).shop.catalogue.data.source
        rows = {product.asin: row for row, product in enumerate(source.products)}
        counts = {asin: int(source.counts[row]) for asin, row in rows.items()}
        assert counts["B0SHOE0001"] == 12 and counts["B0COOK0002"] == 1 and counts["B0TEA00003"] == 0
        rubber = counts["B0SHOE0001"] + counts["B0SHOE0003"]
        assert source.weight(rows["B0SHOE0001"]) == pytest.approx((1 / 12 + 1 / rubber) / 2)

    def test_drawn_by_weight(self):
        goals = make(human_goals=False).shop.catalogue.goals["train"]
        rng = np.random.default_rng(0)
        drawn = collections.Counter(goals[goals.draw(rng)].product.asin for _ in range(4000))
        rows = {product.asin: row for row, product in enumerate(goals._source.products)}
        here = collections.Counter(name[:10] for name in goals.names())
        weights = {asin: number * goals._source.weight(rows[asin]) for asin, number in here.items()}
        for asin, weight in weights.items():
            share = weight / sum(weights.values())
            assert abs(drawn[asin] / 4000 - share) < 5 * math.sqrt(share / 4000), asin

    @pytest.mark.parametrize("price", [0.5, 10.0, 34.0, 969.0])
    def test_upper_prices(self, price):
        drawn = {draw_upper_price(price, str(seed))[0] for seed in range(200)}
        above = [10.0 * step for step in range(1, 100) if 10.0 * step > price][:4]
        assert drawn == set(above[1:])
        assert draw_upper_price(price, "a") == draw_upper_price(price, "a")

    def test_seed_changes_upper_prices_only(self):
        first, other = (list(make(catalogue_seed=seed).goals) for seed in (0, 1))
        assert [goal.name for goal in first] == [goal.name for goal in other]
        assert [goal.price_upper for goal in first] != [goal.price_upper for goal in other]


class TestSplits:
    def source(self, number):
        product = make().shop.catalogue.products[0]
        entry = {"instruction": "x", "instruction_attributes": ["y"]}
        return HumanGoals([product], {product.asin: [entry] * number}, 0)

    @pytest.mark.parametrize(
        ("total", "sizes"),
        [
            (12087, (500, 1000, 10587)),  # the official human goals
            (3000, (500, 1000, 1500)),
            (2999, (499, 999, 1501)),
            (60, (10, 20, 30)),
            (3, (1, 1, 1)),
        ],
    )
    def test_sizes_and_order(self, total, sizes):
        source = self.source(total)
        goals = split_goals(source)
        assert tuple(len(goals[split]) for split in ("test", "dev", "train")) == sizes
        expected = list(range(total))
        random.Random(233).shuffle(expected)  # the official shuffle, of all goals, before the split
        numbers = [int(name.split("-")[1]) for split in ("test", "dev", "train") for name in goals[split].names()]
        assert numbers == expected

    @pytest.mark.parametrize("total", [0, 1, 2])
    def test_too_few(self, total):
        with pytest.raises(ValueError, match=f"give {total} goals for 1 products"):
            split_goals(self.source(total))

    @pytest.mark.parametrize("human", [True, False])
    def test_disjoint_and_complete(self, human):
        env = make(human_goals=human)
        names = [env.shop.catalogue.goals[split].names() for split in SPLITS]
        together = [name for part in names for name in part]
        assert len(set(together)) == len(together) == int(env.shop.catalogue.data.source.counts.sum())
        for split, part in zip(SPLITS, names, strict=True):
            assert make(human_goals=human, split=split).num_goals == len(part)
            assert [goal.name for goal in make(human_goals=human, split=split).goals] == part

    def test_tasks(self):
        kwargs = {"data_dir": DATA, "title_tagger": "approximate"}
        rows = {split: make_tasks(split, 30, seed=4, **kwargs) for split in SPLITS}
        assert rows["dev"] == make_tasks("dev", 30, seed=4, **kwargs)
        seeds = [row["seed"] for split in SPLITS for row in rows[split]]
        assert len(set(seeds)) == len(seeds)
        env, instructions = make(), collections.defaultdict(set)
        for split in SPLITS:
            assert {row["goal"] for row in rows[split]} == set(range(len(env.shop.catalogue.goals[split])))
            for row in rows[split]:
                instructions[split].add(env.reset(seed=row["seed"], options=row)[1]["instruction"])
                assert env.split == split
        assert not instructions["train"] & instructions["test"] and not instructions["dev"] & instructions["train"]

    def test_same_seed_same_goal(self):
        env, other = make(), make()
        assert [env.reset(seed=s)[0] for s in range(9)] == [other.reset(seed=s)[0] for s in range(9)]
        assert len({env.reset(seed=s)[0] for s in range(30)}) > 5


class TestManifest:
    def test_written_once_and_checked(self, folder, tmp_path):
        path = tmp_path / "made" / "manifest.json"
        make(folder, split_manifest=str(path))
        written = path.read_bytes()
        manifest = json.loads(written)
        items = (folder / "items_shuffle_20.json").read_bytes()
        assert manifest["files"]["items_shuffle_20.json"] == hashlib.sha256(items).hexdigest()
        assert set(manifest["files"]) == {path.name for path in folder.iterdir()}
        assert (manifest["shuffle_seed"], manifest["catalogue_seed"]) == (233, 0)
        assert {split: entry["num_goals"] for split, entry in manifest["splits"].items()} == {
            "train": 10,
            "dev": 6,
            "test": 3,
        }
        goals = make(folder).shop.catalogue.goals
        assert {split: entry["goals"] for split, entry in manifest["splits"].items()} == {
            split: goals[split].names() for split in SPLITS
        }
        make(folder, split_manifest=str(path), split="test")
        assert path.read_bytes() == written and [file.name for file in path.parent.iterdir()] == ["manifest.json"]

    def test_mismatch(self, folder, tmp_path):
        path = str(tmp_path / "manifest.json")
        make(folder, split_manifest=path)
        human = folder / "items_human_ins.json"
        table = json.loads(human.read_text(encoding="utf-8"))
        table["B0COOK0002"] = table["B0COOK0001"]
        human.write_text(json.dumps(table), encoding="utf-8")
        with pytest.raises(ValueError, match=r"does not fit: files was .*items_human_ins.json.*; splits was") as error:
            make(folder, split_manifest=path)
        assert len(str(error.value)) < 1500
        with pytest.raises(ValueError, match="catalogue_seed was 0 and is 5"):
            make(split_manifest=path, catalogue_seed=5)
        with pytest.raises(ValueError, match="human_goals was True and is False"):
            make(split_manifest=path, human_goals=False)
        Path(path).write_text("nonsense")
        with pytest.raises(ValueError, match="is no split manifest"):
            make(split_manifest=path)

    def test_default_place(self, folder, tmp_path):
        env = make(folder)
        file = default_path(env.shop.catalogue.data)
        assert file.is_file() and file.is_relative_to(tmp_path / "cache")
        make(folder, human_goals=False)
        assert len(list(file.parent.iterdir())) == 2  # one for each setting
        items = folder / "items_shuffle_20.json"
        items.write_text(items.read_text(encoding="utf-8").replace("Hollin", "Hollis"), encoding="utf-8")
        with pytest.raises(ValueError, match="does not fit: files was"):
            make(folder)

    def test_a_cache_that_cannot_be_written(self, folder, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        notices.warn_once.cache_clear()
        with pytest.warns(UserWarning, match="manifest could not be written"):
            make(folder)
        with pytest.raises(OSError):
            make(folder, split_manifest=str(tmp_path / "file" / "manifest.json"))


class TestPages:
    def test_text(self):
        env = make()
        start, info = find_goal(env, "B0TEA00001")
        instruction = info["instruction"]
        assert start == f"WebShop [SEP] Instruction: [SEP] {instruction} [SEP] Search"
        head = f"Instruction: [SEP] {instruction} [SEP] Back to Search [SEP] "
        title = "Brindle Hill Organic Green Tea Bags, 40 Count (Pack of 2)"
        assert walk(env, "search[Brindle's teas]") == (
            f"{head}Page 1 (Total results: 3) [SEP] Next > [SEP] B0TEA00002 [SEP] Brindle Hill Black Tea Loose Leaf, "
            f"1 Pound [SEP] $18.0 [SEP] B0TEA00001 [SEP] {title} [SEP] $12.5 [SEP] B0SHAM0001 [SEP] Ferncroft Shampoo "
            "with Tea Tree Oil, Sulfate Free [SEP] $9.95"
        )
        item = walk(env, "click[b0tea00001]")
        assert item == (
            f"{head}< Prev [SEP] flavor name [SEP] mint [SEP] lemon ginger [SEP] jasmine [SEP] size [SEP] 40 count "
            f"(pack of 1) [SEP] 40 count (pack of 2) [SEP] {title} [SEP] Price: $12.5 [SEP] Rating: 4.5 [SEP] "
            "Description [SEP] Features [SEP] Reviews [SEP] Buy Now"
        )
        assert walk(env, "click[mint]") == item
        features = walk(env, "click[features]")
        assert features == f"{head}< Prev [SEP] Certified organic and caffeine free [SEP] Individually wrapped"
        assert walk(env, "click[< prev]", "click[reviews]") == (
            f'{head}< Prev [SEP] "Fresh" [SEP] 5 [SEP] Tastes like a garden. [SEP] "Weak" [SEP] 2.0'
        )
        assert dict(env.state.options) == {"flavor name": "mint"}

    def test_text_rich(self):
        env = make(observation_mode="text_rich")
        start, info = find_goal(env, "B0TEA00001")
        assert start == f"WebShop\nInstruction: \n{info['instruction']}\n[button] Search [button_]\n"
        head = f"Instruction:\n{info['instruction']}\n[button] Back to Search [button_]\n"
        title = "Brindle Hill Organic Green Tea Bags, 40 Count (Pack of 2)"
        results = walk(env, "search[certified organic]")
        assert results == (
            f"{head}Page 1 (Total results: 1)\n[button] Next > [button_]\n"
            f"\n[button] B0TEA00001 [button_]\n{title}\n$12.5\n"
        )
        item = walk(env, "click[B0TEA00001]", "click[40 count (pack of 2)]", "click[mint]")
        assert item == (
            f"You have clicked 40 count (pack of 2).\nYou have clicked mint.\n{head}[button] < Prev [button_]\n"
            "flavor name\n  [clicked button] mint [clicked button_]\n  [button] lemon ginger [button_]\n"
            "  [button] jasmine [button_]\nsize\n  [button] 40 count (pack of 1) [button_]\n"
            f"  [clicked button] 40 count (pack of 2) [clicked button_]\n{title}\nPrice: $12.5\nRating: 4.5\n"
            "[button] Description [button_]\n[button] Features [button_]\n[button] Reviews [button_]\n"
            "[button] Buy Now [button_]\n"
        )
        back = walk(env, "click[< Prev]")
        assert back == results.replace(
            "[button] B0TEA00001 [button_]", "[clicked button] B0TEA00001 [clicked button_]"
        )
        assert "[clicked button] B0TEA00001" in walk(env, "search[certified organic]")  # also after another search
        assert walk(env, "click[back to search]", "search[certified organic]") == results  # forgotten here

    def test_next_page_is_always_offered(self):
        env = make(results_per_page=2)
        env.reset(seed=0)
        walk(env, "search[tea]", "click[next >]", "click[next >]")
        assert walk(env, "click[next >]").split(" [SEP] ")[3:] == [
            "Page 4 (Total results: 3)",
            "< Prev",
            "Next >",
        ]

    def test_values_with_spaces_equal_values_and_no_description(self):
        env = make()
        env.reset(seed=0)
        walk(env, "search[veldrunner trail]", "click[B0SHOE0001]", "click[stone grey]")
        assert dict(env.state.options) == {"color": "stone  grey"}
        walk(env, "search[hollin dimmable desk lamp]", "click[B0LAMP0002]")
        assert env.shop.clickables(env.state).count("small") == 1
        walk(env, "click[small]")
        assert dict(env.state.options) == {"size": "small"}  # offered as a color as well; the last one counts
        assert walk(env, "click[description]").endswith("Back to Search [SEP] < Prev")

    def test_free_text_stays_as_it_is(self):
        env = make()
        env.reset(seed=0)
        walk(env, "search[kestrel café]", "click[b0tea00003]")
        assert walk(env, "click[description]").endswith(
            'A "quoted" description with <b>tags</b> & signs.\nAnd a second line.'
        )


class TestEpisodes:
    @pytest.mark.parametrize("action", ["", "quit", "search[tea]\nclick[buy now]", "click[<r>]", "x" * 10_000, "\x00"])
    def test_traps_change_nothing(self, action):
        env = make()
        env.reset(seed=0)
        before = walk(env, "search[tea]", "click[b0tea00001]", "click[mint]")
        state = env.state
        observation, reward, terminated, truncated, info = env.step(action)
        assert (observation, reward, terminated, truncated) == (before, 0.0, False, False)
        assert info["action_valid"] is False and env.state == state

    def test_an_instruction_of_several_lines_can_be_searched(self, folder):
        human = folder / "items_human_ins.json"
        human.write_text(human.read_text(encoding="utf-8").replace("a dimmable lamp", "a\\n dimmable lamp"), "utf-8")
        env = make(folder)
        find_goal(env, "B0LAMP0002")
        assert "\n" in env.goal.instruction
        assert walk(env, *env.admissible_actions()).startswith("Instruction:")

    @pytest.mark.parametrize("human", [True, False])
    @pytest.mark.parametrize("mode", ["text", "text_rich"])
    def test_contract(self, human, mode):
        for seed in range(3):
            check_env(lambda: make(human_goals=human, observation_mode=mode), task={"goal": seed}, seed=seed)

    def test_reward_of_a_purchase(self):
        env = make()
        find_goal(env, "B0LAMP0001")  # attribute living room, options walnut and large
        walk(env, "search[hollin bedside table lamp]", "click[B0LAMP0001]", "click[walnut]")
        _, reward, terminated, _, info = env.step("click[buy now]")
        assert terminated and reward == info["score"] == 0.75 and info["won"] is False
        env = make(reward="success")
        find_goal(env, "B0LAMP0001")
        walk(env, "search[hollin bedside table lamp]", "click[B0LAMP0001]", "click[walnut]", "click[large]")
        assert env.step("click[buy now]")[1] == 1.0

    def test_title_tagger_matters(self):
        """The pipeline that is given decides about nouns: one that finds none makes other titles worth a half."""
        rewards = []
        for tagger in ("approximate", lambda title: ()):
            env = make(title_tagger=tagger)
            find_goal(env, "B0LAMP0002")
            walk(env, "search[tympany earbuds]", "click[B0HEAD0003]")
            rewards.append(env.step("click[buy now]")[1])
        assert rewards == [0.0, 0.25]  # 0 of (0 + 1) / 2, and half of it

    @pytest.mark.parametrize("human", [True, False])
    def test_expert(self, human):
        """Full reward wherever the shop allows it: the rest asks for what cannot be chosen, or what nothing has."""
        env = make(human_goals=human)
        rewards, lost = [], set()
        for split in SPLITS:
            for goal in range(len(env.shop.catalogue.goals[split])):
                env.reset(options={"goal": goal, "split": split})
                for _ in range(15):
                    _, reward, terminated, *_ = env.step(expert_action(env))
                    if terminated:
                        break
                rewards.append(reward)
                if reward < 1:
                    lost.add(env.goal.product.asin)
        assert np.mean(np.array(rewards) == 1.0) >= 0.94
        assert lost == ({"B0SHAM0002"} if human else {"B0HEAD0002", "B0LAMP0002"})

    def test_judge_and_hasty(self):
        env = make()
        find_goal(env, "B0CABL0001")
        assert judge_step(env, expert_action(env)) and not judge_step(env, "search[zzz]")
        rng = np.random.default_rng(0)
        for seed in range(10):
            env.reset(seed=seed)
            for _ in range(12):
                action = hasty_action(env, rng)
                assert parse_action(action)
                if env.step(action)[2]:
                    break
