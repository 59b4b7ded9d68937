"""The official reward by hand: word comparison, attributes, options, price, and the type by the nouns of the title."""

import functools
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_mise import notices
from trl_mise.envs import webshop_titles
from trl_mise.envs.webshop_catalogue import Product
from trl_mise.envs.webshop_goals import OfficialGoal
from trl_mise.envs.webshop_matching import COLORS, is_similar, normalize_color, token_set_ratio
from trl_mise.envs.webshop_official_reward import official_reward, official_type_reward, option_matches
from trl_mise.envs.webshop_titles import approximate_nouns, find_nouns
from trl_mise.envs.webshop_wares import Category

HOME = ("Home & Kitchen", "Lighting", "Table Lamps")


def product(title="Hollin Table Lamp", *, query="table lamp", path=HOME, **changes):
    fields = {
        "asin": "B0LAMP0001",
        "attributes": ("solid wood", "essential oil"),
        "options": (("color", ("walnut", "white")), ("size", ("small", "large"))),
        "price": 34.0,
        "description": "A lamp for Living Rooms.",
        "bullets": ("Easy to assemble", "Linen shade"),
    }
    return Product(title=title, category=Category(query, path, (), ()), nouns=frozenset(), **{**fields, **changes})


def goal(attributes=("solid wood", "living room"), options=(("", "walnut"), ("", "large")), upper=40.0, wanted=None):
    return OfficialGoal(wanted or product(), attributes, options, upper, "a lamp", "B0LAMP0001-0")


def all_words(title):
    return tuple(title.lower().split())


class TestWords:
    @pytest.mark.parametrize(
        ("first", "second", "expected"),
        [  # from thefuzz 0.19.0 without its optional C extension, as the official requirements install it
            ("essential oil", "essential oils", 96),
            ("40 count (pack of 1)", "40 count (pack of 2)", 94),
            ("x-large", "xx-large", 93),
            ("X-Large", "large x", 100),
            ("navy blue", "blue", 100),
            ("water proof", "waterproof", 48),
            ("naïve café", "nave caf", 100),
            ("abcdefg", "abcdefh", 86),
            ("abcdefghijklmnopqrst", "abcdefghijklmnopqxyz", 85),
            ("", "large", 0),
            ("!?", "large", 0),
            ("usb_c cable", "usb c cable", 82),
            ("size 9 wide", "9.5 wide", 86),
            ("('size', 'large')", "large", 100),
            ("tea tree oil shampoo for dry hair", "shampoo with tea tree for oily hair", 86),
            ("abcd", "bcde", 75),
            ("aaaa bbbb", "bbbb cccc", 62),
        ],
    )
    def test_token_set_ratio(self, first, second, expected):
        assert token_set_ratio(first, second) == expected
        assert is_similar(first, second) == (expected > 85)

    @given(st.text(max_size=20), st.text(max_size=20))
    def test_token_set_ratio_is_a_percentage(self, first, second):
        assert 0 <= token_set_ratio(first, second) <= 100
        assert token_set_ratio(first, f"{second} {first}") in (0, 100)  # 0 where no word is left of `first`

    @pytest.mark.parametrize(
        ("text", "color"),
        [
            ("navy blue", "blue"),  # the first in the list, not in the text
            ("dark red", "dark"),
            ("wired", "red"),  # inside a word as well
            ("walnut", "walnut"),
            ("Red", "Red"),  # capitals are not looked for
            ("9 wide", "9 wide"),
        ],
    )
    def test_colors(self, text, color):
        assert normalize_color(text) == color
        assert list(COLORS) == sorted(COLORS) and len(COLORS) == 102


class TestReward:
    @pytest.mark.parametrize(
        ("bought", "chosen", "expected"),
        [
            (product(), ["walnut", "large"], 1.0),  # (2 + 2 + 1) / 5
            (product(), ["large", "walnut"], 1.0),
            (product(), ["walnut", "extra large"], 1.0),  # all words of the wanted value
            (product(), ["light walnut", "large"], 0.8),  # "light" is the first known color in it
            (product(), ["walnut"], 0.8),
            (product(), [], 0.6),
            (product(price=40.0), ["walnut", "large"], 1.0),  # the upper price itself is allowed
            (product(price=40.01), ["walnut", "large"], 0.8),
            (product(attributes=()), ["walnut", "large"], 0.8),  # the text has "living room", not "solid wood"
            (product(attributes=(), bullets=("Of SOLID", "wood")), ["walnut", "large"], 1.0),  # bullets are joined
            (product(attributes=("living room",), description=""), [], 0.4),  # (1 + 0 + 1) / 5
            (product("Hollin Chair"), ["walnut", "large"], 1.0),  # same query
            (product("Chair", query="chair", path=("Home",)), ["walnut", "large"], 0.0),  # no common noun
        ],
    )
    def test_golden(self, bought, chosen, expected):
        assert official_reward(bought, chosen, goal(), all_words) == pytest.approx(expected, abs=1e-12)

    def test_similar_attributes_count(self):
        wanted = goal(attributes=("essential oils", "easy assemble", "linen"), options=())
        assert official_reward(product(), [], wanted, all_words) == 0.75  # "easy assemble" stands nowhere as it is
        assert official_reward(product(attributes=("easy to assemble",)), [], wanted, all_words) == 0.75

    @pytest.mark.parametrize(
        ("wanted", "value", "expected"),
        [
            (("", "dark red"), "red", False),  # "dark" and "red"
            (("color", "dark red"), "red", True),  # a pair is no color, and has the word
            (("color", "red"), "dark red", False),  # it is the color "red", and the value is "dark"
            (("style", "wired"), "wired", False),  # the value counts as the color "red"
            (("", "wired"), "wired", True),
            (("size", "large"), "large", True),
            (("size", "large"), "size", True),  # the name is compared as well
            (("", "9 wide"), "9.5 wide", True),  # the words 9, 5, wide
            (("", "9 wide"), "8 wide", False),
        ],
    )
    def test_options(self, wanted, value, expected):
        assert option_matches(wanted, value) is expected

    @pytest.mark.parametrize(
        ("title", "query", "path", "expected"),
        [
            ("a b", "table lamp", ("other",), 1.0),  # 2 of 10 nouns; same query
            ("a b", "lamp", ("Lighting", "Home & Kitchen"), 1.0),  # two levels, in any order
            ("a b", "lamp", ("Lighting", "Chairs"), 0.5),
            ("a b c", "lamp", ("Chairs",), 1.0),  # 3 of 10
            ("a x y", "lamp", ("Chairs",), 0.5),  # 1 of 10
            ("x y", "table lamp", HOME, 0.0),  # whatever the rest says
        ],
    )
    def test_type(self, title, query, path, expected):
        wanted = product("a b c d e f g h i j")
        assert official_type_reward(product(title, query=query, path=path), wanted, all_words) == expected

    def test_type_of_few_common_nouns(self):
        wanted = product(" ".join(f"n{i}" for i in range(11)))
        assert official_type_reward(product("n0"), wanted, all_words) == 0.1  # 1 of 11, although the query is the same

    def test_repeated_nouns_count_in_the_denominator(self):
        """Official: common nouns are a set, those of the wanted title a list."""
        wanted = product("lamp lamp lamp lamp lamp shade")
        other = product("lamp", query="x", path=())
        assert official_type_reward(other, wanted, all_words) == 0.5  # 1 of 6
        assert official_type_reward(other, product("lamp shade"), all_words) == 1.0

    def test_titles_without_nouns(self):
        assert official_type_reward(product(), product(), lambda title: ()) == 1.0
        assert official_type_reward(product(query="x", path=()), product(), lambda title: ()) == 0.5


def spacy_like(title):
    """Tokens as spaCy has them: capitals are proper nouns, "for" is an adposition, the rest are nouns."""
    tags = {"for": "ADP", ",": "PUNCT"}
    words = title.replace(",", " ,").split()
    return [SimpleNamespace(text=w, pos_=tags.get(w, "PROPN" if w[0].isupper() else "NOUN")) for w in words]


class TestTitles:
    def test_pipeline(self):
        assert find_nouns(spacy_like)("Hollin lamp, lamp for Home") == ("hollin", "lamp", "lamp", "home")

    @pytest.mark.parametrize(
        ("title", "expected"),
        [
            ("Hollin Bedside Table Lamp, Dimmable", "hollin bedside table lamp"),
            ("Men's Waterproof T-Shirt for the 2 of us", "men t shirt us"),
            ("USB C Cable 6ft (3-Pack) Thé", "usb c cable 6ft pack thé"),
            ("", ""),
        ],
    )
    def test_approximation(self, title, expected):
        assert approximate_nouns(title) == tuple(expected.split()) == find_nouns("approximate")(title)

    def test_auto_says_once_that_it_guesses(self, monkeypatch):
        monkeypatch.setattr(webshop_titles.importlib.util, "find_spec", lambda name: None)
        monkeypatch.setattr(webshop_titles, "_from_name", functools.cache(webshop_titles._from_name.__wrapped__))
        notices.warn_once.cache_clear()
        with pytest.warns(UserWarning, match="nouns of product titles are guessed") as caught:
            assert find_nouns("auto")("Table Lamp") == find_nouns("auto")("Table Lamp") == ("table", "lamp")
        assert len(caught) == 1

    def test_auto_takes_an_installed_model(self, monkeypatch):
        installed = {"spacy", "en_core_web_md", "en_core_web_sm"}
        loaded = []

        def load(name, exclude):
            loaded.append(name)
            return spacy_like

        monkeypatch.setattr(
            webshop_titles.importlib.util, "find_spec", lambda name: name if name in installed else None
        )
        monkeypatch.setattr(webshop_titles.importlib, "import_module", lambda name: SimpleNamespace(load=load))
        monkeypatch.setattr(webshop_titles, "_from_name", functools.cache(webshop_titles._from_name.__wrapped__))
        assert find_nouns("auto")("Lamp for me") == find_nouns("auto")("Lamp for me") == ("lamp", "me")
        assert loaded == ["en_core_web_md"]

    def test_a_pipeline_of_spacy(self, tmp_path):
        spacy = pytest.importorskip("spacy", reason="spaCy is not installed")
        pipeline = spacy.blank("en")
        assert find_nouns(pipeline)("Table Lamp") == ()  # a blank one tags nothing
        ruler = pipeline.add_pipe("attribute_ruler")
        ruler.add(patterns=[[{"LOWER": "lamp"}]], attrs={"POS": "NOUN"})
        ruler.add(patterns=[[{"LOWER": "hollin"}]], attrs={"POS": "PROPN"})
        ruler.add(patterns=[[{"LOWER": "dimmable"}]], attrs={"POS": "ADJ"})
        pipeline.to_disk(tmp_path / "model")
        for tagger in (pipeline, str(tmp_path / "model")):
            assert find_nouns(tagger)("Hollin dimmable Lamp") == ("hollin", "lamp")

    def test_a_model_that_is_not_there(self):
        with pytest.raises(ImportError, match="title_tagger='no_such_model' is no spaCy pipeline"):
            find_nouns("no_such_model")
