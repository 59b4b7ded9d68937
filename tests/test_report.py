"""The report as a file: what is in it, what is left out and said, and that it is one file alone."""

import base64
import hashlib
import json
import random
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_reader import Elements, charts, curve, episodes, packed, page_data, script_of
from synthetic_run import Shape, write_lines, write_run

from trl_mise import report as report_module
from trl_mise.report import render_report, write_report
from trl_mise.report_episodes import spread_order
from trl_mise.report_summary import printable, without_paths
from trl_mise.run_data import read_run

ROOT = Path(__file__).parents[1]
SMALL = Shape(updates=6, batch=8, turns=5, shortest=3, train_tasks=24, evaluations=(0, 6), eval_tasks=4)

HOSTILE = [
    "</script><script>alert(1)</script>",
    "</script ><script >alert(1)</script >",
    "<!-- <script> -->",
    "]]>",
    "\"'`",
    "\u2028\u2029",
    "a\x00b",
    "half \ud83d a pair",
    "\u202egnp.exe",
    "javascript:alert(1)",
    "{{ 7 * 7 }} {% raw %} ${7 * 7}",
    "<img src=x onerror=alert(1)>",
    "&lt;b&gt; &amp;",
    "x" * 1_000_000,
]


def write(folder: Path, shape: Shape = SMALL, **changes: Any) -> str:
    return write_report(write_run(folder, shape, **changes)).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("runs") / "shop")


def near(points: list[tuple[float, float]]) -> Any:
    """Equal to five digits, as charts hold them."""
    return pytest.approx(np.array(points), rel=1e-4)


# What is in it


def test_every_episode_and_every_step_is_there(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", SMALL)
    values = packed(write_report(folder).read_text(encoding="utf-8"))
    run, found = read_run(folder), episodes(values)
    assert len(found) == 48 + 8
    for record, own in zip((*run.training, *run.evaluation), found, strict=True):
        assert (own["kind"], own["update"], own["seed"]) == (
            int(record.kind == "evaluation"),
            record.update,
            record.seed,
        )
        assert (own["instruction"], own["final"]) == (record.instruction, record.final_observation)
        assert (own["success"], own["return"], own["complete"]) == (record.success, record.episode_return, 1)
        assert (own["stop"], own["error"]) == (record.stop_reason, record.error or "")
        assert own["score"] == (None if record.mean_score is None else round(1000 * record.mean_score))
        for step, written in zip(own["steps"], record.steps, strict=True):
            assert (step["observation"], step["action"]) == (written.observation, written.action)
            assert (step["reward"], step["invalid"]) == (written.reward, not written.action_valid)
            for name in ("score", "shaping", "advantage"):
                value = getattr(written, name)
                assert step[name] == (None if value is None else round(1000 * value))
            assert [p for p in step["probs"] if p is not None] == [round(1000 * p) for p in written.verdict_probs]
    of_task = {}
    for own in found[-8:]:
        of_task.setdefault(own["task"], []).append(own["update"])
    assert list(of_task.values()) == [[0, 6]] * 4, "an evaluation task is one task at every evaluation"


def test_the_curves_are_those_that_were_logged(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", SMALL)
    html = write_report(folder).read_text(encoding="utf-8")
    log = read_run(folder).log
    logged = [(entry["step"], entry["hindsight/gate"]) for entry in log if "hindsight/gate" in entry]
    assert curve(html, "gate", "gate") == near(logged)
    success = [(entry["step"], entry["env/success"]) for entry in log if "env/success" in entry]
    assert curve(html, "success", "training episodes (sampled)") == near(success)
    greedy = [(entry["step"], entry["eval_success"]) for entry in log if "eval_success" in entry]
    assert [x for x, _ in greedy] == [0, 6] and curve(html, "success", "evaluation (greedy)") == near(greedy)
    assert packed(html)["measures"]["lr"][0] == [1, 2, 3, 4, 5, 6]
    assert "Worked out from the episodes" not in html


def test_an_old_run_has_its_curves_from_its_episodes(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", SMALL)
    for name in ("run.json", "metrics.jsonl", "events.jsonl"):
        (folder / name).unlink()
    html = write_report(folder).read_text(encoding="utf-8")
    by_update: dict[int, list[Any]] = {}
    for e in read_run(folder).training:
        by_update.setdefault(e.update, []).append(e)
    won = [
        (u, sum(e.success for e in es if not e.failed) / sum(not e.failed for e in es)) for u, es in by_update.items()
    ]
    assert curve(html, "success", "training episodes (sampled)") == near(won)
    assert [x for x, _ in curve(html, "success", "evaluation (greedy)")] == [0, 6]
    assert {"success", "rates", "reliability", "distribution", "by-step", "forecast", "credit"} <= set(charts(html))
    text = Elements(html).text
    assert "Worked out from the episodes" in text and "there is no run.json that says more" in text
    assert "The run kept no list of warnings" in text and "did not record what its phases took" in text
    assert "The options are not known" in text


def test_headline_and_facts(html: str) -> None:
    text = Elements(html).text
    assert "494M, 8.8M trained" in text and "finished 6 of 6 updates" in text and "after update 3" in text
    assert "2026-11-20 09:00 UTC" in text and "14 min" in text
    assert "Training episodes 48" in text and "Judge's AUROC" in text and "An update takes" in text
    assert re.search(r"Evaluation \d\.\d\d → \d\.\d\d update 0 and 6, greedy, 4 tasks", text)
    assert "collapsed verdicts: for 5 updates" in text
    assert page_data(html)["marks"] == [1, 3]
    assert "evaluator_view masked full" in text, "an option, its value, its default"
    assert "gamma 1 1" not in text, "an option at its default is not among the changed ones"


def test_hindsight_off(tmp_path: Path) -> None:
    html = write(tmp_path / "run", verdicts=())
    assert "No training episode of this run has scores" in Elements(html).text
    assert "reliability" not in charts(html) and "success" in charts(html)
    assert packed(html)["steps"]["score"] is None and packed(html)["steps"]["probs"] == []


def test_written_verdicts_of_three_kinds(tmp_path: Path) -> None:
    html = write(tmp_path / "run", verdicts=("great", "so-so", "poor"), written=True, placement="return")
    values = packed(html)
    facts = page_data(html)["facts"]
    assert facts == {"verdicts": ["great", "so-so", "poor"], "utilities": [1.0, 0.5, 0.0], "placement": "return"}
    assert len(values["steps"]["probs"]) == 3
    first = episodes(values)[0]["steps"][0]
    assert re.search(r"Verdict: (great|so-so|poor)\.$", first["evaluation"]) and sum(first["probs"]) in (
        999,
        1000,
        1001,
    )


def test_a_run_of_the_other_trainer(tmp_path: Path) -> None:
    html = write(tmp_path / "run", grpo=True)
    text = Elements(html).text
    assert charts(html)["gate"]["x"] == "optimizer step" and "12 of 12 optimizer steps" in text
    assert len(curve(html, "policy", "KL to the reference")) == 6, "GRPO's own name for it"
    assert "reward" in packed(html)["measures"]


@pytest.mark.parametrize(
    ("status", "told"),
    [
        ("failed", "ended by an error, after 6 of 6 updates"),
        ("running", "after 6 of 6 updates; still going on when this was written, or killed"),
        ("stopped", "ended early, after 6 of 6 updates"),
    ],
)
def test_how_it_ended(tmp_path: Path, status: str, told: str) -> None:
    text = Elements(write(tmp_path / "run", status=status)).text
    assert f"{status} {told}" in text
    assert ("The run ended with an error. NonFiniteUpdate: update 40" in text) is (status == "failed")


def test_a_run_that_has_hardly_begun(tmp_path: Path) -> None:
    (tmp_path / "trajectories.jsonl").write_text("", encoding="utf-8")
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "There are no numbers yet" in Elements(html).text
    assert packed(html)["episodes"]["update"] == [] and charts(html) == {}


def test_what_could_not_be_read_is_told(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", SMALL)
    with (folder / "trajectories.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"update": 7, "turns": [{"obs')
    assert "The last line of trajectories.jsonl is torn" in Elements(write_report(folder).read_text("utf-8")).text


def test_a_long_run_is_thinned_and_says_so(tmp_path: Path) -> None:
    log = [{"step": k, "env/success": k / 1000, "time/rollout": 1.0, "time/update": 3.0} for k in range(1000)]
    write_lines(tmp_path / "metrics.jsonl", log)
    html = write_report(tmp_path).read_text(encoding="utf-8")
    sampled = curve(html, "success", "training episodes (sampled)")
    assert len(sampled) == 334 and sampled[0].tolist() == [2, 0.001]
    text = Elements(html).text
    assert "Each point is the mean of 3 logged values." in text and "Each bar is the mean of 3" in text
    assert re.search(r"update \(training\) 3 +75%", text)


# What is left out


def test_a_limit_keeps_all_numbers_and_says_what_it_took(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", Shape(updates=20, batch=16, turns=12, evaluations=(0, 20), eval_tasks=10))
    whole = packed(write_report(folder).read_text(encoding="utf-8"))
    size = (folder / "report.html").stat().st_size
    limit = round(size / 1e6 - 0.1, 3)
    with pytest.warns(UserWarning, match=rf"limited to {limit:g} MB: The texts of \d+ of 340 episodes are here"):
        path = write_report(folder, tmp_path / "small.html", max_megabytes=limit)
    html = path.read_text(encoding="utf-8")
    assert limit * 1e6 - 60_000 < path.stat().st_size <= limit * 1e6, "as much as fits"
    values = packed(html)
    for name in ("score", "shaping", "advantage", "reward", "probs"):
        assert values["steps"][name] == whole["steps"][name]
    assert charts(html) == charts((folder / "report.html").read_text(encoding="utf-8"))
    found, before = episodes(values), episodes(whole)
    kept = [own for own in found if own["complete"]]
    assert 10 < len(kept) < 330
    assert f"The texts of {len(kept)} of 340 episodes are here" in Elements(html).text
    for own, full in zip(found, before, strict=True):
        texts = [step["observation"] for step in own["steps"]]
        assert texts == ([step["observation"] for step in full["steps"]] if own["complete"] else [""] * len(texts))
        assert [step["action"] for step in own["steps"]] == [step["action"] for step in full["steps"]]
    halves = [sum(1 for own in kept if not own["kind"] and (own["update"] > 10) == late) for late in (False, True)]
    assert abs(halves[0] - halves[1]) < 0.2 * sum(halves), "spread evenly over the run"
    evaluated = [own["task"] for own in kept if own["kind"]]
    assert evaluated and all(evaluated.count(task) == 2 for task in evaluated), "whole tasks, to be compared"


def test_long_texts_are_the_first_to_be_shortened(tmp_path: Path) -> None:
    rng = random.Random(0)
    noise = "".join(chr(rng.randrange(0x4E00, 0x9FFF)) for _ in range(1_000_000))
    turn = {"observation": noise, "action": "look", "reward": 0.0, "action_valid": True}
    write_lines(tmp_path / "trajectories.jsonl", [{"update": 1, "turns": [turn], "task": {}, "return": 0.0}])
    with pytest.warns(UserWarning, match="Texts of more than 20,000 characters are shortened in the middle"):
        html = write_report(tmp_path, max_megabytes=1).read_text(encoding="utf-8")
    (step,) = episodes(packed(html))[0]["steps"]
    assert step["observation"] == f"{noise[:15_000]}\n[… 980,000 characters left out …]\n{noise[-5_000:]}"


def test_the_last_resorts(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", Shape(updates=30, batch=16, turns=12))
    empty = len(render_report(read_run(write_run(tmp_path / "e", Shape(updates=1, batch=1, turns=1, shortest=1))))[0])
    with pytest.warns(UserWarning, match="The list holds .* of .* episodes, .*and only their numbers"):
        path = write_report(folder, max_megabytes=round(empty / 1e6 + 0.06, 3))
    found = episodes(packed(path.read_text(encoding="utf-8")))
    assert 10 < len(found) < 400 and {step["action"] for own in found for step in own["steps"]} == {""}
    for limit in (0.01, 0.1):
        with pytest.raises(ValueError, match=rf"max_megabytes={limit} is less than the page weighs.*at least 0\.\d\d"):
            write_report(folder, max_megabytes=limit)
    for limit in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="max_megabytes must be a positive, finite number"):
            write_report(folder, max_megabytes=limit)


def test_the_limit_that_the_error_names_is_enough(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", SMALL)
    with pytest.raises(ValueError) as error:
        write_report(folder, max_megabytes=0.05)
    named = float(str(error.value).split("at least ")[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert write_report(folder, max_megabytes=named).stat().st_size <= named * 1e6


def test_any_beginning_of_the_order_is_spread_evenly(tmp_path: Path) -> None:
    line = {"turns": [], "return": 0.0, "success": False, "stop_reason": "terminated"}
    write_lines(tmp_path / "trajectories.jsonl", [{**line, "update": k, "task": {"game": 1}} for k in range(40)])
    one_task = read_run(tmp_path).training
    order = spread_order(one_task)
    assert sorted(order) == list(range(40)) and order[:2] == [0, 39], "first and last, to be compared"
    assert sum(number < 20 for number in order[:10]) in (4, 5, 6)
    many = [{**line, "update": k // 4, "task": {"game": k // 2}} for k in range(64)]
    write_lines(tmp_path / "trajectories.jsonl", many)
    order = spread_order(read_run(tmp_path).training)
    assert sorted(order) == list(range(64)) and order[:4] == [0, 1, 32, 33], "both episodes of a task"


# One file alone


def test_nothing_is_loaded_and_no_other_script_may_run(html: str) -> None:
    elements = Elements(html)
    for tag, attributes in elements.tags:
        assert tag not in ("img", "iframe", "object", "embed", "base", "form", "audio", "video"), tag
        assert not any(name.startswith("on") or name in ("style", "src", "srcset", "action") for name in attributes)
        href = attributes.get("href")
        assert href is None or href == "data:," or href.startswith("#"), href
    (policy,) = [a["content"] for t, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and policy.startswith("default-src 'none'; ") and "unsafe" not in policy

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    scripts = [text for tag, attributes, text in elements.inside if tag == "script" and "type" not in attributes]
    assert len(scripts) == 3 and all(digest(text) in policy for text in scripts)
    (style,) = [text for tag, _, text in elements.inside if tag == "style"]
    assert f"style-src {digest(style)}" in policy and "url(" not in style and "@import" not in style
    assert not any("sourceMappingURL" in text for text in scripts)
    assert "require-trusted-types-for 'script'" in policy


def test_our_scripts_make_no_html_of_texts() -> None:
    ours = report_module._script()
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "fetch("):
        assert word not in ours, word
    assert "</script" not in ours.lower() and "<!--" not in ours
    library = report_module._library().lower()
    assert "</script" not in library and "<!--" not in library


@pytest.mark.parametrize("where", ["instruction", "observation", "action", "task", "error", "evaluation", "final"])
def test_hostile_texts_stay_texts(tmp_path: Path, where: str) -> None:
    lines = []
    for text in HOSTILE:
        said = {name: text if name == where else "" for name in ("observation", "action", "evaluation")}
        lines.append(
            {
                "update": 1,
                "task": {"said": text[:50]} if where == "task" else {},
                "instruction": text if where == "instruction" else "",
                "turns": [{**said, "reward": 0.0}],
                "final_observation": text if where == "final" else "",
                "return": 0.0,
                "success": False,
                "stop_reason": "terminated",
                **({"error": text} if where == "error" else {}),
            }
        )
    content = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "trajectories.jsonl").write_text(content, encoding="utf-8")
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert Elements(html).tags == Elements(write_empty(tmp_path / "empty", lines=len(lines))).tags
    values = packed(html)
    if where == "task":
        assert values["tasks"] == [f"said: {text[:50]}" for text in HOSTILE]
        return
    found = episodes(values)
    read = [own[where] if where in own else own["steps"][0][where] for own in found]
    assert read == HOSTILE


def write_empty(folder: Path, lines: int) -> str:
    """The same run with nothing said."""
    folder.mkdir()
    line = {"update": 1, "turns": [{"reward": 0.0}], "return": 0.0, "success": False, "stop_reason": "terminated"}
    write_lines(folder / "trajectories.jsonl", [line] * lines)
    return write_report(folder).read_text(encoding="utf-8")


@pytest.mark.parametrize("text", HOSTILE[:-1])
def test_hostile_run_records(tmp_path: Path, text: str) -> None:
    """What stands on the page itself: names, options, warnings, errors, measures."""
    info = {
        "status": text,
        "error": text,
        "model": text,
        "environment": text,
        "trainer": text,
        "versions": {text: text},
        "options": {text: text, "system_prompt": text, "hindsight_verdicts": [text, text + "2"]},
        "resumed": [{"update": text}],
        "started": text,
        "device": text,
    }
    (tmp_path / "run.json").write_text(json.dumps(info), encoding="utf-8")
    event = {"update": 1, "kind": text, "message": text}
    (tmp_path / "events.jsonl").write_text(json.dumps(event) + "\n", encoding="utf-8")
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, text: 1.0, f"eval_{text}_success": 0.5}), "utf-8")
    html = write_report(tmp_path).read_text(encoding="utf-8")
    elements = Elements(html)
    scripts = [attributes for tag, attributes in elements.tags if tag == "script"]
    assert len(scripts) == 5 and not any(tag == "img" for tag, _ in elements.tags)
    shown = " ".join(printable(text).split())
    assert elements.text.count(shown) >= 6, "shown as it is, with hidden characters by their numbers"
    assert text in packed(html)["measures"]
    assert page_data(html)["facts"]["verdicts"] == [text, text + "2"]
    assert not set("<>&") & set(script_of(html, "report-data")), "nothing in it can end it"
    if "7 * 7" in text:
        assert "49" not in elements.text.replace("1.49", "")
    assert "\x00" not in html and "\u202e" not in html


def test_hidden_characters_are_shown() -> None:
    assert printable("a\x00\u202eb\ud800\n\tc") == "a⟨U+0000⟩⟨U+202E⟩b⟨U+D800⟩\n\tc"
    assert printable("猫 שלום é 👍") == "猫 שלום é 👍"


# The same from the same


def test_the_same_input_gives_the_same_bytes_wherever_it_lies(tmp_path: Path) -> None:
    first = write_run(tmp_path / "here" / "run", SMALL)
    second = tmp_path / "elsewhere" / "deeper" / "run"
    shutil.copytree(first, second)
    assert write_report(first).read_bytes() == write_report(second).read_bytes()
    assert write_report(first, tmp_path / "out.html").read_bytes() == (first / "report.html").read_bytes()
    assert (first / "report.html").read_bytes() == write_report(first).read_bytes(), "a report is no part of the run"
    program = f"import sys; from trl_mise.report import write_report; write_report({str(first)!r}, sys.argv[1])"
    other = tmp_path / "other.html"
    environment = {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7", "PATH": ""}
    subprocess.run([sys.executable, "-c", program, str(other)], check=True, env=environment, stdin=subprocess.DEVNULL)
    assert other.read_bytes() == (first / "report.html").read_bytes()


def test_no_path_of_the_machine_is_in_it(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", SMALL)
    events = [{"update": 1, "kind": "health", "message": f"see {tmp_path}/run/log.txt and C:\\Users\\me\\x.txt"}]
    write_lines(folder / "events.jsonl", events)
    html = write_report(folder).read_text(encoding="utf-8")
    assert str(tmp_path) not in html and "secret-project" not in html and "Users" not in html
    assert "see …/log.txt and …/x.txt" in Elements(html).text and "…/shop" in html


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/me/runs/shop", "…/shop"),
        ("~/runs/shop/", "…/"),
        ('File "/a/b/c.py", line 3', 'File "…/c.py", line 3'),
        ("org/model-7B", "org/model-7B"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("a / b and 1/2/3", "a / b and 1/2/3"),
        ("loss/policy_avg", "loss/policy_avg"),
    ],
)
def test_without_paths(text: str, shown: str) -> None:
    assert without_paths(text) == shown


def test_output_goes_where_it_is_told_to(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", SMALL)
    assert write_report(str(folder)) == folder / "report.html"
    path = write_report(folder, tmp_path / "new" / "folder" / "page.html")
    assert path == tmp_path / "new" / "folder" / "page.html" and path.is_file()


def test_two_thousand_episodes_weigh_less_than_five_megabytes(tmp_path: Path) -> None:
    shape = Shape(updates=125, batch=16, turns=16, shortest=16, train_tasks=1000, evaluations=())
    folder = write_run(tmp_path / "run", shape)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = write_report(folder)
    run = read_run(folder)
    texts = [step.observation for e in run.training for step in e.steps]
    assert len(run.training) == 2000 and len(texts) >= 2000 * 16 - 16 and sum(map(len, texts)) / len(texts) > 580
    assert path.stat().st_size < 5_000_000


# Its parts


def test_importing_the_report_loads_no_torch() -> None:
    program = (
        "import sys, trl_mise.report; sys.exit(' '.join({'torch', 'transformers', 'trl'} & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_chart_library_is_the_release_that_it_is_said_to_be(html: str) -> None:
    vendor = ROOT / "trl_mise" / "report_page" / "vendor"
    known = report_module.chart_library_facts()
    content = (vendor / "chart.umd.min.js").read_bytes()
    assert hashlib.sha256(content).hexdigest() == known["sha256"]
    assert f"Chart.js v{known['version']}\n".encode() in content[:200]
    assert known["licence"] == "MIT"
    for name in report_module.LICENCES:
        text = " ".join(report_module._asset(name).split())
        assert "The MIT License (MIT)" in text and text in Elements(html).text, "a copy comes with its licence"


def test_the_package_ships_the_page() -> None:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["trl_mise"]
    package = ROOT / "trl_mise"
    shipped = {path for pattern in patterns for path in package.glob(pattern) if path.is_file()}
    assert {path for path in (package / "report_page").rglob("*") if path.is_file()} <= shipped


@pytest.mark.parametrize("name", ["MISEConfig", "MISEGRPOConfig"])
def test_the_defaults_are_those_of_the_configurations(name: str, tmp_path: Path) -> None:
    """Where this fails, a default has changed: write the new one into report_page/option_defaults.json."""
    import trl_mise

    config = getattr(trl_mise, name)(output_dir=str(tmp_path))
    known = json.loads(report_module._asset("option_defaults.json"))[name]
    assert {option: getattr(config, option) for option in known} == known
    own = set(vars(trl_mise.hindsight_config.HindsightConfig)["__dataclass_fields__"])
    assert own <= set(known)
