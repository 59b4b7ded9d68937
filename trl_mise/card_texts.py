"""The sentences and the code of a model card."""

import textwrap
from typing import Any

from .card_facts import CardFacts
from .markdown import escape

HOME = "https://github.com/huggingface/trl"
PAPER = {
    "title": "Mutual Information Self-Evaluation",
    "id": "2604.11611",
    # docstyle-ignore
    "citation": textwrap.dedent("""\
        @article{mise2026,
            title        = {{Mutual Information Self-Evaluation}},
            year         = 2026,
            eprint       = {arXiv:2604.11611}
        }"""),
}
TRL_CITATION = textwrap.dedent("""\
    @software{trl,
        title  = {{TRL: Transformers Reinforcement Learning}},
        author = {von Werra, Leandro and Belkada, Younes and Tunstall, Lewis and Beeching, Edward and Thrush, Tristan
                  and Lambert, Nathan and Huang, Shengyi and Rasul, Kashif and Gallou{\\'e}dec, Quentin},
        url    = {https://github.com/huggingface/trl},
        year   = 2020
    }""")
OWN_CITATION = textwrap.dedent("""\
    @software{trl_mise,
        title   = {{trl-mise: calibrated hindsight self-evaluation for training LLM agents with TRL}},
        author  = {{trl-mise maintainers}},
        version = {VERSION},
        year    = 2026
    }""")


def what_it_is(facts: CardFacts) -> str:
    """One paragraph."""
    base = (
        "A language model"
        if facts.base_model is None
        else f"[{escape(facts.base_model)}](https://huggingface.co/{facts.base_model})"
    )
    adapter = "" if facts.adapter is None else ", as an adapter,"
    where = "on prompts" if facts.environment is None else f"in the text environment {escape(facts.environment.name)}"
    if facts.dataset_name is not None:
        where += f", on {escape(facts.dataset_name)}"
    return f"{base}, trained{adapter} {where} with {_method(facts)} by trl-mise, a plugin of [TRL]({HOME})."


def _method(facts: CardFacts) -> str:
    name = {"MISE": "MISE, on PPO", "MISE-GRPO": "MISE, on GRPO"}.get(facts.method, "PPO")
    paper = facts.paper.get("id")
    return (
        f"{name} ([arXiv {paper}](https://huggingface.co/papers/{paper}))" if paper and facts.uses_hindsight else name
    )


def how_it_was_trained(facts: CardFacts) -> str:
    """The method in a few sentences, as it was set."""
    learner = "GRPO" if facts.is_grpo else "PPO"
    plays = (
        "It answered prompts; its answers were cut into steps, and the reward of an answer came at its end."
        if facts.environment is None
        else "It played episodes: it read observations and wrote actions, and the reward came from the environment."
    )
    if not facts.uses_hindsight:
        return f"{plays} {learner} made rewarded episodes more likely. Its steps were not judged."
    return " ".join([plays, *_hindsight(facts, learner)])


def _hindsight(facts: CardFacts, learner: str) -> list[str]:
    o = facts.options
    words = " or ".join(escape(word, 40) for word in o.hindsight_verdicts)
    judge = "a frozen copy of it" if o.evaluator_model == "reference" else "the model itself"
    view = {
        "full": "with the whole episode in view",
        "masked": "with all but the episode's outcome in view",
        "prefix": "with nothing in view that came after the step's result",
    }[o.evaluator_view]
    score = {
        "expected": "The probabilities of its answers gave each step a score",
        "sampled": "A sampled answer gave each step a score",
        "generate": "It wrote a reason and a verdict, which gave each step a score",
    }[o.verdict_mode]
    place = "advantage" if o.hindsight_placement == "advantage" else "reward"
    added = f"which was added to the step's {place} with weight {o.hindsight_coef:g}"
    gated = ", as far as praise and the environment's returns agreed" if o.hindsight_gate == "agreement" else ""
    calibrated = {
        "sum": "After every update the verdicts of an episode, taken together, were regressed toward its return.",
        "step": "After every update the verdict on every step was regressed toward the episode's return.",
        "none": "The verdicts were not calibrated.",
    }[o.calibration_target]
    return [
        f"After the end {judge} was asked about every step, {view}: {words}?",
        f"{score}, {added}{gated}; {learner} did the rest.",
        calibrated,
    ]


# Code


def how_to_use(facts: CardFacts) -> str:
    """A snippet that runs as it is, in this folder or with the name on the hub."""
    if facts.environment is not None and facts.environment.can_be_made and not facts.is_grpo and facts.task:
        return f"```python\n{_agent(facts)}\n```\n\nActions are greedy; `temperature=...` samples them."
    told = (
        ""
        if facts.environment is None or facts.is_grpo
        else "One answer; `trl_mise.model_agent.ModelAgent` plays whole episodes of an environment.\n\n"
    )
    return f"{told}```python\n{_generate(facts)}\n```"


def _source(facts: CardFacts) -> str:
    return repr(facts.repository or ".") + ("" if facts.repository else "  # this folder, or its name on the hub")


def _agent(facts: CardFacts) -> str:
    assert facts.environment is not None and facts.environment.source is not None
    module, _, name = facts.environment.source.partition(":")
    kwargs = "".join(f", {key}={value!r}" for key, value in facts.environment.kwargs.items())
    factory = f"functools.partial({name}{kwargs})" if kwargs else name
    options = {
        "system_prompt": facts.options.system_prompt,
        "max_new_tokens": facts.options.max_new_tokens,
        "max_episode_tokens": facts.options.max_episode_tokens,
        "history_window": facts.options.history_window,
    }
    given = "".join(f", {key}={value!r}" for key, value in options.items() if value is not None)
    return "\n".join(
        [
            *(["import functools", ""] if kwargs else []),
            f"from {module} import {name.partition('.')[0]}",
            "from trl_mise.model_agent import ModelAgent",
            "",
            f"name = {_source(facts)}",
            f"agent = ModelAgent.from_pretrained(name{given})",
            f"tasks = [{dict(facts.task)!r}]",
            f"for episode in agent.play({factory}, tasks, max_steps={facts.options.max_turns}):",
            "    print(episode.success, episode.episode_return, episode.steps)",
        ]
    )


def _generate(facts: CardFacts) -> str:
    system: Any = getattr(facts.options, "system_prompt", None)
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": "Hello"})
    tokens = getattr(facts.options, "max_completion_length", None) or getattr(facts.options, "max_new_tokens", None)
    return "\n".join(
        [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f"name = {_source(facts)}",
            "tokenizer = AutoTokenizer.from_pretrained(name)",
            "model = AutoModelForCausalLM.from_pretrained(name)",
            f"messages = {messages!r}",
            "if tokenizer.chat_template:",
            "    prompt = tokenizer.apply_chat_template(",
            '        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
            "    )",
            "else:",
            '    prompt = tokenizer(messages[-1]["content"], return_tensors="pt")',
            f"output = model.generate(**prompt, max_new_tokens={tokens or 64})",
            'print(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))',
        ]
    )


# Limits, citation


def limits(facts: CardFacts) -> str:
    """What the figures do not say."""
    said = ["Figures of training episodes are of sampled actions on tasks that it was trained on."]
    if not facts.evaluations():
        said.append("It was not evaluated on held-out tasks, and nothing is known of other tasks than its own.")
    else:
        said.append("Evaluations are of one training with one seed; nothing is known of other tasks than these.")
    if facts.uses_hindsight:
        said.append(
            "Its verdicts on its own steps were trained for these tasks only; they are no safeguard, and not meant to "
            "be asked for in use."
        )
    said.append("The limits and the licence of the model that it was trained from are its own too.")
    return "\n".join(f"* {sentence}" for sentence in said)


def cite(facts: CardFacts) -> str:
    """BibTeX of the method, of TRL, and of this package."""
    version = facts.versions.get("trl-mise", "")
    own = OWN_CITATION.replace("VERSION", version if version[:1].isdigit() else "")
    method = [facts.paper["citation"]] if facts.uses_hindsight and "citation" in facts.paper else []
    return "```bibtex\n" + "\n\n".join([*method, TRL_CITATION, own]) + "\n```"
