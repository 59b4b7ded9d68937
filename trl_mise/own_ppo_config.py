"""`PPOConfig` for TRL versions that have none (1.13 and later): the options of TRL 1.12's, at its defaults."""

from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import TrainingArguments


def option(default: Any, text: str) -> Any:
    """A field of a configuration, with its words for `--help`."""
    return field(default=default, metadata={"help": text})


@dataclass
class PPOConfig(TrainingArguments):
    """Options of PPO beside those of [`~transformers.TrainingArguments`].

    Names and defaults are those that scripts for TRL's `PPOConfig` use. Other than in `TrainingArguments`,
    `learning_rate` is 3e-6, `logging_steps` 10, `gradient_checkpointing` on, and `bf16` on unless `fp16` is.

    Parameters:
        num_mini_batches (`int`, *optional*, defaults to `1`):
            Optimizer steps per PPO epoch; they share the batch evenly.
        num_ppo_epochs (`int`, *optional*, defaults to `4`):
            Passes over every batch of episodes.
        total_episodes (`int`, *optional*):
            Episodes to train on. Defaults to `num_train_epochs` times the rows of the training set.
        local_rollout_forward_batch_size (`int`, *optional*, defaults to `64`):
            Sequences that a process generates side by side.
        num_sample_generations (`int`, *optional*, defaults to `10`):
            Kept for scripts that set it: episodes are in `trajectories.jsonl`.
        response_length (`int`, *optional*, defaults to `53`):
            Most tokens of a response.
        stop_token (`"eos"`, *optional*):
            Responses end with the tokenizer's end-of-sequence token; not together with `stop_token_id`.
        stop_token_id (`int`, *optional*):
            Responses end with this token.
        temperature (`float`, *optional*, defaults to `0.7`):
            Of sampling.
        missing_eos_penalty (`float`, *optional*):
            Taken off the score of a response that does not end by itself; positive.
        whiten_rewards (`bool`, *optional*, defaults to `False`):
            Scale the rewards of a batch to unit variance.
        kl_coef (`float`, *optional*, defaults to `0.05`):
            Weight of the KL divergence from the reference policy.
        kl_estimator (`"k1"` or `"k3"`, *optional*, defaults to `"k1"`):
            Of that divergence, from single samples: the log-ratio, or the one of lower variance that is never
            negative (Schulman, "Approximating KL Divergence").
        cliprange, cliprange_value (`float`, *optional*, defaults to `0.2`):
            How far an update may move probability ratios, and values.
        vf_coef (`float`, *optional*, defaults to `0.1`):
            Weight of the value loss.
        gamma, lam (`float`, *optional*, defaults to `1.0` and `0.95`):
            Discount, and lambda of generalised advantage estimation.
        ds3_gather_for_generation (`bool`, *optional*, defaults to `True`):
            With DeepSpeed ZeRO-3, put the policy's weights together to generate: faster, if one device holds them.
        model_adapter_name, ref_adapter_name (`str`, *optional*):
            Adapters to train, and to take as the reference, of a policy that has several.
        dataset_num_proc, sft_model_path, reward_model_path:
            For scripts; the trainer does not read them.
        world_size, num_total_batches, micro_batch_size, local_batch_size, batch_size, local_mini_batch_size,
        mini_batch_size:
            Worked out by the trainer.
    """

    learning_rate: float = option(3e-6, "Initial learning rate of AdamW.")
    logging_steps: float = option(10, "Log every so many updates; below 1 a share of all updates.")
    gradient_checkpointing: bool = option(True, "Recompute activations in the backward pass: less memory, slower.")
    bf16: bool | None = option(None, "bfloat16 mixed precision; on by default unless fp16 is.")
    dataset_num_proc: int | None = option(None, "Processes that prepare the dataset.")
    num_mini_batches: int = option(1, "Optimizer steps per PPO epoch.")
    total_episodes: int | None = option(None, "Episodes to train on; defaults to num_train_epochs of the dataset.")
    local_rollout_forward_batch_size: int = option(64, "Sequences that a process generates side by side.")
    num_sample_generations: int = option(10, "Kept for scripts that set it.")
    response_length: int = option(53, "Most tokens of a response.")
    stop_token: Literal["eos"] | None = option(None, "'eos': responses end with the tokenizer's eos token.")
    stop_token_id: int | None = option(None, "Token that ends a response; not together with stop_token.")
    temperature: float = option(0.7, "Sampling temperature.")
    missing_eos_penalty: float | None = option(None, "Taken off the score of a response that does not end.")
    sft_model_path: str = option("EleutherAI/pythia-160m", "For scripts: the policy to start from.")
    world_size: int | None = option(None, "Worked out: processes.")
    num_total_batches: int | None = option(None, "Worked out: updates.")
    micro_batch_size: int | None = option(None, "Worked out: episodes of one pass, over all processes.")
    local_batch_size: int | None = option(None, "Worked out: episodes of an update on one process.")
    batch_size: int | None = option(None, "Worked out: episodes of an update, over all processes.")
    local_mini_batch_size: int | None = option(None, "Worked out: episodes of an optimizer step on one process.")
    mini_batch_size: int | None = option(None, "Worked out: episodes of an optimizer step, over all processes.")
    push_to_hub: bool = option(False, "Push the model to the Hub after training.")
    reward_model_path: str = option("EleutherAI/pythia-160m", "For scripts: the reward model.")
    model_adapter_name: str | None = option(None, "Adapter to train, of a policy that has several.")
    ref_adapter_name: str | None = option(None, "Adapter that is the reference policy.")
    num_ppo_epochs: int = option(4, "Passes over every batch of episodes.")
    whiten_rewards: bool = option(False, "Scale the rewards of a batch to unit variance.")
    kl_coef: float = option(0.05, "Weight of the KL divergence from the reference policy.")
    kl_estimator: Literal["k1", "k3"] = option("k1", "Estimator of that divergence: the log-ratio, or k3.")
    cliprange: float = option(0.2, "How far an update may move probability ratios.")
    vf_coef: float = option(0.1, "Weight of the value loss.")
    cliprange_value: float = option(0.2, "How far an update may move values.")
    gamma: float = option(1.0, "Discount.")
    lam: float = option(0.95, "Lambda of generalised advantage estimation.")
    ds3_gather_for_generation: bool = option(True, "DeepSpeed ZeRO-3: put the weights together to generate.")

    def __post_init__(self) -> None:
        if self.bf16 is None:
            self.bf16 = not self.fp16
        super().__post_init__()
