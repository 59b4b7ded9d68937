"""CONTRIBUTING.md: what it shows works as it stands, what it names is there; the forge's forms can be read."""

import importlib.util
import re
import sys
import types
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from trainer_fakes import make_config, make_tokenizer, make_trainer

from trl_mise import cli
from trl_mise.chat import ChatFormat
from trl_mise.envs.registry import EnvironmentSpec

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^<!-- test: (\w+) -->\n```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))


def execute(name: str) -> dict[str, Any]:
    scope: dict[str, Any] = {"__name__": f"contributing_{name}"}
    exec(compile(BLOCKS[name], f"CONTRIBUTING.md ({name})", "exec"), scope)
    return scope


@pytest.fixture
def lift(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The module of step 1, where the reader is told to put it."""
    module = types.ModuleType("trl_mise.envs.lift")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(BLOCKS["environment"], "CONTRIBUTING.md (environment)", "exec"), vars(module))
    return module


def test_every_block_is_executed_here() -> None:
    assert sorted(BLOCKS) == ["environment", "environment_entry", "environment_tests", "judge"]
    fences = re.findall(r"^(.*)\n```(\w+)$", TEXT, re.MULTILINE)
    assert all(before.startswith(("<!-- test: ", "<!-- not run: ")) for before, _ in fences) and len(fences) == 6


def test_the_tests_of_the_new_environment_pass(lift: types.ModuleType) -> None:
    tests = [value for name, value in execute("environment_tests").items() if name.startswith("test_")]
    assert len(tests) == 4
    for test in tests:
        test()


def test_they_would_fail_if_it_were_broken(lift: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lift, "expert_action", lambda env: "open")
    tests = execute("environment_tests")
    for name in ("test_golden_episode", "test_the_expert_always_wins_and_chance_seldom"):
        with pytest.raises(AssertionError):
            tests[name]()


def test_the_new_environment_can_be_named_and_trained_on(lift: types.ModuleType, tmp_path: Path) -> None:
    from datasets import Dataset
    from fakes import byte_tokenizer, tiny_llama

    (call,) = re.findall(r"^EnvironmentSpec\(.*?^\)", BLOCKS["environment_entry"], re.MULTILINE | re.DOTALL)
    spec = eval(call, {"EnvironmentSpec": EnvironmentSpec})
    assert spec.factory(floors=3)().floors == 3 and spec.expert_action() is lift.expert_action
    tokenizer = byte_tokenizer("chatml")
    trainer = make_trainer(
        tmp_path,
        tokenizer=tokenizer,
        model=tiny_llama(len(tokenizer), max_position_embeddings=2048),
        environment_factory=spec.factory(),
        train_dataset=Dataset.from_list(spec.make_tasks("train", 16)),
        max_episode_tokens=1024,
    )
    trainer.train()
    assert trainer.state.episode == 16


def test_the_judge_is_listened_to(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    judge = execute("judge")["DislikesRepetition"].from_config(ChatFormat(tokenizer), make_config(tmp_path))
    trainer = make_trainer(tmp_path, tokenizer=tokenizer, hindsight=judge)
    (episode,) = trainer.collect([{"seed": 0}])
    scores = trainer.score([episode])
    actions = [turn.action for turn in episode.turns]
    assert scores.scores.tolist() == [0.9 if action not in actions[:i] else 0.1 for i, action in enumerate(actions)]
    trainer.train()
    assert trainer.state.global_step == 2


def test_modules_files_and_targets_that_are_named_exist() -> None:
    table = TEXT[TEXT.index("| layer |") : TEXT.index("`import trl_mise` loads none")]
    modules = {name for name in re.findall(r"`([a-z_]+)`", table) if name not in ("import", "trl_mise")}
    assert len(modules) > 35
    assert [name for name in sorted(modules) if importlib.util.find_spec(f"trl_mise.{name}") is None] == []
    paths = set(re.findall(r"`((?:trl_mise|tests|benchmarks|docs)/[\w/]+\.(?:py|md))`", TEXT))
    ours = {"trl_mise/envs/lift.py", "tests/test_lift.py"}
    later = {"docs/environments.md"}
    assert [path for path in sorted(paths - ours - later) if not (ROOT / path).is_file()] == []
    linked = [target for target in re.findall(r"\]\(([^)#]+)\)", TEXT) if not target.startswith("http")]
    assert [target for target in linked if not (ROOT / target).is_file()] == []
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"\bmake ([a-z-]+)", TEXT))
    assert {"demo", "test", "check"} <= targets
    assert [target for target in sorted(targets) if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


class TestForms:
    """GitHub shows a form only if it has the keys that it knows; otherwise it is silently left out."""

    FOLDER = ROOT / ".github" / "ISSUE_TEMPLATE"
    FORMS = ("bug.yml", "environment.yml", "feature.yml")
    # Type of an element -> attributes that it must have, and those that it may have.
    ELEMENTS = {
        "markdown": ({"value"}, set()),
        "input": ({"label"}, {"description", "placeholder", "value"}),
        "textarea": ({"label"}, {"description", "placeholder", "value", "render"}),
        "dropdown": ({"label", "options"}, {"description", "multiple", "default"}),
        "checkboxes": ({"label", "options"}, {"description"}),
    }

    def test_there_are_these(self) -> None:
        assert sorted(path.name for path in self.FOLDER.iterdir()) == sorted((*self.FORMS, "config.yml"))

    @pytest.mark.parametrize("name", FORMS)
    def test_a_form_is_valid(self, name: str) -> None:
        form = yaml.safe_load((self.FOLDER / name).read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= form.keys() <= {"name", "description", "title", "labels", "body"}
        assert all(isinstance(form[key], str) and form[key] for key in ("name", "description"))
        ids = [element.get("id") for element in form["body"] if element["type"] != "markdown"]
        assert len(ids) == len(set(ids)) and all(re.fullmatch(r"[A-Za-z0-9_-]+", known) for known in ids)
        for element in form["body"]:
            assert element.keys() <= {"type", "id", "attributes", "validations"}
            needed, allowed = self.ELEMENTS[element["type"]]
            assert needed <= element["attributes"].keys() <= needed | allowed, element
            assert element.get("validations", {}).keys() <= {"required"}
            if element["type"] == "dropdown":
                options = element["attributes"]["options"]
                assert len(options) == len(set(options)) and all(isinstance(option, str) for option in options)
                assert "None" not in options, "GitHub keeps this word for itself"
        labels = [e["attributes"]["label"] for e in form["body"] if "label" in e["attributes"]]
        assert len(labels) == len(set(labels))
        assert any(element.get("validations", {}).get("required") for element in form["body"])

    def test_the_chooser(self) -> None:
        config = yaml.safe_load((self.FOLDER / "config.yml").read_text(encoding="utf-8"))
        assert config.keys() <= {"blank_issues_enabled", "contact_links"}
        for link in config.get("contact_links", []):
            assert link.keys() == {"name", "url", "about"}

    def test_the_bug_form_asks_for_the_versions_by_a_command_that_works(self, capsys: Any) -> None:
        text = (self.FOLDER / "bug.yml").read_text(encoding="utf-8")
        assert "`trl-mise env`" in text
        assert cli.main(["env"]) == 0
        shown = capsys.readouterr().out
        assert re.search(rf"^trl +{re.escape(version('trl'))}$", shown, re.MULTILINE) and "device" in shown

    @pytest.mark.parametrize("name", [".github/PULL_REQUEST_TEMPLATE.md", "SECURITY.md", "docs/releasing.md"])
    def test_files_and_targets_of_the_other_texts_exist(self, name: str) -> None:
        text = (ROOT / name).read_text(encoding="utf-8")
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        targets = set(re.findall(r"(?:`|^|&& )make ([a-z-]+)", text, re.MULTILINE))
        assert [t for t in targets if not re.search(rf"^{t}:", makefile, re.MULTILINE)] == []
        named = re.findall(r"`([\w./-]+\.(?:md|toml|cff|py|yml))`", text)
        assert [path for path in named if not (ROOT / path).is_file()] == []


def test_every_block_of_the_release_checklist_says_that_it_is_not_run() -> None:
    """It tags and uploads."""
    text = (ROOT / "docs" / "releasing.md").read_text(encoding="utf-8")
    fences = re.findall(r"^(.*)\n```\w+$", text, re.MULTILINE)
    assert fences and all(before.startswith(("<!-- not run: ", "<!-- test: ")) for before in fences)
