"""Pushing through what transformers' Trainer brings, to a local stand-in for the hub: what arrives, and what fails.

The client's upload over HTTP and LFS; with Xet, which the hub also speaks, it was not tested.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hub_server import TOKEN, HubServer, Repository, hub

ROOT = Path(__file__).parents[1]
MODEL = {"config.json", "generation_config.json", "model.safetensors", "value_head.safetensors"}
ADAPTER = {"adapter_config.json", "adapter_model.safetensors", "value_head.safetensors"}
TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
ALWAYS = {"README.md", "training_args.bin"} | TOKENIZER
RECORD = {"run.json", "metrics.jsonl", "events.jsonl", "trajectories.jsonl"}
EVALUATIONS = {"evaluations.jsonl"}
"""Arrive at the end, when nobody writes to them any more."""


class Pushed(NamedTuple):
    """What the process said, by scenario, and the server."""

    said: dict[str, Any]
    server: HubServer

    def repository(self, name: str) -> Repository:
        return self.server.repositories[f"tester/{name}"]

    def commits(self, name: str) -> dict[str, set[str]]:
        return {commit.message: set(commit.files) for commit in self.repository(name).commits}


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pushed]:
    folder = tmp_path_factory.mktemp("pushes")
    with hub() as server:
        server.refuse(r"/api/models/tester/refused[\w-]*/commit/", 403)
        server.refuse(r"/api/models/tester/closed/", 403)
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, **server.environment(), "HF_HOME": str(folder / "home"), "PYTHONPATH": path}
        environment.pop("TRANSFORMERS_OFFLINE", None)
        command = [sys.executable, "-W", "ignore", str(ROOT / "tests" / "pushes.py"), str(folder)]
        create = server.create

        def refuse_closed(body: bytes) -> tuple[Any, ...]:
            if json.loads(body)["name"] == "closed":
                return 403, {"error": "you may not create models here"}
            return create(body)

        server.create = refuse_closed  # type: ignore[method-assign]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
        lines = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        yield Pushed(dict(json.loads(line) for line in lines), server)


def test_the_hub_would_have_taken_everything(pushed: Pushed) -> None:
    """Checksums and sizes are those that were announced, metadata of cards can be read."""
    assert pushed.server.faults == []


def test_a_model_arrives_whole_and_can_be_used(pushed: Pushed) -> None:
    commits, said = pushed.commits("whole"), pushed.said["whole"]
    assert list(commits) == ["Model save", "again"], "hub_strategy='end': nothing before save_model"
    assert commits["Model save"] == MODEL | ALWAYS | RECORD | EVALUATIONS
    assert pushed.repository("whole").private
    assert (said["difference"], said["same template"], said["steps"]) == (0.0, True, 3)
    assert said["url"].startswith(pushed.server.url)


def test_no_file_holds_the_token(pushed: Pushed) -> None:
    """transformers would push it within the training arguments."""
    files = pushed.repository("whole").files
    assert [name for name, data in files.items() if TOKEN.encode() in data] == []
    assert b"whole" in files["training_args.bin"]


def test_the_card_of_a_pushed_model_names_its_repository(pushed: Pushed) -> None:
    card = pushed.repository("whole").files["README.md"].decode()
    assert "# whole\n" in card and "name = 'tester/whole'\n" in card
    assert "| updates | 2 of 2 |" in card and "- mise\n" in card


def test_every_checkpoint_of_an_adapter(pushed: Pushed) -> None:
    commits = pushed.commits("adapter")
    for step in (1, 2, 3):
        assert commits[f"Training in progress, step {step}"] == ADAPTER | ALWAYS
        checkpoint = commits[f"Training in progress, step {step}, checkpoint"]
        assert {path.split("/")[0] for path in checkpoint} == {"last-checkpoint"}
        assert {"last-checkpoint/manifest.json", "last-checkpoint/optimizer.pt"} <= checkpoint


def test_a_checkpoint_that_comes_back_from_the_hub_goes_on_to_the_last_bit(pushed: Pushed) -> None:
    assert pushed.said["adapter"] == {"faults": [], "step": 3, "difference": 0.0, "trained": 4}


def test_logs_that_grow_do_not_spoil_an_upload(pushed: Pushed) -> None:
    """While the first upload was held, five more updates were logged; none of that is in it."""
    said, commits = pushed.said["growing"], pushed.commits("growing")
    assert said["was uploading"] and said["log"] > pushed.server.lfs_bytes
    assert commits["Training in progress, step 1"] == MODEL | ALWAYS
    card = pushed.repository("growing").commits[0].files["README.md"].decode()
    assert "| updates | 1 of 6 |" in card


def test_a_checkpoint_is_not_deleted_while_it_is_uploaded(pushed: Pushed) -> None:
    said = pushed.said["limited"]
    assert said["seen"][1] == ["checkpoint-1", "checkpoint-2"] and said["left"] == ["checkpoint-2"]
    commits = pushed.commits("limited")
    assert "last-checkpoint/optimizer.pt" in commits["Training in progress, step 1, checkpoint"]


def test_what_is_half_written_stays_here_and_a_card_of_a_person_goes_there(pushed: Pushed) -> None:
    files = pushed.repository("leftovers").files
    assert not [name for name in files if "checkpoint-9" in name or name.startswith("checkpoint-")]
    assert set(files) == MODEL | ALWAYS | RECORD | EVALUATIONS
    assert files["README.md"].decode() == "---\ntags: [mine]\n---\n# By hand\n"


def test_a_refused_push_is_told_and_costs_nothing(pushed: Pushed) -> None:
    said = pushed.said["refused"]
    assert said["raised"] == "None" and said["updates"] == 2 and said["faults"] == [[], []]
    (told,) = said["warnings"]  # the one push that was not skipped, at the end of the training at the latest
    assert "push to tester/refused failed" in told and "403" in told
    name, message, is_push_error = said["error"]
    assert name == "PushError" and is_push_error
    for part in ("tester/refused could not be pushed", "403", "Nothing is lost", "refused", "push_to_hub() again"):
        assert part in message, part
    assert set(said["saved"]) >= MODEL | ALWAYS | RECORD
    assert pushed.repository("refused").commits == []


def test_a_repository_that_cannot_be_made(pushed: Pushed) -> None:
    said = pushed.said["closed"]
    assert "403" in said["first"] and "may not create models" in said["first"]
    assert said["second"][0] == "PushError" and "403" in said["second"][1]
    assert said["difference"] == 0.0, "the model is saved all the same"


def test_grpo(pushed: Pushed) -> None:
    said, commits = pushed.said["grpo"], pushed.commits("grpo")
    assert said["difference"] == 0.0
    model = MODEL - {"value_head.safetensors"} | ALWAYS
    for step in (2, 4, 6):
        assert commits[f"Training in progress, step {step}"] == model
        checkpoint = commits[f"Training in progress, step {step}, checkpoint"]
        assert {f"last-checkpoint/{name}" for name in ("hindsight_state.json", "calibration.json")} <= checkpoint
    assert commits["End of training"] == model | RECORD
    card = pushed.repository("grpo").files["README.md"].decode()
    assert "MISE, on GRPO" in card and "tester/words" in card
    assert len(said["warnings"]) == 3 and said["raised"] == "None" and said["steps"] == 6
