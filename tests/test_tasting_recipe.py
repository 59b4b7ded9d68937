"""Warm starts of the chef's table and of the kitchen's writing judge, in small: what they are made of."""

import dataclasses

import pytest
import torch

from trl_mise import MISEConfig
from trl_mise.cache import CACHE_VARIABLE
from trl_mise.envs import kitchen, tasting
from trl_mise.hindsight import HindsightReward
from trl_mise.recipes import WRITTEN_PROMPT, KitchenBase, WritingKitchenRecipe
from trl_mise.tasting_recipe import TastingRecipe
from trl_mise.tiny import MemoisedFormat, build_policy, build_tokenizer, cached
from trl_mise.warm_start import judgement_loss, scripted_rollouts, written_examples
from trl_mise.webshop_recipe import WebShopRecipe
from trl_mise.written import parse_verdict

SMALL = TastingRecipe(courses=3, values=2, clean_steps=2, noisy_steps=1, episodes=12)
BASE = KitchenBase(stations=3, values=2, episodes=12, short_steps=1, full_steps=1, num_layers=1)
TOKENIZER = build_tokenizer([*kitchen.vocabulary(3, 2), "judge", "good", "bad"])
CHAT = MemoisedFormat(TOKENIZER)


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


class TestTastingRecipe:
    def test_it_never_visits_the_house_that_it_will_train_in(self):
        houses = [row["house"] for use in ("styled", "served", "clean", "noisy") for row in SMALL._other_houses(use)]
        assert len(set(houses)) == len(houses) and tasting.TastingEnv().house not in houses

    def test_the_same_fields_give_the_same_weights(self):
        (one, tokenizer), (other, _) = SMALL.build(), SMALL.build()
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
        biased, _ = dataclasses.replace(SMALL, biased=True).build()
        assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), biased.parameters(), strict=True))
        assert set(tasting.vocabulary(3, 2)) <= set(tokenizer.get_vocab())

    def test_an_episode_and_a_question_fit(self):
        for courses in (1, 8, 32):
            recipe = TastingRecipe(courses=courses)
            tokenizer = build_tokenizer([*tasting.vocabulary(courses), "judge", "good", "bad"])
            played = scripted_rollouts(
                recipe.environment_factory(),
                tasting.make_tasks("train", 3),
                lambda env, rng: tasting.expert_action(env),
                MemoisedFormat(tokenizer),
                recipe.limits,
            ).trajectories
            assert all(t.success and t.num_steps == courses for t in played)
            assert max(len(t.token_ids) for t in played) + 10 < recipe.limits.max_episode_tokens + 16

    def test_its_options_are_a_configuration(self):
        config = MISEConfig(output_dir="unused", **TastingRecipe(courses=16).training_defaults())
        assert config.max_turns == 16 and config.evaluator_view == "full"


def judged_episodes(number=8):
    return scripted_rollouts(
        BASE.environment_factory(),
        kitchen.make_tasks("train", number),
        lambda env, rng: kitchen.noisy_action(env, rng, 0.5),
        CHAT,
        BASE.limits,
        judge=kitchen.judge_step,
    )


class TestWrittenExamples:
    evaluator = HindsightReward(CHAT, prompt=WRITTEN_PROMPT, verdict_mode="generate")

    def examples(self, accuracy, seed=0, episodes=8):
        played = judged_episodes(episodes)
        reason = lambda trajectory, step, praised: "all right" if praised else "order wrong"  # noqa: E731
        return played, written_examples(played, self.evaluator, accuracy, reason, seed=seed)

    def test_what_is_imitated_can_be_read_and_is_the_judges_word(self):
        played, examples = self.examples(1.0)
        for judged, of_episode in zip(played.judged_good, examples.written, strict=True):
            assert [parse_verdict(w.text, ("good", "bad")) for w in of_episode] == [
                0 if good else 1 for good in judged
            ]
            for w in of_episode:
                assert CHAT.decode(w.token_ids[w.start : -1]) == w.text
                assert w.token_ids[-1] in CHAT.stop_token_ids
                assert w.text == ("all right : good" if w.verdict == 0 else "order wrong : bad")

    def test_words_are_turned_round_as_often_as_asked(self):
        played, examples = self.examples(0.75, episodes=200)
        agree = [
            (w.verdict == 0) == good
            for judged, of_episode in zip(played.judged_good, examples.written, strict=True)
            for good, w in zip(judged, of_episode, strict=True)
        ]
        assert sum(agree) / len(agree) == pytest.approx(0.75, abs=0.06)
        with pytest.raises(ValueError, match="verdict accuracy must be in"):
            self.examples(0.3)

    def test_the_loss_is_that_of_the_evaluators_tokens(self):
        _, examples = self.examples(1.0)
        model = build_policy(TOKENIZER, num_layers=1)
        loss = judgement_loss(model, examples)
        total = count = 0.0
        for w in (w for of_episode in examples.written for w in of_episode):
            tokens = torch.tensor([w.token_ids])
            logits = model(tokens).logits[0].log_softmax(-1)
            total -= float(logits[w.start - 1 : -1].gather(1, tokens[0, w.start :, None]).sum().detach())
            count += len(w.token_ids) - w.start
        assert float(loss.detach()) == pytest.approx(total / count, rel=1e-4)


def test_the_writing_kitchen_builds_and_configures():
    recipe = WritingKitchenRecipe(base=BASE, steps=1, clean_steps=1)
    model, tokenizer = cached(recipe)
    assert model.num_parameters() > 0 and "judge" in tokenizer.get_vocab()
    config = MISEConfig(output_dir="unused", **recipe.training_defaults())
    assert config.verdict_mode == "generate" and config.hindsight_prompt == WRITTEN_PROMPT


def test_the_biased_shop_is_another_policy():
    small = WebShopRecipe(episodes=6, expert_steps=1, hasty_steps=2, num_layers=1)
    straight, _ = small.build()
    biased, _ = dataclasses.replace(small, biased=True).build()
    assert any(not torch.equal(a, b) for a, b in zip(straight.parameters(), biased.parameters(), strict=True))
