"""The web shop's exact search: terms, scores and order are those of the original (data/webshop/MakeGolden.java)."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("nltk", reason='the exact search needs pip install "trl-mise[webshop]"')
pytest.importorskip("regex", reason='the exact search needs pip install "trl-mise[webshop]"')

from trl_mise.envs import webshop_lucene
from trl_mise.envs.webshop_analysis import analyze, split_standard
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
