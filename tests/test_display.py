"""Episodes as HTML: what is shown, escaping, colours that can be read, and records that lack something."""

import json
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_mise.display import INK, EpisodeView, episode_html, score_colour
from trl_mise.trajectory_log import trajectory_record
from trl_mise.types import StopReason, Trajectory, Turn

HOSTILE = (
    "<script>alert(1)</script>",
    "</td></tr></table><img src=x onerror=alert(1)>",
    '" style="display:none" x="',
    "' onmouseover='alert(1)",
    "<!-- no end",
    "&lt;b&gt; &amp;amp;",
    "$x^2$ costs $5.00 and \\(y\\) and \\[z\\]",
    "\x00\x1b[2J\x07",
    "\u202eesrever\u2066",
    "\ud800 half a surrogate",
    "]]>{{ 7*7 }}%}",
)


class Page(HTMLParser):
    """Texts and tags of a fragment; checks that tags nest."""

    def __init__(self, fragment: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[tuple[str, dict[str, str]]] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.pieces: list[tuple[str, str]] = []  # (text, style of the innermost element that has a background)
        self.feed(fragment)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag != "br":
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")

    def handle_data(self, data):
        styles = [attrs.get("style", "") for _, attrs in reversed(self.open)]
        self.pieces.append((data, next((style for style in styles if "background" in style), "")))

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.pieces)

    def background(self, text: str) -> list[str]:
        return [style for piece, style in self.pieces if piece == text]


def trajectory(*actions, reward=1.0, instruction="do it", observation="look", final="over", valid=True):
    turns, position = [], 1
    for number, action in enumerate(actions):
        last = number + 1 == len(actions)
        turns.append(
            Turn(
                observation,
                action,
                reward if last else 0.0,
                (position, position + 1),
                position + 1,
                action_valid=valid,
            )
        )
        position += 1
    return Trajectory(tuple(range(position)), tuple(turns), StopReason.TERMINATED, instruction, final, {"seed": 1})


def record_of(episode, scores=None):
    probs = None if scores is None else np.stack([scores, 1 - np.asarray(scores)], axis=1)
    line = json.dumps(trajectory_record(3, episode, None if scores is None else np.asarray(scores), probs))
    return json.loads(line)


def test_a_trajectory_and_its_record_look_the_same():
    episode = trajectory("go", "stop")
    assert episode_html(episode, [0.25, 0.75]) == episode_html(record_of(episode, [0.25, 0.75]))


def test_everything_is_there_in_order():
    page = Page(episode_html(trajectory("go", "stop"), [0.25, 1.0]))
    places = [page.text.index(text) for text in ("do it", "go", "0.25", "stop", "reward 1", "1.00", "over", "success")]
    assert places == sorted(places)
    assert "return 1.00, 2 steps" in page.text


def test_scores_given_come_before_those_of_the_record():
    record = record_of(trajectory("go"), [0.25])
    assert "0.25" in episode_html(record) and "0.75" not in episode_html(record)
    assert "0.75" in episode_html(record, [0.75]) and "0.25" not in episode_html(record, [0.75])


def test_action_and_score_have_the_colour_of_the_score():
    page = Page(episode_html(trajectory("go", "stop"), [0.0, 1.0]))
    for text, score in (("go", 0.0), ("0.00", 0.0), ("stop", 1.0), ("1.00", 1.0)):
        (style,) = page.background(text)
        assert f"background-color:{score_colour(score)};color:{INK};" in style


@pytest.mark.parametrize("nothing", [None, float("nan"), float("inf"), "no number"])
def test_a_step_without_a_score_has_no_colour(nothing):
    page = Page(episode_html(trajectory("go", "stop"), [nothing, 1.0]))
    assert page.background("go") == [""] and page.background("\N{EN DASH}") == [""]
    assert page.background("stop") != [""]


def test_the_wrong_number_of_scores_is_an_error():
    with pytest.raises(ValueError, match="scores has 1 entries, but the episode has 2 steps"):
        episode_html(trajectory("go", "stop"), [0.5])


@pytest.mark.parametrize("wrong", ["{}", 3, None, [1]])
def test_what_is_no_episode_is_an_error(wrong):
    with pytest.raises(TypeError, match=f"got {type(wrong).__name__}"):
        episode_html(wrong)


def relative_luminance(colour: str) -> float:
    """Of WCAG 2.1."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("score", np.linspace(0, 1, 21))
def test_every_score_can_be_read_on_its_colour(score):
    """Contrast of 7 : 1 (WCAG's AAA), whatever the page around it looks like: both colours are set."""
    light, dark = relative_luminance(score_colour(score)), relative_luminance(INK)
    assert (light + 0.05) / (dark + 0.05) >= 7


def test_better_is_bluer_and_worse_is_more_orange():
    colours = [score_colour(score) for score in np.linspace(0, 1, 11)]
    blue_minus_red = [int(c[5:7], 16) - int(c[1:3], 16) for c in colours]
    assert blue_minus_red == sorted(blue_minus_red) and blue_minus_red[0] < -100 < 100 < blue_minus_red[-1]
    assert score_colour(-1) == colours[0] and score_colour(2) == colours[-1]


def test_nothing_else_sets_a_colour_of_its_own():
    """In dark mode text in the page's own colour stays readable; text in a fixed one would not."""
    page = Page(episode_html(trajectory("go"), [None]))
    assert [style for _, attrs in page.tags if "color" in (style := attrs.get("style", ""))] == []


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("field", ["instruction", "observation", "action", "final_observation", "evaluation", "error"])
def test_hostile_texts_stay_text(text, field):
    record = record_of(trajectory("go"), [0.5])
    harmless = Page(episode_html({**record, field: "text", "turns": [{**record["turns"][0], field: "text"}]}))
    page = Page(episode_html({**record, field: text, "turns": [{**record["turns"][0], field: text}]}))
    # The same tags in the same order, but for those that keep formulas from being seen.
    kept = [(tag, attrs) for tag, attrs in page.tags if tag != "br" and (tag, attrs) != ("span", {})]
    assert kept == [(tag, attrs) for tag, attrs in harmless.tags if tag != "br"]
    assert "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text) in page.text


@given(st.text(max_size=60))
def test_any_text_nests_and_can_be_encoded(text):
    fragment = episode_html(trajectory(text, instruction=text, observation=text, final=text), [0.5])
    Page(fragment)
    fragment.encode("utf-8")
    assert not [c for c in fragment if ord(c) < 32 and c not in "\n\t"]


def test_no_element_holds_two_delimiters_of_a_formula():
    page = Page(episode_html(trajectory("$1 or $2", observation="\\(a\\) $b$")))
    assert "$1 or $2" in page.text
    assert all(piece in ("$", "\\") or not {"$", "\\"} & set(piece) for piece, _ in page.pieces)


def test_invisible_characters_are_spelt_out_but_not_those_of_emoji():
    page = Page(episode_html(trajectory("\u202eback", observation="\N{WOMAN}\u200d\N{ROCKET}")))
    assert "\\u202eback" in page.text and "\N{WOMAN}\u200d\N{ROCKET}" in page.text


def test_line_breaks_are_kept_and_long_texts_cut():
    view = EpisodeView(trajectory("go", observation="first\nsecond\n" + "x" * 10_000), max_chars=50)
    fragment = view._repr_html_()
    assert "first<br>second" in fragment and len(fragment) < 2500
    assert "\N{HORIZONTAL ELLIPSIS}" in fragment


def test_an_action_that_was_not_understood_says_so():
    assert "not understood" in episode_html(trajectory("go", valid=False))
    assert "not understood" not in episode_html(trajectory("go"))


@pytest.mark.parametrize(
    "record",
    [{}, {"turns": []}, {"turns": [{}]}, {"turns": [{"action": None}]}, {"turns": None, "return": None, "task": {}}],
)
def test_what_a_record_lacks_is_left_out(record):
    page = Page(episode_html(record))
    assert "None" not in page.text and "return" not in page.text and "success" not in page.text
    assert repr(EpisodeView(record))


def test_a_failed_episode_says_why():
    record = {**record_of(trajectory("go", reward=0.0)), "stop_reason": "env_error", "error": "it <b>broke</b>"}
    page = Page(episode_html(record))
    assert "no success" in page.text and "stopped: env_error, error: it <b>broke</b>" in page.text


def test_a_notebook_gets_html_and_a_terminal_text():
    view = EpisodeView(trajectory("go", "stop\x1b[31m"), [0.25, None], title="<before>")
    assert "<b>&lt;before&gt;</b>" in view._repr_html_()
    text = repr(view)
    assert "<before>" in text and "0.25 > go" in text and "\x1b" not in text and "\\u001b[31m" in text


def test_it_needs_neither_torch_nor_ipython():
    code = "import sys, trl_mise.display; print([m for m in ('torch', 'IPython') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
