"""The PPO trainer that [`MISETrainer`] extends: TRL's, where TRL has one (before 1.13), else our own base."""

from ._trl import TRLPPOConfig, TRLPPOTrainer

TRL_HAS_PPO = TRLPPOTrainer is not None

if TRL_HAS_PPO:
    PPOConfig, PPOTrainer = TRLPPOConfig, TRLPPOTrainer
else:
    from .own_ppo import PPOTrainer
    from .own_ppo_config import PPOConfig

__all__ = ["TRL_HAS_PPO", "PPOConfig", "PPOTrainer"]
