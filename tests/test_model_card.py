"""The model card: written with every saved model, true, readable whatever the names are, and never over somebody's."""

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from peft import LoraConfig
from test_grpo import config as grpo_config
from test_grpo import make as make_grpo
from trainer_fakes import LetterEnv, make_classifier, make_policy, make_ppo_config, make_tokenizer, make_trainer, tasks

from trl_mise import MISEGRPOTrainer, MISETrainer
from trl_mise.card_facts import EnvironmentFacts
from trl_mise.envs.kitchen import KitchenEnv, make_tasks
from trl_mise.envs.registry import environment_spec
from trl_mise.model_card import is_edited, sealed, write_card
from trl_mise.ppo import TRL_HAS_PPO
from trl_mise.run_record import EVENTS_NAME, RUN_NAME

SAVE = {"save_strategy": "steps", "save_steps": 1}
LORA = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
RENDERER = MarkdownIt("commonmark").enable("table")


def card_of(folder: Path) -> ModelCard:
    return ModelCard.load(folder / "README.md")


def rows(text: str) -> dict[str, str]:
    """First cell -> the others, of all tables."""
    lines = [line.strip("| ").split(" | ", 1) for line in text.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[1] for cells in lines if len(cells) == 2}


def snippet(text: str) -> str:
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return code


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


class TestWhen:
    def test_every_saved_model_has_one(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path / "run", **SAVE)
        trainer.train()
        trainer.save_model(str(tmp_path / "mine"))
        folders = [tmp_path / "run", tmp_path / "run/checkpoint-1", tmp_path / "run/checkpoint-2", tmp_path / "mine"]
        updates = [rows(card_of(folder).text)["updates"] for folder in folders]
        assert updates == ["2 of 2", "1 of 2", "2 of 2", "2 of 2"]
        manifest = json.loads((tmp_path / "run/checkpoint-2/manifest.json").read_text())
        assert "README.md" in manifest["files"]

    def test_grpo_too(self, tmp_path: Path) -> None:
        trainer = make_grpo(MISEGRPOTrainer, grpo_config(tmp_path / "run", save_strategy="steps", save_steps=6))
        trainer.train()
        trainer.save_model(str(tmp_path / "mine"))
        for folder in (tmp_path / "run", tmp_path / "run/checkpoint-6", tmp_path / "mine"):
            text = card_of(folder).text
            assert "MISE, on GRPO" in text and "arXiv:2604.11611" in text, folder
        found = rows(card_of(tmp_path / "mine").text)
        assert (found["episodes"], found["episodes of an update"], found["updates"]) == ("24", "8", "6 of 6")
        assert found["reward functions"] == "`letters`" and found["completions of a prompt"] == "`4`"
        assert set(card_of(tmp_path / "mine").data.tags) == {"trl", "grpo", "mise"}
        scope: dict[str, Any] = {}
        run_in(tmp_path / "mine", snippet(card_of(tmp_path / "mine").text), scope)

    @pytest.mark.skipif(not TRL_HAS_PPO, reason="this TRL has no PPOTrainer")
    def test_what_is_trls_own_gets_trls_card(self, tmp_path: Path) -> None:
        tokenizer = make_tokenizer()
        trainer = MISETrainer(
            make_ppo_config(tmp_path),
            tokenizer,
            make_policy(tokenizer),
            reward_model=make_classifier(tokenizer, seed=2),
            train_dataset=tasks().map(lambda row: {"input_ids": [7, 8]}),
            value_model=make_classifier(tokenizer),
            hindsight=False,
        )
        assert trainer.is_plain_ppo
        trainer.create_model_card("mine")
        assert "written by trl-mise" not in (tmp_path / "README.md").read_text(encoding="utf-8")

    def test_a_card_that_cannot_be_written_costs_no_run(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, **SAVE)
        trainer.args.calibration_every = Unspeakable()
        with pytest.warns(UserWarning, match="model card could not be written: .*"):
            trainer.save_model(str(tmp_path / "mine"))
        assert (tmp_path / "mine" / "model.safetensors").exists()


class TestWhat:
    def test_the_data_of_the_run(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path / "agent", eval_dataset=tasks(4), evaluator_view="masked")
        before = trainer.evaluate()
        trainer.train()
        after = trainer.evaluate()
        trainer.save_model()
        card = card_of(tmp_path / "agent")
        found = rows(card.text)
        first, last = (entry for entry in trainer.state.log_history if "env/success" in entry)
        assert found["success"] == f"{first['env/success']:.3f} | {last['env/success']:.3f}"
        assert found["return"] == f"{first['env/return']:.3f} | {last['env/return']:.3f}"
        evaluated = re.findall(r"^\| LetterEnv \| (\d) \| ([\d.]+) \| ([\d.]+) \| 4 \|$", card.text, re.MULTILINE)
        wanted = [(0, before), (2, after)]
        assert evaluated == [(str(n), f"{m['eval_success']:.3f}", f"{m['eval_return']:.3f}") for n, m in wanted]
        assert (found["environment"], found["tasks"], found["held-out tasks"]) == ("LetterEnv", "16", "4")
        assert (found["episodes"], found["episodes of an update"], found["seed"]) == ("16", "8", "42")
        assert found["option `evaluator_view`"] == "`masked`" and found["weight of the verdicts"] == "`0.1`"
        assert "option `calibration_target`" not in found
        assert "with all but the episode's outcome in view: good or bad?" in card.text
        auroc = next(e["hindsight/auroc"] for e in reversed(trainer.state.log_history) if "hindsight/auroc" in e)
        assert f"AUROC {auroc:.3f}" in card.text and "ECE" in card.text
        assert "2604.11611" in card.text and "trl 1." in card.text
        result = {r.metric_type: r for r in card.data.eval_results}["success"]
        assert result.metric_value == round(after["eval_success"], 4) and result.dataset_name == "LetterEnv"
        assert set(card.data.tags) == {"trl", "ppo", "mise"} and card.data.library_name == "transformers"
        assert card.data.license is None

    def test_without_evaluation_it_says_so(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path)
        trainer.train()
        trainer.save_model()
        card = card_of(tmp_path)
        assert card.data.eval_results is None
        assert card.text.count("not evaluated on held-out tasks") == 2

    def test_before_training(self, tmp_path: Path) -> None:
        make_trainer(tmp_path).save_model()
        assert "Nothing was logged" in card_of(tmp_path).text

    def test_several_evaluation_sets(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, eval_dataset={"easy": tasks(2), "hard": tasks(3)})
        trainer.evaluate()
        trainer.save_model()
        card = card_of(tmp_path)
        names = {result.dataset_name for result in card.data.eval_results}
        assert names == {"LetterEnv, easy", "LetterEnv, hard"}
        assert rows(card.text)["held-out tasks"] == "5"

    def test_an_adapter(self, tmp_path: Path) -> None:
        """PEFT writes a card of its own, and changes one that it finds: neither may be seen."""
        model = make_policy(make_tokenizer())
        model.config._name_or_path = "someone/base-7b"
        trainer = make_trainer(tmp_path, model=model, peft_config=LORA, **SAVE)
        trainer.train()
        trainer.save_model()
        trainer.save_model()
        for folder in (tmp_path, tmp_path / "checkpoint-2"):
            card = card_of(folder)
            trained = rows(card.text)["what was trained"]
            assert re.fullmatch(r"LoRA, rank 2, alpha 8, on q\\_proj: 64 of 3,8\d\d parameters", trained)
            assert card.data.library_name == "peft" and card.data.base_model == "someone/base-7b"
            assert card.data.base_model_relation == "adapter"
            assert "More Information Needed" not in card.text and "PEFT" not in card.text
            assert not is_edited(folder / "README.md")

    def test_folders_of_this_machine_are_not_named(self, tmp_path: Path) -> None:
        model = make_policy(make_tokenizer())
        model.config._name_or_path = str(tmp_path / "base")
        (tmp_path / "base").mkdir()
        trainer = make_trainer(tmp_path / "run", model=model, peft_config=LORA)
        trainer.save_model()
        assert str(tmp_path) not in (tmp_path / "run" / "README.md").read_text(encoding="utf-8")

    def test_without_hindsight_nothing_is_said_of_a_judge(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, hindsight=False)
        trainer.train()
        trainer.save_model()
        card = card_of(tmp_path)
        assert "with PPO by" in card.text and "were not judged" in card.text
        assert set(card.data.tags) == {"trl", "ppo"}
        for word in ("2604.11611", "AUROC", "erdicts"):
            assert word not in card.text, word

    def test_a_resumed_run(self, tmp_path: Path) -> None:
        """The log goes back to the first update; what the run's folder knows of interruptions and warnings is told."""
        options = {"total_episodes": 24, **SAVE}
        whole = make_trainer(tmp_path, **options)
        whole.train()
        first = next(entry for entry in whole.state.log_history if "env/success" in entry)
        resumed = make_trainer(tmp_path, **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        events = [
            {"update": 1, "kind": "health", "message": "collapsed verdicts: | <b>"},
            {"update": 2, "kind": "skipped", "message": "not this one"},
        ]
        lines = [*map(json.dumps, events), '{"update": 3, "kind": "hea']
        (tmp_path / EVENTS_NAME).write_text("\n".join(lines), encoding="utf-8")
        resumed.save_model()
        text = card_of(tmp_path).text
        found = rows(text)
        assert found["interrupted, and gone on with, after update"] == "2"
        assert (found["updates"], found["episodes"]) == ("3 of 3", "24")
        assert found["training episodes (sampled)"] == "up to update 1 | up to update 3"
        assert found["success"].startswith(f"{first['env/success']:.3f} |")
        assert "* update 1: collapsed verdicts: \\| \\<b\\>" in text and "not this one" not in text

    def test_a_record_that_cannot_be_read_is_left_out(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path)
        trainer.train()
        (tmp_path / RUN_NAME).write_text("[", encoding="utf-8")
        trainer.save_model()
        assert "interrupted" not in card_of(tmp_path).text

    def test_what_the_user_says(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path)
        trainer.create_model_card(model_name="mine", dataset_name="someone/tasks", tags="kitchen", license="mit")
        card = card_of(tmp_path)
        assert card.text.strip().startswith("# mine\n") and "on someone/tasks" in card.text
        assert card.data.datasets == "someone/tasks" and card.data.license == "mit"
        assert {"kitchen", "mise"} <= set(card.data.tags)
        trainer.create_model_card(tags=["a", "b"])
        assert {"a", "b"} <= set(card_of(tmp_path).data.tags)


class TestUse:
    def test_the_snippet_plays(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, system_prompt="say")
        trainer.save_model()
        code = snippet(card_of(tmp_path).text)
        assert "from trainer_fakes import LetterEnv" in code and "system_prompt='say'" in code
        assert re.fullmatch(r"(True|False) [\d.]+ 3\n", run_in(tmp_path, code, {}))

    def test_with_arguments(self, tmp_path: Path) -> None:
        """In a process of its own, where nothing is imported yet."""
        from fakes import byte_tokenizer, tiny_llama

        tokenizer = byte_tokenizer("chatml")
        trainer = make_trainer(
            tmp_path,
            tokenizer=tokenizer,
            model=tiny_llama(len(tokenizer), max_position_embeddings=4096),
            environment_factory=environment_spec("kitchen").factory(stations=3),
            train_dataset=make_dataset(make_tasks("train", 16)),
            max_episode_tokens=2048,
        )
        trainer.save_model()
        text = card_of(tmp_path).text
        assert rows(text)["environment"] == "kitchen (KitchenEnv), `stations=3`"
        assert "agent.play(functools.partial(KitchenEnv, stations=3), tasks, max_steps=4)" in text
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", snippet(text)], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert re.fullmatch(r"False 0.0 \d\n", done.stdout)

    def test_an_environment_that_nobody_else_has(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, environment_factory=lambda: LetterEnv())
        trainer.save_model()
        text = card_of(tmp_path).text
        assert rows(text)["environment"] == "a function of the training script"
        assert "ModelAgent" in text and "AutoModelForCausalLM" in snippet(text)
        run_in(tmp_path, snippet(text), {})

    def test_names_of_factories(self) -> None:
        import functools

        known = EnvironmentFacts.of(KitchenEnv)
        assert (known.name, known.source) == ("kitchen (KitchenEnv)", "trl_mise.envs.kitchen:KitchenEnv")
        twice = functools.partial(functools.partial(KitchenEnv, stations=2, values=3), stations=4)
        assert EnvironmentFacts.of(twice).kwargs == {"stations": 4, "values": 3}
        wrapper = EnvironmentFacts.of(functools.partial(print, KitchenEnv))
        assert (wrapper.name, wrapper.can_be_made) == ("print of KitchenEnv", False)
        assert not EnvironmentFacts.of(functools.partial(KitchenEnv, stations=object())).can_be_made
        assert not EnvironmentFacts.of(LetterEnv().reset).name.startswith("<")
        assert EnvironmentFacts.of({"a": KitchenEnv, "b": LetterEnv}).name == "kitchen (KitchenEnv), LetterEnv"


class TestHostile:
    NAME = "Env`|\n# [x](http://evil.test)<script>alert(1)</script>\n---\n"

    def test_names_and_texts_stay_texts(self, tmp_path: Path) -> None:
        hostile = type("Hostile", (LetterEnv,), {"__qualname__": self.NAME})
        trainer = make_trainer(
            tmp_path / "run",
            environment_factory=hostile,
            system_prompt=f"```\n{self.NAME}",
            hindsight_prompt="judge {{ step }} <img src=x onerror=y> | ` ",
            eval_dataset={self.NAME: tasks(2)},
            train_dataset=make_dataset([{"seed": i, "text": f'"""\n```\n{self.NAME}'} for i in range(16)]),
        )
        trainer.evaluate()
        trainer.train()
        trainer.create_model_card(model_name=self.NAME, dataset_name=self.NAME, tags=[self.NAME])
        content = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
        card = ModelCard(content)  # its metadata can be read
        assert card.data.model_name.startswith("Env`| # [x]")
        assert not is_edited(tmp_path / "run" / "README.md")
        page = RENDERER.render(card.text).rpartition("<!--")[0]
        assert not re.findall(r"<(?!/?(h1|h2|p|table|thead|tbody|tr|th|td|ul|li|code|pre|a)\b)[^>]*>", seen(page))
        assert set(re.findall(r'href="(.*?)"', page)) == {
            "https://huggingface.co/papers/2604.11611",
            "https://github.com/huggingface/trl",
        }
        assert page.count("<h1>") == 1 and page.count("<h2>") == len(re.findall("^## ", card.text, re.MULTILINE)) == 6
        assert page.count("<table>") == 3
        compile(snippet(card.text), "card", "exec")

    def test_a_repository_name_that_is_none_is_not_linked(self, tmp_path: Path) -> None:
        model = make_policy(make_tokenizer())
        model.config._name_or_path = "a/b](http://evil.test)"
        trainer = make_trainer(tmp_path, model=model)
        trainer.save_model()
        assert "evil.test" not in card_of(tmp_path).content and card_of(tmp_path).data.base_model is None


class TestKeeping:
    def test_an_edited_card_is_kept(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, **SAVE)
        trainer.save_model()
        path = tmp_path / "README.md"
        mine = path.read_text(encoding="utf-8").replace("## Limits", "## Limits\n\nIt cannot count.")
        path.write_text(mine, encoding="utf-8")
        trainer.train()
        trainer.save_model()
        trainer.create_model_card(model_name="other")
        assert path.read_text(encoding="utf-8") == mine
        # It is the run's card, and goes with its checkpoints.
        assert (tmp_path / "checkpoint-2" / "README.md").read_text(encoding="utf-8") == mine
        trainer.save_model(str(tmp_path / "copy"))
        assert (tmp_path / "copy" / "README.md").read_text(encoding="utf-8") == mine

    @pytest.mark.parametrize("content", [b"# Mine\n", b"", b"\xff\xfe", b"---\ntags: [a]\n---\n# Mine\n"])
    def test_a_card_of_somebody_is_kept_by_peft_too(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "README.md").write_bytes(content)
        trainer = make_trainer(tmp_path, peft_config=None if b"\xff" in content else LORA)
        trainer.save_model()
        assert (tmp_path / "README.md").read_bytes() == content

    def test_an_untouched_card_of_ours_is_renewed(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path)
        trainer.save_model()
        trainer.train()
        trainer.save_model()
        assert rows(card_of(tmp_path).text)["updates"] == "2 of 2"

    def test_what_counts_as_edited(self, tmp_path: Path) -> None:
        path = tmp_path / "README.md"
        assert not is_edited(path)
        write_card(sealed("# ours\n"), tmp_path)
        assert not is_edited(path)
        for edited in (
            "# ours\n\nand mine\n",
            sealed("# ours\n") + "more",
            sealed("# ours\n").replace("ours", "hers"),
        ):
            path.write_text(edited, encoding="utf-8")
            assert is_edited(path), edited
            write_card(sealed("# new\n"), tmp_path)
            assert path.read_text(encoding="utf-8") == edited
        assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md"]


def make_dataset(rows_: list[dict[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(rows_)


def seen(page: str) -> str:
    """A page without what stands in its code blocks."""
    return re.sub(r"<code.*?</code>", "", page, flags=re.DOTALL)


def run_in(folder: Path, code: str, scope: dict[str, Any]) -> str:
    """Runs a card's snippet where the model is; gives what it printed."""
    import contextlib
    import io

    printed = io.StringIO()
    with contextlib.chdir(folder) if hasattr(contextlib, "chdir") else _chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "README.md", "exec"), scope)
    return printed.getvalue()


def _chdir(folder: Path) -> Any:
    """`contextlib.chdir` of Python 3.11."""
    import contextlib
    import os

    @contextlib.contextmanager
    def change() -> Any:
        before = os.getcwd()
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)

    return change()
