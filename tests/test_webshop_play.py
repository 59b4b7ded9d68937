"""`python -m trl_mise.envs.webshop --play`, by piped input; and that the environment needs no torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trl_mise.envs.webshop import SMALL_SHOP, WebShopEnv
from trl_mise.envs.webshop_policies import expert_action

ROOT = Path(__file__).parent.parent
OFFICIAL = ROOT / "tests" / "data" / "webshop" / "official"


def run(*arguments, typed="", cache=None):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "always", "PYTHONIOENCODING": "utf-8"}
    if cache is not None:
        env["XDG_CACHE_HOME"] = str(cache)
    command = [sys.executable, "-m", "trl_mise.envs.webshop", *arguments]
    return subprocess.run(
        command, input=typed, capture_output=True, text=True, encoding="utf-8", env=env, cwd=ROOT, timeout=120
    )


def test_a_purchase():
    env = WebShopEnv(split="test", **SMALL_SHOP)
    env.reset(options={"goal": 5})
    actions, pages = [], []
    while not actions or actions[-1] != "click[buy now]":
        actions.append(expert_action(env))
        pages.append(env.step(actions[-1])[0])
    arguments = ("--play", "--catalogue", "small", "--split", "test", "--goal", "5", "--observation_mode", "text")
    done = run(*arguments, typed="\n".join(["?", "click[nothing]", *actions, "never read"]))
    assert (done.returncode, done.stderr) == (0, "")
    assert all(page in done.stdout for page in pages)
    assert f"search[{env.goal.instruction}]" in done.stdout  # the answer to "?"
    assert "that does nothing here" in done.stdout
    assert done.stdout.endswith("reward 1.000, won\n")


@pytest.mark.parametrize("typed", ["", "search[lamp]\n", "q\n", "search[lamp]\nquit\nsearch[lamp]\n"])
def test_the_end_of_the_input_ends_it(typed):
    done = run("--play", "--catalogue", "small", typed=typed)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.endswith("bye\n")
    assert "[button] Search [button_]" in done.stdout


def test_without_play_it_explains_itself():
    done = run()
    assert done.returncode == 0 and "--observation_mode" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data_dir", "nowhere"), "is not a folder"),
        (("--goal", "100000"), "must be an int from 0"),
        (("--split", "dev"), "the generated shop has no dev split"),
    ],
)
def test_errors_are_said_in_a_line(arguments, message):
    done = run("--play", *arguments)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and message in done.stderr
    assert "Traceback" not in done.stderr


def test_official_files(tmp_path):
    pytest.importorskip("nltk", reason='the official files need pip install "trl-mise[webshop]"')
    typed = "search[bedside table lamp]\nclick[B0LAMP0001]\nclick[walnut]\n?\n"
    done = run("--play", "--data_dir", str(OFFICIAL), "--split", "dev", "--goal", "0", typed=typed, cache=tmp_path)
    assert done.returncode == 0 and "You have clicked walnut." in done.stdout and "click[large]" in done.stdout
    assert len(list((tmp_path / "trl-mise" / "webshop").iterdir())) == 1


def test_no_torch():
    code = (
        "import sys; from trl_mise.envs.webshop import WebShopEnv; WebShopEnv().reset(seed=0);"
        "import trl_mise.envs.webshop_official, trl_mise.envs.webshop_manifest;"
        "print({'torch', 'transformers', 'trl', 'nltk', 'spacy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stdout == "set()\n", done.stdout + done.stderr
