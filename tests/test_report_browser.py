"""The report in a real browser: it loads, is read and filtered, by mouse and by keys, on a desk and on a phone."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import DESKTOP, PHONE, Page, find_browser, open_browser
from synthetic_run import Shape, write_lines, write_run

from trl_mise.report import write_report

SMALL = Shape(updates=10, batch=8, turns=8, shortest=5, train_tasks=40, evaluations=(0, 10), eval_tasks=6)
SECONDS_TO_OPEN = 6.0  # the aim is 2; this is for machines that do other things as well
ROWS = "[...document.querySelectorAll('.row .what')].map(n => n.textContent)"

HOSTILE = [
    "</script><script>alert('script')</script>",
    "<img src=x onerror=alert('image')>",
    "<svg onload=alert('svg')>",
    "<!-- <script> --> ]]>",
    '"><iframe src="javascript:alert(1)"></iframe>',
    "javascript:alert('url')",
    "{{ constructor.constructor('alert(1)')() }} ${alert(1)}",
    "\u2028alert(1)\u2029",
    "nul \x00 and bell \x07",
    "half \ud83d a pair",
    "\u202egnp.exe and \u2066more",
    "'; alert(1); //",
    "word " * 200_000,
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    binary, driver = find_browser()
    with open_browser(binary, driver, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_run(tmp_path_factory.mktemp("runs") / "shop", SMALL))


@pytest.fixture
def desk(page: Page, report: Path) -> Page:
    page.emulate(DESKTOP)
    page.load(report)
    return page


def rows(page: Page) -> list[str]:
    return list(page.js(f"return {ROWS}"))


def count(page: Page) -> str:
    return page.text(".count")


def shown(page: Page) -> str:
    """Which episode is open."""
    return page.text(".head .headline h3")


def draw_all(page: Page) -> None:
    """Charts are drawn when they come into sight: goes by all of them."""
    page.js("document.documentElement.style.scrollBehavior = 'auto'")
    for name in page.js("return [...document.querySelectorAll('.chart')].map(n => n.id).filter(Boolean)"):
        page.js("document.getElementById(arguments[0]).scrollIntoView()", name)
        page.pause(40)


# It loads


def test_it_opens_without_a_request_or_an_error(desk: Page, report: Path) -> None:
    assert desk.browser.title == "shop · trl-mise report"
    draw_all(desk)
    assert desk.console() == []
    assert set(desk.requests()) == {report.resolve().as_uri()}
    assert desk.js("return [...document.querySelectorAll('canvas')].every(c => Chart.getChart(c))")
    assert desk.js("return document.getElementById('viewer').getAttribute('aria-busy')") == "false"


def test_what_it_forbids_itself_is_forbidden(desk: Page) -> None:
    """Not only are there no requests: were there one, it would not leave."""
    asked = desk.browser.execute_async_script(
        "const done = arguments[0]; fetch('https://example.org/').then(() => done('sent'), () => done('refused'))"
    )
    assert asked == "refused"
    assert any("Content Security Policy" in message for message in desk.console())
    inserted = desk.js("try { document.body.innerHTML = '<b>x</b>'; return 'set' } catch (e) { return e.name }")
    assert inserted == "TypeError"


def test_charts_show_the_numbers_that_python_worked_out(desk: Page) -> None:
    desk.js("document.querySelector('#chart-success').scrollIntoView()")
    desk.wait("return !!Chart.getChart(document.querySelector('#chart-success canvas'))")
    data = json.loads(desk.text("#report-data"))
    (success,) = [chart for chart in data["charts"] if chart["name"] == "success"]
    drawn = desk.js(
        "return Chart.getChart(document.querySelector('#chart-success canvas')).data.datasets"
        ".map(d => [d.label, d.data.map(p => p.y)])"
    )
    assert drawn == [[series["name"], series["y"]] for series in success["series"]] and len(drawn) == 2
    desk.js("document.querySelector('#chart-success details').open = true")
    desk.wait("return document.querySelector('#chart-success table')")
    cells = desk.texts("#chart-success tbody tr:nth-child(2) td")
    sampled = dict(zip(success["series"][0]["x"], success["series"][0]["y"], strict=True))
    assert float(cells[0]) == sampled[1]
    button = "#chart-success .curve"
    desk.click(button)
    assert desk.js("return document.querySelector(arguments[0]).getAttribute('aria-pressed')", button) == "false"
    assert not desk.js("return Chart.getChart(document.querySelector('#chart-success canvas')).isDatasetVisible(0)")


def test_any_measure_can_be_drawn(desk: Page) -> None:
    desk.js("document.querySelector('#explorer').scrollIntoView()")
    desk.wait("return !!Chart.getChart(document.querySelector('#explorer canvas'))")
    desk.js("const s = document.getElementById('measure'); s.value = 'lr'; s.dispatchEvent(new Event('change'))")
    drawn = desk.js("return Chart.getChart(document.querySelector('#explorer canvas')).data.datasets[0].data.length")
    assert drawn == 10


# The viewer


def test_an_episode_is_shown_step_by_step(desk: Page, report: Path) -> None:
    first = json.loads((report.parent / "trajectories.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert shown(desk) == "Update 1" and desk.text(".instruction") == first["instruction"]
    steps = desk.texts(".steps .step")
    assert len(steps) == len(first["turns"])
    assert desk.texts(".steps .action") == [turn["action"] for turn in first["turns"]]
    assert desk.texts(".steps .observation")[0].startswith(first["turns"][0]["observation"][:500])
    scores = [f"{turn['score']:.2f}" for turn in first["turns"]]
    assert desk.texts(".steps .score") == scores, "colour alone would not do"
    probs = first["turns"][0]["verdict_probs"]
    assert desk.texts(".steps .verdict")[0] == f"good {probs[0]:.2f} · bad {probs[1]:.2f}"
    table = [row.split("\t") for row in desk.js("return document.querySelector('.timeline').innerText").split("\n")]
    named = {row[0]: row[1:] for row in table if len(row) > 1}
    assert named["Score"] == scores
    assert set(named) == {"Step", "Score", "Environment", "Hindsight added", "Final advantage"}
    added = named["Hindsight added"][0]
    assert added.lstrip("+−") == f"{abs(first['turns'][0]['shaping']):.2f}" and added[0] in "+−0"
    assert "hindsight was added to the step's advantage" in desk.text(".legend")


def test_colours_tell_scores_apart_and_ink_can_be_read_on_them(desk: Page) -> None:
    for scheme in ("light", "dark"):
        desk.emulate(DESKTOP, prefers_color_scheme=scheme)
        desk.pause(60)
        pairs = desk.js(
            "return [...document.querySelectorAll('.steps .score, .list .score:not(.none), .timeline td[style]')]"
            ".map(n => [getComputedStyle(n).backgroundColor, getComputedStyle(n).color])"
        )
        assert len(pairs) > 30
        assert min(contrast(*pair) for pair in pairs) >= 4.5
    colours = desk.js(
        "return [...document.querySelectorAll('.ramp span')].map(n => getComputedStyle(n).backgroundColor)"
    )
    low, high = rgb(colours[0]), rgb(colours[-1])
    assert low[0] > low[2] + 60 and high[2] > high[0] + 60, "orange and blue, which the colour-blind tell apart"


def rgb(colour: str) -> list[float]:
    return [float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]


def contrast(first: str, second: str) -> float:
    """As WCAG counts it."""

    def luminance(colour: str) -> float:
        parts = [v / 255 / 12.92 if v / 255 <= 0.04045 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in rgb(colour)]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_filters(desk: Page, report: Path) -> None:
    lines = [json.loads(line) for line in (report.parent / "trajectories.jsonl").read_text("utf-8").splitlines()]
    assert count(desk) == "80 of 92 episodes", "training episodes at first"
    desk.fill("outcome", "won")
    won = sum(line["success"] for line in lines)
    assert count(desk) == f"{won} of 92 episodes" and set(desk.texts(".row .tag")) == {"✓ won"}
    desk.fill("outcome", "failed")
    assert count(desk) == "1 of 92 episodes" and "EnvironmentTimeout" in desk.text(".head .banner")
    desk.fill("outcome", "all")
    desk.fill("from", "4")
    desk.fill("to", "5")
    assert count(desk) == "16 of 92 episodes" and set(rows(desk)) == {"Update 4", "Update 5"}
    desk.fill("low", "0.55")
    means = [sum(t["score"] for t in e["turns"]) / len(e["turns"]) for e in lines if e["update"] in (4, 5)]
    assert count(desk) == f"{sum(mean >= 0.55 for mean in means)} of 92 episodes"
    desk.click(".filters button[type=reset]")
    desk.pause()
    assert count(desk) == "80 of 92 episodes"
    desk.fill("set", "evaluation")
    assert count(desk) == "12 of 92 episodes" and set(rows(desk)) == {"Eval 0", "Eval 10"}
    desk.fill("set", "all")
    assert count(desk) == "92 episodes"


def test_orders(desk: Page) -> None:
    desk.fill("sort", "lowest")
    listed = desk.texts(".row > .score")
    assert listed == sorted(listed) and len(listed) > 5
    desk.fill("sort", "highest")
    highest = desk.texts(".row > .score")
    assert highest == sorted(highest, reverse=True) and highest[0] > listed[0]
    desk.fill("sort", "misjudged")
    wrong = [
        abs(float(score) - ("won" in outcome))
        for score, outcome in zip(desk.texts(".row > .score"), desk.texts(".row .tag"), strict=True)
    ]
    assert wrong == sorted(wrong, reverse=True) and wrong[0] > 0.4
    desk.fill("sort", "last")
    assert rows(desk)[0] == "Update 10"


def test_search_finds_words_anywhere_and_marks_them(desk: Page, report: Path) -> None:
    lines = (report.parent / "trajectories.jsonl").read_text(encoding="utf-8").splitlines()
    desk.fill("query", "The Seam Came loose")
    found = sum("the seam came loose" in line.lower() for line in lines)
    assert found > 0 and count(desk) == f"{found} of 92 episodes"
    assert desk.texts(".detail mark") and {m.lower() for m in desk.texts(".detail mark")} == {"the seam came loose"}
    desk.fill("query", "no page says this")
    assert count(desk) == "0 of 92 episodes" and "No episode matches" in desk.text(".list")
    assert "Nothing to show" in desk.text(".detail")
    desk.click(".list .link")
    desk.pause()
    assert count(desk) == "80 of 92 episodes" and not desk.texts(".detail mark")


def test_the_list_holds_only_the_rows_in_sight(desk: Page) -> None:
    desk.fill("set", "all")
    assert len(rows(desk)) < 40
    desk.js("document.querySelector('.list').scrollTop = 1e9")
    desk.pause()
    assert rows(desk)[-1] == "Eval 10" and len(rows(desk)) < 40
    places = desk.js("return [...document.querySelectorAll('.list li')].map(n => n.getAttribute('aria-posinset'))")
    assert places[-1] == "92"


def test_keys(desk: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    said = "return document.querySelector('.viewer > [role=status]').textContent"
    desk.keys("j", "j")
    assert str(desk.js(said)).startswith("Episode 3 of 80: Update 1")
    desk.keys("k")
    assert str(desk.js(said)).startswith("Episode 2 of 80")
    desk.keys("/")
    assert desk.js("return document.activeElement.name") == "query"
    desk.keys("jack")  # letters are letters while one types
    desk.pause()
    assert desk.js("return document.activeElement.value") == "jack" and "jack" in desk.js(
        "return document.activeElement.value"
    )
    desk.keys(Keys.ESCAPE)
    desk.pause()
    assert desk.js("return document.activeElement.tagName") == "BODY" and count(desk) == "80 of 92 episodes"
    desk.js("document.querySelector('.row').focus()")
    desk.keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    focused = "return [document.activeElement.className, document.activeElement.getAttribute('aria-current')]"
    assert desk.js(focused) == ["row", "true"]
    before = str(desk.js(said))
    desk.keys(Keys.ARROW_UP)
    assert str(desk.js(said)) != before
    desk.keys(Keys.END)
    assert str(desk.js(said)).startswith("Episode 80 of 80") and desk.js(focused) == ["row", "true"]
    desk.keys(Keys.HOME)
    assert str(desk.js(said)).startswith("Episode 1 of 80")


def test_focus_is_seen_and_everything_that_can_be_pressed_is_a_button(desk: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    desk.js("document.querySelector('.filters [name=query]').focus()")
    for _ in range(9):
        desk.keys(Keys.TAB)
        outline = desk.js("return getComputedStyle(document.activeElement).outlineStyle")
        inside = desk.js("return !!document.activeElement.closest('.viewer')")
        assert outline != "none" and inside
    clickable = desk.js(
        "return [...document.querySelectorAll('.viewer *')].filter(n => getComputedStyle(n).cursor === 'pointer')"
        ".map(n => n.closest('button, a, summary, label') ? '' : n.outerHTML).filter(Boolean)"
    )
    assert clickable == []
    names = desk.js(
        "return [...document.querySelectorAll('button, select, input, canvas')]"
        ".filter(n => !(n.textContent.trim() || n.ariaLabel || n.closest('label') || n.labels?.length))"
        ".map(n => n.outerHTML)"
    )
    assert names == [], "all of them have a name"


def test_two_updates_of_one_task_side_by_side(desk: Page, report: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    lines = [json.loads(line) for line in (report.parent / "evaluations.jsonl").read_text("utf-8").splitlines()]
    desk.fill("set", "evaluation")
    assert shown(desk) == "Evaluation after update 0"
    desk.keys("c")
    assert desk.texts(".two .head h3") == ["Evaluation after update 0", "Evaluation after update 10"]
    assert len(set(desk.texts(".two .instruction"))) == 1
    pair = [lines[0], lines[6]]
    actions = desk.texts(".two .step .action")
    expected = []
    for k in range(max(len(line["turns"]) for line in pair)):
        expected += [line["turns"][k]["action"] for line in pair if k < len(line["turns"])]
    assert actions == expected
    tops = desk.js(
        "return [...document.querySelectorAll('.two [data-step=\"0\"]')].map(n => n.getBoundingClientRect())"
    )
    assert tops[0]["top"] == tops[1]["top"] and tops[0]["left"] < tops[1]["left"]
    same = [a["action"] == b["action"] for a, b in zip(pair[0]["turns"], pair[1]["turns"], strict=False)]
    first = same.index(False) if False in same else min(len(line["turns"]) for line in pair)
    assert desk.text(".differs") == (
        f"the same until here; step {first + 1} differs" if first else "they differ from the first step"
    )
    address = desk.js("return location.hash")
    assert address == "#episode=81&with=87"
    desk.keys(Keys.ESCAPE)
    assert not desk.texts(".two") and len(desk.texts(".head h3")) == 1
    desk.load(report, address)
    assert desk.texts(".two .head h3") == ["Evaluation after update 0", "Evaluation after update 10"]
    desk.click(".bar button")
    assert not desk.texts(".two")


def test_a_training_task_that_came_again_can_be_compared_too(desk: Page) -> None:
    choices = "return [...document.querySelectorAll('.compare-with option')].map(n => n.textContent)"
    options = desk.js(choices)
    assert options[0] == "choose one of 1" and options[1].startswith("Update 6: ")
    desk.js(
        "const s = document.querySelector('.compare-with select'); s.selectedIndex = 1;"
        "s.dispatchEvent(new Event('change'))"
    )
    assert desk.texts(".two .head h3") == ["Update 1", "Update 6"]
    desk.js(
        "const s = document.querySelector('.compare-with select'); s.value = ''; s.dispatchEvent(new Event('change'))"
    )
    assert not desk.texts(".two")


def test_a_step_is_gone_to_from_the_timeline(desk: Page) -> None:
    desk.emulate(DESKTOP, prefers_reduced_motion="reduce")
    desk.js("document.querySelectorAll('.timeline thead button')[3].click()")
    top = desk.js("return document.querySelector('.steps [data-step=\"3\"]').getBoundingClientRect().top")
    assert 0 <= top < 120
    assert desk.js("return getComputedStyle(document.documentElement).scrollBehavior") == "auto"


# Where it is read


def test_dark_mode_reaches_the_charts(desk: Page) -> None:
    draw_all(desk)
    colours = (
        "const body = getComputedStyle(document.body);"
        "const chart = Chart.getChart(document.querySelector('#chart-success canvas'));"
        "return [body.backgroundColor, chart.data.datasets[0].borderColor, body.color]"
    )
    light = desk.js(colours)
    desk.emulate(DESKTOP, prefers_color_scheme="dark")
    desk.pause(150)
    dark = desk.js(colours)
    assert all(a != b for a, b in zip(light, dark, strict=True))
    assert sum(rgb(dark[0])) < 120 < 500 < sum(rgb(light[0]))
    assert contrast(dark[0], dark[2]) > 7 and contrast(light[0], light[2]) > 7
    assert desk.console() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(desk: Page, scheme: str) -> None:
    desk.emulate(DESKTOP, prefers_color_scheme=scheme)
    desk.pause(60)
    script = r"""
        const back = (node) => {
            for (; node; node = node.parentElement) {
                const colour = getComputedStyle(node).backgroundColor;
                if (!/, 0\)$/.test(colour)) return colour;
            }
            return "rgb(255, 255, 255)";
        };
        const speaks = (node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
        return [...document.querySelectorAll("body *")]
            .filter((n) => speaks(n) && n.offsetParent && !n.closest("script, button:disabled"))
            .map((n) => [back(n), getComputedStyle(n).color, `${n.className} ${n.textContent.slice(0, 30)}`]);
    """
    found = desk.js(script)
    assert len(found) > 200
    poor = {(round(contrast(a, b), 2), what) for a, b, what in found if contrast(a, b) < 4.5}
    assert poor == set()


def test_on_a_phone_nothing_sticks_out(page: Page, report: Path) -> None:
    page.emulate(PHONE)
    page.load(report, "#episode=81&with=87")
    height = "return document.documentElement.scrollHeight"
    before = page.js(height)
    draw_all(page)
    assert page.js(height) == before, "nothing moves when charts are drawn"
    for step in ("", "document.querySelector('.bar button').click()"):
        page.js(step)
        page.pause(60)
        assert page.js("return [innerWidth, document.documentElement.scrollWidth]") == [390, 390]
        outside = page.js(
            "return [...document.querySelectorAll('body *')].filter(n => n.getBoundingClientRect().right > 391"
            " && !n.closest('.scroll, .timeline, nav, .hidden-text, .skip')).map(n => n.outerHTML.slice(0, 80))"
        )
        assert outside == []
    small = page.js(
        "return [...document.querySelectorAll('.viewer button:not(.link), .viewer select')].map(n => "
        "n.getBoundingClientRect()).filter(r => r.height && r.height < 20).length"
    )
    assert small == 0
    page.js("document.querySelectorAll('.row')[2].click()")
    page.pause(60)
    top = page.js("return document.querySelector('.detail').getBoundingClientRect().top")
    assert -5 <= top < 200, "the chosen episode is in sight"
    assert page.console() == []


def test_it_can_be_printed(desk: Page) -> None:
    desk.emulate(DESKTOP, prefers_color_scheme="dark")
    desk.pause(60)
    look = (
        "const page = getComputedStyle(document.documentElement).getPropertyValue('--page').trim();"
        "const chip = getComputedStyle(document.querySelector('.steps .score')).backgroundColor;"
        "const chart = Chart.getChart(document.querySelector('#chart-success canvas')).data.datasets[0].borderColor;"
    )
    on_screen = desk.js(f"{look} return [page, chip, chart]")
    desk.js(
        f"window.printed = []; addEventListener('beforeprint', () => {{ {look} printed.push(page, chip, chart); }})"
    )
    pdf = base64.b64decode(desk.cdp("Page.printToPDF", printBackground=True)["data"])
    assert pdf.startswith(b"%PDF") and len(pdf) > 20_000
    on_paper = desk.js("return printed")
    assert on_paper[0] == "#f5f6f8" and on_screen[0] == "#0e1217", "paper is light, whatever the screen is"
    assert all(a != b for a, b in zip(on_paper, on_screen, strict=True))
    assert desk.js(f"{look} return [page, chip, chart]") == on_screen, "and the screen is dark again"
    assert desk.js("return [...document.querySelectorAll('.charts canvas')].every(c => Chart.getChart(c))")
    desk.cdp("Emulation.setEmulatedMedia", media="print")
    hidden = desk.js(
        "return ['nav', '.filters', '.list-side'].map(s => getComputedStyle(document.querySelector(s)).display)"
    )
    assert hidden == ["none"] * 3
    assert desk.js("return document.querySelector('.steps .step').getBoundingClientRect().height") > 40
    desk.cdp("Emulation.setEmulatedMedia", media="")


# What can go wrong


def test_hostile_texts_do_nothing(page: Page, tmp_path: Path) -> None:
    lines = []
    for k, text in enumerate(HOSTILE):
        turn = {"observation": text, "action": text, "evaluation": text, "reward": 0.0, "score": 0.5}
        lines.append(
            {
                "update": k,
                "task": {"said": text[:200], text[:20]: 1},
                "instruction": text,
                "turns": [{**turn, "verdict_probs": [0.5, 0.5]}] * 2,
                "final_observation": text,
                "return": 0.0,
                "success": False,
                "stop_reason": text[:40],
                "error": text,
            }
        )
    content = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "trajectories.jsonl").write_text(content, encoding="utf-8")
    info = {"model": HOSTILE[0], "error": HOSTILE[1], "status": HOSTILE[2], "environment": HOSTILE[10]}
    info["options"] = {"hindsight_verdicts": [HOSTILE[1], HOSTILE[0]], HOSTILE[4]: HOSTILE[5]}
    (tmp_path / "run.json").write_text(json.dumps(info), encoding="utf-8")
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1, HOSTILE[0]: 1.0, "env/success": 0.5}])
    event = {"update": 1, "kind": HOSTILE[2], "message": "".join(HOSTILE[:12])}
    (tmp_path / "events.jsonl").write_text(json.dumps(event) + "\n", encoding="utf-8")
    page.emulate(DESKTOP)
    page.load(write_report(tmp_path))
    draw_all(page)
    tags = "return [...new Set([...document.querySelectorAll('*')].map(n => n.tagName.toLowerCase()))]"
    for k, text in enumerate(HOSTILE):
        assert page.text(".head h3") == f"Update {k}"
        said = page.text(".steps .action")
        assert said.startswith(visible(text)[:200]) and len(said) >= len(visible(text)[:1000])
        assert {"img", "iframe"}.isdisjoint(page.js(tags))
        page.keys("j")
    page.fill("query", "alert(1)")
    assert not count(page).startswith("0 ") and page.texts("mark")
    assert page.js("return document.querySelectorAll('script').length") == 4
    assert page.console() == []
    assert not has_alert(page), "nothing has run"
    assert len(page.requests()) == 1


def visible(text: str) -> str:
    """As the page shows it."""
    from trl_mise.report_summary import printable

    return printable(text)


def has_alert(page: Page) -> bool:
    from selenium.common.exceptions import NoAlertPresentException

    try:
        page.browser.switch_to.alert.dismiss()
    except NoAlertPresentException:
        return False
    return True


def test_a_text_of_a_megabyte_opens_a_piece_at_a_time(page: Page, tmp_path: Path) -> None:
    turn = {"observation": "word " * 200_000, "action": "read", "reward": 0.0}
    line = {"update": 1, "task": {}, "turns": [turn], "return": 0.0, "success": True, "stop_reason": "terminated"}
    write_lines(tmp_path / "trajectories.jsonl", [line])
    page.emulate(DESKTOP)
    page.load(write_report(tmp_path))
    first = len(page.text(".observation"))
    assert first < 1200 and "Show more (999,100 characters left)" in page.text(".observation")
    page.click(".observation .link")
    assert 40_000 < len(page.text(".observation")) < 42_000
    assert page.js("return document.documentElement.scrollWidth") <= 1280


def test_without_decompression_the_page_says_so(page: Page, report: Path) -> None:
    page.emulate(DESKTOP)
    script = page.cdp("Page.addScriptToEvaluateOnNewDocument", source="delete window.DecompressionStream")
    try:
        page.load(report)
        assert "cannot unpack the episodes: it has no DecompressionStream" in page.text("#viewer-state")
        page.js("document.querySelector('#chart-success').scrollIntoView()")
        page.wait("return !!Chart.getChart(document.querySelector('#chart-success canvas'))")
        assert page.console() == []
    finally:
        page.cdp("Page.removeScriptToEvaluateOnNewDocument", identifier=script["identifier"])


def test_without_javascript_the_words_are_there(page: Page, report: Path) -> None:
    page.emulate(DESKTOP)
    page.cdp("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.browser.get("about:blank")
        page.browser.get(report.resolve().as_uri())
        tree = page.cdp("DOMSnapshot.captureSnapshot", computedStyles=[])
        said = " ".join(tree["strings"])
        assert "Charts and episodes need JavaScript" in said and "Judge's AUROC" in said
    finally:
        page.cdp("Emulation.setScriptExecutionDisabled", value=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"grpo": True},
        {"verdicts": (), "evaluations": ()},
        {"verdicts": ("great", "so-so", "poor"), "written": True, "placement": "return"},
        {"status": "failed", "updates": 1},
        {"updates": 0, "evaluations": ()},
    ],
    ids=["grpo", "hindsight off", "three verdicts", "failed", "before the first update"],
)
def test_other_runs(page: Page, tmp_path: Path, changes: dict[str, Any]) -> None:
    page.emulate(DESKTOP)
    page.load(write_report(write_run(tmp_path / "run", SMALL, **changes)))
    draw_all(page)
    assert page.console() == []
    if changes.get("updates") == 0:
        assert "No episode was written" in page.text("#viewer-state")
    elif changes.get("verdicts") == ():
        assert "not recorded: score, hindsight added" in page.text(".legend") and not page.texts(".steps .score")
    elif changes.get("written"):
        assert page.text(".steps .verdict").count("·") == 2 and "Verdict: " in page.text(".steps .evaluation")
        assert "hindsight was added to the step's reward" in page.text(".legend")
    elif changes.get("grpo"):
        assert len(page.texts(".compare-with option")) == 1 + 3, "all four of an update's episodes of a task"


def test_two_thousand_episodes_open_soon(page: Page, tmp_path: Path) -> None:
    shape = Shape(updates=125, batch=16, turns=16, shortest=16, train_tasks=1000, evaluations=())
    path = write_report(write_run(tmp_path / "run", shape))
    page.emulate(DESKTOP)
    page.load(path)
    paint, ready = page.js(
        "return [performance.getEntriesByName('first-contentful-paint')[0].startTime,"
        " performance.getEntriesByName('viewer-ready')[0].startTime]"
    )
    print(f"{path.stat().st_size / 1e6:.2f} MB; first paint after {paint:.0f} ms, viewer ready after {ready:.0f} ms")
    assert paint < ready < 1000 * SECONDS_TO_OPEN
    assert count(page) == "2,000 episodes" and len(page.texts(".row")) < 40
    begin = page.js(
        "const t = performance.now(); document.querySelector('.filters').elements.query.value = 'seam'; return t"
    )
    page.js("document.querySelector('.filters').dispatchEvent(new Event('input', { bubbles: true }))")
    page.wait("return document.querySelector('.count').textContent !== '2,000 episodes'")
    assert page.js("return performance.now()") - begin < 1000 * SECONDS_TO_OPEN
    assert page.console() == []
