"""The web shop's exact search: terms, scores and order are those of the original (data/webshop/MakeGolden.java)."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("nltk", reason='the exact search needs pip install "trl-mise[webshop]"')
pytest.importorskip("regex", reason='the exact search needs pip install "trl-mise[webshop]"')

from trl_mise.envs import webshop_analysis, webshop_lucene
from trl_mise.envs.webshop_analysis import analyze, count_terms, split_standard
from trl_mise.envs.webshop_lucene import LuceneIndex, quantize_length

GOLDEN = json.loads((Path(__file__).parent / "data" / "webshop" / "lucene_golden.json").read_text(encoding="utf-8"))
NAMES = [document["id"] for document in GOLDEN["documents"]]
TEXTS = [document["contents"] for document in GOLDEN["documents"]]


@pytest.fixture(scope="module")
def index():
    return LuceneIndex(NAMES, TEXTS)


@pytest.mark.parametrize("entry", GOLDEN["analysed"], ids=lambda entry: ascii(entry["text"][:24]))
def test_terms_are_lucenes(entry):
    assert analyze(entry["text"]) == entry["terms"]


@pytest.mark.parametrize("entry", GOLDEN["searched"], ids=lambda entry: ascii(entry["query"][:40]))
def test_order_and_scores_are_lucenes(index, entry):
    names, scores = [name for name, _ in entry["hits"]], [score for _, score in entry["hits"]]
    ranked = index.rank(entry["query"], 50)
    assert [NAMES[i] for i in ranked] == names
    assert index.scores(entry["query"])[list(ranked)].tolist() == scores  # to the last bit


def test_golden_has_ties_and_long_documents(index):
    """What makes the comparison worth something."""
    firsts = [[score for _, score in entry["hits"]] for entry in GOLDEN["searched"]]
    assert sum(len(set(scores)) < len(scores) for scores in firsts) >= 30
    assert sum(len(scores) == 50 for scores in firsts) >= 30  # the cut lies among the hits
    lengths = {len(analyze(text)) for text in TEXTS}
    assert len({n for n in lengths if n != quantize_length(n)}) >= 5


@pytest.mark.parametrize(
    ("length", "expected"),
    [(0, 0), (23, 23), (39, 39), (40, 40), (41, 40), (42, 42), (55, 54), (56, 56), (59, 56), (60, 60), (1000, 984)],
)
def test_lengths_survive_one_byte(length, expected):
    assert quantize_length(length) == expected


def test_score_by_hand():
    index = LuceneIndex(["b", "a"], ["red red jacket", "lamps"])
    idf = math.log(1 + (2 - 1 + 0.5) / (1 + 0.5))
    norm = 0.9 * (1 - 0.4 + 0.4 * 3 / 2)
    assert index.scores("Red").tolist() == pytest.approx([idf * 2 / (2 + norm), 0.0], rel=1e-6)
    assert index.scores("red RED").tolist() == pytest.approx([2 * idf * 2 / (2 + norm), 0.0], rel=1e-6)
    assert index.rank("lamp", 5) == (1,) and index.rank("the", 5) == () == index.rank("", 5)
    assert index.rank("red lamp", 1) == (0,)


def test_ties_go_to_the_smaller_name():
    names = ["B2", "B10", "A9", "b1"]
    assert LuceneIndex(names, ["tea", "tea", "tea", "tea"]).rank("tea", 3) == (2, 1, 0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["tea", "lamp", "the", "red's", "3.5", "café"]), max_size=6), max_size=9))
def test_blocks_do_not_change_the_index(documents):
    texts = [" ".join(words) for words in documents]
    names = [str(number) for number in range(len(texts))]
    whole, before = LuceneIndex(names, texts), webshop_lucene._BLOCK
    try:
        webshop_lucene._BLOCK = 2
        parts = LuceneIndex(names, iter(texts))
    finally:
        webshop_lucene._BLOCK = before
    for query in ("tea", "lamp red", "3.5 café"):
        assert whole.scores(query).tolist() == parts.scores(query).tolist()
        naive = sorted((-score, names[i]) for i, score in enumerate(whole.scores(query).tolist()) if score > 0)
        assert [names[i] for i in whole.rank(query, 4)] == [name for _, name in naive[:4]]


def test_names_and_documents_must_be_as_many():
    with pytest.raises(ValueError, match="as many, got 2 and 1"):
        LuceneIndex(["a", "b"], ["tea"])


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_cut_and_counted(text):
    """No text raises; counts are those of the terms; what is cut stands in the text."""
    assert count_terms(text) == Counter(analyze(text))
    assert all(word in text for word in split_standard(text))


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="aZ09_.:,;' -", max_size=40))
def test_both_grammars_agree_on_ascii(text):
    assert split_standard(text) == split_standard(f"{text} é")[:-1]


def test_without_the_extra(monkeypatch):
    def refuse(name):
        raise ImportError(name)

    monkeypatch.setattr(webshop_analysis.importlib, "import_module", refuse)
    webshop_analysis._porter.cache_clear()
    with pytest.raises(ImportError, match=r'needs nltk: pip install "trl-mise\[webshop\]"'):
        analyze("neverseenbefore")
