"""A plain TRL PPO script, and the one class that changes.

    python examples/swap_one_class.py --trainer ppo  --output_dir runs/swap-ppo      # PPOTrainer
    python examples/swap_one_class.py --trainer mise --output_dir runs/swap-mise     # MISETrainer, same arguments

No environment: prompts, one response each, a reward model that scores it. With `MISETrainer` the response is cut into
steps at `step_delimiter`, the score is their sparse return, and the policy judges every step. `MISEConfig` is a
`PPOConfig` with more options, which PPOTrainer does not look at; `MISETrainer` takes a plain `PPOConfig` as well.
`--trainer mise --hindsight_coef 0` gives the very numbers of `--trainer ppo`.

Everything is tiny and made here, so that it runs on a CPU in seconds. Prompts ask for a list of things ("say fish :");
the reward model wants "red ; red ; red ; red ;" whatever was asked, and pays the share of words in their right place.
Success is a score of at least 0.75. The policy starts from random weights, so its verdicts know nothing until
calibration has taught them: this shows that the swap works, not that it wins (see webshop.py and kitchen.py for that).
"""

import os
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from _common import Stopwatch, write_summary
from datasets import Dataset
from transformers import LlamaConfig, LlamaForSequenceClassification, set_seed
from transformers.modeling_outputs import BaseModelOutput
from trl import TrlParser

from trl_mise import MISEConfig, MISETrainer
from trl_mise.tiny import build_policy, build_tokenizer

try:
    from trl.experimental.ppo import PPOTrainer
except ModuleNotFoundError:  # TRL 1.13 removed it
    PPOTrainer = None

TRAINERS = {"ppo": PPOTrainer, "mise": MISETrainer}
THINGS = ("fish", "books", "tea", "coats", "chairs", "lamps", "bread", "shoes")
WANTED, DELIMITER = "red", ";"
SUCCESS = 0.75
DEFAULTS = {
    "output_dir": "runs/swap",
    "learning_rate": 1.5e-3,
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 64,
    "total_episodes": 64 * 32,
    "num_ppo_epochs": 4,
    "num_mini_batches": 2,  # PPOTrainer takes one optimizer step per epoch all the same, MISETrainer two
    "vf_coef": 0.5,
    "response_length": 8,
    "temperature": 1.0,
    "kl_coef": 0.01,
    "step_delimiter": DELIMITER,
    "hindsight_prompt": "judge {{ action }}",
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "num_sample_generations": 0,
    "report_to": "none",
    "use_cpu": True,
}


@dataclass
class SwapArguments:
    """The experiment."""

    trainer: Literal["ppo", "mise"] = field(default="mise", metadata={"help": "PPOTrainer or MISETrainer."})
    eval_episodes: int = field(default=256, metadata={"help": "Prompts answered before and after training."})


class ListReward(torch.nn.Module):
    """Stands where your reward model stands; has what TRL asks of one: a backbone with hidden states, and `score`."""

    base_model_prefix = "backbone"

    def __init__(self, tokenizer: Any, response_length: int) -> None:
        super().__init__()
        ids = tokenizer.convert_tokens_to_ids([":", WANTED, DELIMITER])
        self.backbone = _RightWords(*ids, response_length)
        self.score = torch.nn.Identity()


class _RightWords(torch.nn.Module):
    """Share of the response's words that are in their right place, up to each position."""

    def __init__(self, colon_id: int, wanted_id: int, delimiter_id: int, response_length: int) -> None:
        super().__init__()
        self.colon_id, self.wanted_id, self.delimiter_id = colon_id, wanted_id, delimiter_id
        self.response_length = response_length

    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> BaseModelOutput:
        colon = (input_ids == self.colon_id).int().argmax(dim=1, keepdim=True)  # (B, 1), where the prompt ends
        place = torch.arange(input_ids.shape[1], device=input_ids.device) - colon - 1  # (B, L), from 0 in the response
        expected = torch.where(place % 2 == 0, self.wanted_id, self.delimiter_id)
        right = (input_ids == expected) & (place >= 0)
        hidden = right.float().cumsum(dim=1)[..., None] / self.response_length  # (B, L, 1)
        return BaseModelOutput(last_hidden_state=hidden, hidden_states=(hidden,))


@torch.no_grad()
def sampled_scores(policy: Any, reward: ListReward, prompts: list[list[int]], length: int) -> torch.Tensor:
    """`(N,)` scores of one sampled response to each prompt."""
    input_ids = torch.tensor(prompts, device=policy.device)
    answered = policy.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        do_sample=True,
        top_k=0,
        min_new_tokens=length,
        max_new_tokens=length,
    )
    return reward.score(reward.backbone(answered).last_hidden_state)[:, -1, 0]


def plot_scores(log_history: list[dict[str, Any]], output_dir: str, title: str) -> None:
    """Writes `<output_dir>/learning_curve.png`: mean score of the training responses."""
    try:
        import matplotlib
    except ImportError:
        print('learning_curve.png needs matplotlib: pip install "trl-mise[examples]"')
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    points = [(e["episode"], e["objective/scores"]) for e in log_history if "objective/scores" in e]
    figure, axes = plt.subplots(figsize=(5, 3.6))
    axes.plot(*zip(*points, strict=True), color="#1f5a99")
    axes.set(title=title, xlabel="episodes", ylabel="mean score", ylim=(-0.02, 1.02))
    figure.tight_layout()
    figure.savefig(os.path.join(output_dir, "learning_curve.png"), dpi=110)
    plt.close(figure)


def main() -> None:
    watch = Stopwatch()
    torch.set_num_threads(1)  # as in the other examples: such small matrices are slower with two
    parser = TrlParser((SwapArguments, MISEConfig))
    parser.set_defaults_with_config(**DEFAULTS)
    swap, args = parser.parse_args_and_config()
    if TRAINERS[swap.trainer] is None:
        raise SystemExit('--trainer ppo: this TRL has no PPOTrainer; use --trainer mise, or install "trl<1.13"')
    set_seed(args.seed)  # numpy too: PPOTrainer shuffles its mini-batches with the global state
    tokenizer = build_tokenizer(["say", *THINGS, WANTED, DELIMITER, "judge", "good", "bad"])
    policy = build_policy(tokenizer, seed=args.seed)
    value_model = LlamaForSequenceClassification(LlamaConfig(**{**policy.config.to_dict(), "num_labels": 1}))
    reward_model = ListReward(tokenizer, args.response_length)
    prompts = [tokenizer(f"say {thing} :")["input_ids"] for thing in THINGS]
    trainer = TRAINERS[swap.trainer](  # PPOTrainer( or MISETrainer(: nothing else differs
        args=args,
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=reward_model,
        value_model=value_model,
        train_dataset=Dataset.from_dict({"input_ids": prompts * 64}),
        eval_dataset=Dataset.from_dict({"input_ids": prompts}),
    )
    asked = (prompts * swap.eval_episodes)[: swap.eval_episodes]
    before = sampled_scores(policy, reward_model, asked, args.response_length)
    trainer.train()
    after = sampled_scores(policy, reward_model, asked, args.response_length)
    write_summary(
        args.output_dir,
        trainer=swap.trainer,
        score_before=before.mean().item(),
        score_after=after.mean().item(),
        success_threshold=SUCCESS,
        success_before=(before >= SUCCESS).float().mean().item(),
        success_after=(after >= SUCCESS).float().mean().item(),
        eval_episodes=swap.eval_episodes,
        train_episodes=trainer.state.episode,
        wall_s=watch.seconds,
        hindsight_coef=args.hindsight_coef if swap.trainer == "mise" else 0.0,
        seed=args.seed,
    )
    plot_scores(trainer.state.log_history, args.output_dir, f"swap_one_class.py --trainer {swap.trainer}")


if __name__ == "__main__":
    main()
