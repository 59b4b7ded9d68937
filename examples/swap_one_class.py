"""A plain TRL PPO script, and the one class that changes.

    python examples/swap_one_class.py --trainer ppo  --output_dir runs/swap-ppo
    python examples/swap_one_class.py --trainer mise --output_dir runs/swap-mise

No environment: a response is cut into steps, the reward model's score is its sparse return, and with `MISETrainer` the
policy also judges every step. Everything is tiny and made here, so that it runs anywhere in a minute: prompts name a
colour, the "reward model" pays the share of words that repeat it. Success = a score above 0.5.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from _common import Stopwatch, write_summary
from datasets import Dataset
from transformers import LlamaConfig, LlamaForSequenceClassification
from trl import TrlParser
from trl.experimental.ppo import PPOConfig, PPOTrainer

from trl_mise import MISETrainer
from trl_mise.tiny import build_policy, build_tokenizer

COLOURS = ("red", "green", "blue", "white")
TRAINERS = {"ppo": PPOTrainer, "mise": MISETrainer}  # the swap


@dataclass
class SwapArguments:
    """The experiment."""

    trainer: Literal["ppo", "mise"] = field(default="mise", metadata={"help": "PPOTrainer or MISETrainer."})
    eval_episodes: int = field(default=128, metadata={"help": "Sampled responses before and after."})


class _Words(torch.nn.Module):
    """Stands in for a reward model's backbone: one-hot words, summed up to each position."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size

    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        counts = torch.nn.functional.one_hot(input_ids, self.vocab_size).float().cumsum(1)
        first = torch.nn.functional.one_hot(input_ids[:, 1:2], self.vocab_size).float().expand_as(counts)
        hidden = torch.cat([counts, first], dim=-1)
        return _Output(last_hidden_state=hidden, hidden_states=(hidden,))


class _Output(dict):
    """As a model output: fields by name, by key and by position."""

    def __getattr__(self, name: str) -> Any:
        return self[name]

    def __getitem__(self, key: Any) -> Any:
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)


class RepeatReward(torch.nn.Module):
    """Pays the share of the response's words that repeat the colour named by the prompt ("say red : ...")."""

    base_model_prefix = "words"

    def __init__(self, vocab_size: int, length: int) -> None:
        super().__init__()
        self.words = _Words(vocab_size)
        self.length = length

    def score(self, hidden: torch.Tensor) -> torch.Tensor:
        counts, first = hidden.chunk(2, dim=-1)
        return (((counts - first) * first).sum(-1, keepdim=True) / self.length).clamp(min=0)


def sampled_scores(trainer: Any, reward: RepeatReward, prompts: list[list[int]], length: int) -> torch.Tensor:
    policy = trainer.accelerator.unwrap_model(trainer.model).policy
    ids = torch.tensor(prompts)
    out = policy.generate(ids, max_new_tokens=length, min_new_tokens=length, do_sample=True, top_k=0)
    return reward.score(reward.words(out).last_hidden_state)[:, -1, 0]


def main() -> None:
    watch = Stopwatch()
    torch.set_num_threads(1)
    parser = TrlParser((SwapArguments, PPOConfig))
    parser.set_defaults_with_config(
        learning_rate=3e-3,
        per_device_train_batch_size=64,
        total_episodes=64 * 40,
        response_length=8,
        temperature=1.0,
        kl_coef=0.01,
        num_ppo_epochs=2,
        num_sample_generations=0,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
    )
    swap, args = parser.parse_args_and_config()
    torch.manual_seed(args.seed)
    question = "In hindsight, was the action of step a good or bad choice for task? Answer with one word or".split()
    tokenizer = build_tokenizer(["say", *COLOURS, *dict.fromkeys(w.strip(",.?") for w in question)])
    policy = build_policy(tokenizer, seed=args.seed)
    value = LlamaForSequenceClassification(LlamaConfig(**{**policy.config.to_dict(), "num_labels": 1}))
    reward = RepeatReward(len(tokenizer), args.response_length)
    prompts = [tokenizer(f"say {COLOURS[i % 4]} :", add_special_tokens=False)["input_ids"] for i in range(512)]
    trainer = TRAINERS[swap.trainer](
        args=args,
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
        eval_dataset=Dataset.from_dict({"input_ids": prompts[:8]}),
    )
    before = sampled_scores(trainer, reward, prompts[: swap.eval_episodes], args.response_length)
    trainer.train()
    after = sampled_scores(trainer, reward, prompts[: swap.eval_episodes], args.response_length)
    write_summary(
        args.output_dir,
        trainer=swap.trainer,
        score_before=round(before.mean().item(), 4),
        score_after=round(after.mean().item(), 4),
        success_before=(before > 0.5).float().mean().item(),
        success_after=(after > 0.5).float().mean().item(),
        eval_episodes=swap.eval_episodes,
        train_episodes=trainer.state.episode,
        wall_s=watch.seconds,
        hindsight_coef=getattr(trainer.args, "hindsight_coef", 0.0),
        seed=args.seed,
    )


if __name__ == "__main__":
    main()
