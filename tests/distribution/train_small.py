"""A training with an environment of one's own, as a user with nothing but the wheel would write it."""

import random
from pathlib import Path

from datasets import Dataset

from trl_mise import MISEConfig, MISETrainer, check_env
from trl_mise.model_agent import ModelAgent
from trl_mise.tiny import build_policy, build_tokenizer

COLOURS = ["red", "green", "blue"]


class GuessEnv:
    """Three hints, three answers; paid once, if all were right."""

    def reset(self, *, seed=None, options=None):
        self.wanted, self.right = random.Random(seed).sample(COLOURS, 3), []
        return f"say {self.wanted[0]}", {"instruction": "repeat"}

    def step(self, action):
        self.right.append(action.strip() == self.wanted[len(self.right)])
        done = len(self.right) == 3
        text = "done" if done else f"say {self.wanted[len(self.right)]}"
        return text, float(done and all(self.right)), done, False, {}

    def close(self):
        pass


check_env(GuessEnv, task={"seed": 0})
tokenizer = build_tokenizer([*COLOURS, "say", "done", "repeat", "judge", "good", "bad"])
trainer = MISETrainer(
    args=MISEConfig(
        output_dir="run",
        total_episodes=32,
        per_device_train_batch_size=16,
        max_turns=3,
        max_new_tokens=2,
        max_episode_tokens=64,
        hindsight_prompt="judge {{ action }}",
        report_to="none",
        use_cpu=True,
        bf16=False,
        save_strategy="steps",
        save_steps=1,
        logging_steps=1,
    ),
    processing_class=tokenizer,
    model=build_policy(tokenizer, num_layers=1, max_positions=128, seed=0),
    train_dataset=Dataset.from_list([{"seed": i} for i in range(32)]),
    eval_dataset=Dataset.from_list([{"seed": i} for i in range(100, 104)]),
    environment_factory=GuessEnv,
)
trainer.train()
assert trainer.evaluate()["eval_episodes"] == 4.0
trainer.save_model()

assert trainer.state.global_step == 2 and trainer.state.episode == 32
assert len(Path("run/trajectories.jsonl").read_text(encoding="utf-8").splitlines()) == 32
assert "## How it was trained" in Path("run/README.md").read_text(encoding="utf-8")
agent = ModelAgent.from_pretrained("run/checkpoint-2", max_new_tokens=2, max_episode_tokens=64, device="cpu")
assert [episode.steps for episode in agent.play(GuessEnv, [{"seed": 1}], max_steps=3)] == [3]
print("trained, saved, loaded and played")
