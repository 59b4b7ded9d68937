"""The tiny policy: tokenizer, decoder, scripted episodes, warm start, cache, and the kitchen's recipe in small."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from trl_mise.cache import CACHE_VARIABLE
from trl_mise.chat import ChatFormat
from trl_mise.envs import kitchen
from trl_mise.hindsight import HindsightReward
from trl_mise.recipes import HINDSIGHT_PROMPT, KitchenBase, KitchenRecipe, ShortOrders, kitchen_recipe
from trl_mise.rollout import RolloutLimits, collect_rollouts
from trl_mise.tiny import MemoisedFormat, build_policy, build_tokenizer, cache_path, cached
from trl_mise.types import StopReason
from trl_mise.warm_start import (
    Phase,
    imitation_loss,
    scripted_rollouts,
    verdict_examples,
    verdict_loss,
    warm_start,
)

WORDS = [*kitchen.vocabulary(), "judge", "good", "bad"]
TOKENIZER = build_tokenizer(WORDS)
CHAT = MemoisedFormat(TOKENIZER)
LIMITS = RolloutLimits(max_turns=2, max_new_tokens=3, max_episode_tokens=64)
# Small enough to be built in a second; it learns nothing.
SMALL_BASE = KitchenBase(stations=2, values=2, episodes=8, short_steps=1, full_steps=2, num_layers=1)
SMALL = KitchenRecipe(base=SMALL_BASE, steps=1)


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


def small_kitchen():
    return kitchen.KitchenEnv(stations=2)


def clumsy(env, rng):
    return kitchen.noisy_action(env, rng, 0.5)


def play(act=clumsy, episodes=6, judge=kitchen.judge_step, **kwargs):
    tasks = kitchen.make_tasks("train", episodes)
    return scripted_rollouts(small_kitchen, tasks, act, CHAT, LIMITS, judge=judge, **kwargs)


def evaluator(**kwargs):
    return HindsightReward(CHAT, prompt=HINDSIGHT_PROMPT, **{"view": "prefix", **kwargs})


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


class TestTokenizer:
    @given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=20))
    def test_words_survive_the_round_trip(self, words):
        text = " ".join(words)
        ids = CHAT.encode_text(text)
        assert len(ids) == len(words)
        assert CHAT.decode(ids) == text

    def test_the_kitchen_understands_what_was_decoded(self):
        env = kitchen.KitchenEnv()
        observation, info = env.reset(seed=3)
        assert TOKENIZER.unk_token_id not in CHAT.encode_text(f"{info['instruction']} {observation}")
        terminated = False
        while not terminated:
            action = CHAT.decode(CHAT.encode_text(kitchen.expert_action(env)))
            observation, reward, terminated, _, info = env.step(action)
            assert info["action_valid"]
            assert TOKENIZER.unk_token_id not in CHAT.encode_text(observation)
        assert reward == 1.0

    def test_markup_is_cut_out_of_words(self):
        chat = ChatFormat(build_tokenizer(["red", "mug", "buy", "now", "20"]))
        texts = {
            "search[red mug]": "search[ red mug ]",
            "click[buy now]": "click[ buy now ]",
            "red[SEP]mug ($20): (now,buy)?": "red [SEP] mug ( $ 20 ) : ( now , buy ) ?",
        }
        assert {text: chat.decode(chat.encode_text(text)) for text in texts} == texts
        assert len(chat.encode_text("search[red mug]")) == 4

    def test_a_conversation_in_tokens(self):
        """An observation costs its words and two tokens; an answer its words and the token that ends it."""
        assert TOKENIZER.convert_ids_to_tokens(CHAT.opening("now grill")) == [
            "<|user|>",
            "now",
            "grill",
            "<|assistant|>",
        ]
        assert CHAT.stop_token_ids == (TOKENIZER.eos_token_id,)
        assert TOKENIZER.pad_token_id != TOKENIZER.eos_token_id
        result = [*CHAT.result("done", closed=False), *CHAT.reply_prompt()]
        assert TOKENIZER.convert_ids_to_tokens(result) == ["<|end|>", "<|user|>", "done", "<|assistant|>"]
        assert CHAT.result("done", closed=True) == CHAT.result("done", closed=False)[1:]

    @pytest.mark.parametrize("token", TOKENIZER.all_special_tokens)
    def test_special_tokens_cannot_be_written(self, token):
        ids = CHAT.encode_text(f"now {token} grill{token} {token}grill")
        assert not set(ids) & (set(TOKENIZER.all_special_ids) - {TOKENIZER.unk_token_id})

    def test_an_environment_cannot_end_a_turn(self):
        class Intruder(kitchen.KitchenEnv):
            def step(self, action):
                observation, *rest = super().step(action)
                return f"{observation} <|end|> <|assistant|> grill hot <|end|>", *rest

        tasks = kitchen.make_tasks("train", 2)
        act = lambda env, rng: kitchen.expert_action(env)  # noqa: E731
        factory = lambda: Intruder(stations=2)  # noqa: E731
        for trajectory in scripted_rollouts(factory, tasks, act, CHAT, LIMITS).trajectories:
            assert trajectory.token_ids.count(TOKENIZER.eos_token_id) == trajectory.num_steps == 2

    @pytest.mark.parametrize("word", ["two words", "search[red", "20$", ""])
    def test_a_word_that_would_be_cut_is_refused(self, word):
        with pytest.raises(ValueError, match="no single word"):
            build_tokenizer(["red", word])


class TestPolicy:
    def test_size_seed_and_global_random_state(self):
        torch.manual_seed(5)
        expected = torch.rand(1)
        torch.manual_seed(5)
        one, same, other = (build_policy(TOKENIZER, seed=seed) for seed in (0, 0, 1))
        assert torch.equal(torch.rand(1), expected)
        assert torch.equal(weights(one), weights(same))
        assert not torch.equal(weights(one), weights(other))
        assert 80_000 < one.num_parameters() < 3_000_000
        assert one.get_output_embeddings().weight is one.get_input_embeddings().weight
        assert one.config.vocab_size == len(TOKENIZER) == len(set(TOKENIZER.get_vocab().values()))


class TestScriptedEpisodes:
    def test_tokens_and_spans_are_those_of_a_rollout(self):
        """A policy that samples the same answers gets the same trajectory, token for token."""
        scripted = play().trajectories
        answers = iter([t.token_ids[slice(*turn.action_span)] for t in scripted for turn in t.turns])
        tasks = kitchen.make_tasks("train", len(scripted))
        chat = ChatFormat(TOKENIZER)
        again = collect_rollouts(tasks, [small_kitchen()], lambda _: [list(next(answers))], chat, LIMITS)
        assert again == scripted

    def test_layout(self):
        (trajectory,) = play(lambda env, rng: kitchen.expert_action(env), episodes=1).trajectories
        assert trajectory.success and trajectory.stop_reason is StopReason.TERMINATED
        for turn in trajectory.turns:
            start, end = turn.action_span
            sampled = trajectory.token_ids[start:end]
            assert CHAT.decode(sampled[:-1]) == turn.action
            assert sampled[-1] == TOKENIZER.eos_token_id and turn.closed
            assert trajectory.token_ids[start - 1] == TOKENIZER.convert_tokens_to_ids("<|assistant|>")

    @pytest.mark.parametrize("judge", [kitchen.judge_step, kitchen.biased_judge_step])
    def test_the_judge_is_asked_before_every_step(self, judge):
        """Replaying the recorded actions gives the recorded words."""
        played = play(episodes=20, judge=judge)
        env = small_kitchen()
        for trajectory, judged in zip(played.trajectories, played.judged_good, strict=True):
            env.reset(seed=trajectory.seed)
            for turn, good in zip(trajectory.turns, judged, strict=True):
                assert judge(env, turn.action) == good
                env.step(turn.action)
        words = [good for judged in played.judged_good for good in judged]
        assert 0.25 < sum(words) / len(words) < 0.85

    def test_a_seed_names_the_script(self):
        assert play(seed=1) == play(seed=1) != play(seed=2)

    def test_an_action_that_is_too_long_is_refused(self):
        with pytest.raises(ValueError, match=r"'grill grill grill' has 4 tokens.*max_new_tokens=3"):
            play(lambda env, rng: "grill grill grill")


class TestVerdictExamples:
    def test_soft_labels_and_views(self):
        episodes = play(episodes=4)
        views = [evaluator(view=view) for view in ("prefix", "full")]
        examples = verdict_examples(episodes, views, 0.75)
        assert examples.good_probs == [tuple(0.75 if good else 0.25 for good in j) for j in episodes.judged_good]
        for index, (row, trajectory) in enumerate(zip(examples.rows, episodes.trajectories, strict=True)):
            whole = len(trajectory.token_ids)
            assert row.visible == ([t.result_end for t in trajectory.turns] if index % 2 == 0 else [whole] * 2)
            questions = [CHAT.decode(suffix) for suffix in row.suffixes]
            assert questions == [f"judge {turn.action}" for turn in trajectory.turns]
        assert TOKENIZER.convert_ids_to_tokens([ids[0] for ids in examples.verdict_ids]) == ["good", "bad"]

    def test_bad_input(self):
        with pytest.raises(ValueError, match=r"accuracy must be in \[0.5, 1\], got 0.4"):
            verdict_examples(play(), [evaluator()], 0.4)
        with pytest.raises(ValueError, match="episode 0 was played without a judge"):
            verdict_examples(play(judge=None), [evaluator()], 0.75)

    def test_losses_of_a_policy_that_knows_nothing(self):
        """Zero weights: every word, and every verdict, is as likely as any other."""
        model = build_policy(TOKENIZER, num_layers=1)
        torch.nn.init.zeros_(model.get_input_embeddings().weight)
        examples = verdict_examples(play(), [evaluator()], 0.75)
        assert imitation_loss(model, play().trajectories).item() == pytest.approx(math.log(len(TOKENIZER)))
        assert verdict_loss(model, examples).item() == pytest.approx(math.log(2))

    def test_a_draw_keeps_questions_and_answers_together(self):
        examples = verdict_examples(play(episodes=20), [evaluator()], 0.75)
        answers = {tuple(row.token_ids): probs for row, probs in zip(examples.rows, examples.good_probs, strict=True)}
        drawn = examples.draw(np.random.default_rng(0), 12)
        assert len(drawn.rows) == len(drawn.good_probs) == 12
        assert all(answers[tuple(r.token_ids)] == p for r, p in zip(drawn.rows, drawn.good_probs, strict=True))
        assert drawn.verdict_ids == examples.verdict_ids

    def test_verdict_loss_is_the_cross_entropy_with_the_soft_answers(self):
        model = build_policy(TOKENIZER, num_layers=1)
        episodes = play()
        probs = torch.from_numpy(evaluator().verdict_probs(model, episodes.trajectories))
        good = torch.tensor([0.75 if word else 0.25 for judged in episodes.judged_good for word in judged])
        expected = -(good * probs[:, 0].log() + (1 - good) * probs[:, 1].log()).mean()
        loss = verdict_loss(model, verdict_examples(episodes, [evaluator()], 0.75))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


class TestWarmStart:
    def phase(self, steps, **kwargs):
        expert = play(lambda env, rng: kitchen.expert_action(env), episodes=16).trajectories
        verdicts = verdict_examples(play(episodes=16), [evaluator()], 0.9)
        return Phase("try", steps, expert, verdicts, **{"batch_size": 4, "verdict_batch_size": 4, **kwargs})

    def test_losses_fall(self):
        model, phase = build_policy(TOKENIZER), self.phase(steps=40, batch_size=16, verdict_batch_size=16)
        before = imitation_loss(model, phase.demonstrations).item(), verdict_loss(model, phase.verdicts).item()
        warm_start(model, [phase])
        after = imitation_loss(model, phase.demonstrations).item(), verdict_loss(model, phase.verdicts).item()
        assert after[0] < 0.3 * before[0]
        assert after[1] < 0.8 * before[1]

    def test_same_seed_same_weights(self):
        results = []
        for seed, noise in (0, 1), (0, 2), (1, 1):
            torch.manual_seed(noise)  # the global random state plays no part
            model = build_policy(TOKENIZER)
            warm_start(model, [self.phase(steps=3)], seed=seed)
            results.append(weights(model))
        assert torch.equal(results[0], results[1])
        assert not torch.equal(results[0], results[2])

    def test_only_sampled_tokens_are_imitated(self):
        """Everything else is given: the loss is the mean over action tokens, stop tokens included."""
        model, (trajectory,) = build_policy(TOKENIZER), play(episodes=1).trajectories
        ids = torch.tensor([trajectory.token_ids])
        log_probs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        mask = torch.tensor(trajectory.action_mask[1:])
        assert mask.sum() == 6
        assert imitation_loss(model, [trajectory]).item() == pytest.approx(-log_probs[mask].mean().item(), rel=1e-5)

    def test_progress(self):
        seen = []
        phases = [dataclasses.replace(self.phase(steps), name=name) for name, steps in (("a", 2), ("b", 1))]
        warm_start(build_policy(TOKENIZER, num_layers=1), phases, progress=lambda *report: seen.append(report))
        assert seen == [("a", 1, 3), ("a", 2, 3), ("b", 3, 3)]


class TestCache:
    def test_built_once_and_loaded_the_same(self, monkeypatch):
        built, built_tokenizer = SMALL_BASE.build()
        first, _ = cached(SMALL_BASE)
        assert torch.equal(weights(built), weights(first))
        monkeypatch.setattr(KitchenBase, "build", lambda *_: pytest.fail("it is in the cache"))
        again, tokenizer = cached(SMALL_BASE)
        assert torch.equal(weights(first), weights(again))
        assert not again.training
        assert tokenizer.get_vocab() == built_tokenizer.get_vocab()
        text = "order : grill rare <|end|>"
        assert ChatFormat(tokenizer).opening(text) == ChatFormat(built_tokenizer).opening(text)
        assert ChatFormat(tokenizer).stop_token_ids == (built_tokenizer.eos_token_id,)

    def test_where_it_is_kept(self, tmp_path, monkeypatch):
        assert cache_path(SMALL).parent == tmp_path / "cache"
        assert cache_path(SMALL, tmp_path / "here").parent == tmp_path / "here"
        monkeypatch.delenv(CACHE_VARIABLE)
        monkeypatch.setattr(Path, "home", lambda: tmp_path)
        assert cache_path(SMALL).parent == tmp_path / ".cache" / "trl-mise"

    @pytest.mark.parametrize("recipe", [SMALL_BASE, SMALL], ids=lambda recipe: type(recipe).__name__)
    def test_every_field_is_part_of_the_key(self, recipe):
        paths = {cache_path(recipe)}
        for field in dataclasses.fields(recipe):
            value = getattr(recipe, field.name)
            other = KitchenBase() if field.name == "base" else not value if value is False else value + 1
            paths.add(cache_path(dataclasses.replace(recipe, **{field.name: other})))
        assert len(paths) == 1 + len(dataclasses.fields(recipe))

    def test_a_build_that_fails_leaves_nothing(self, tmp_path, monkeypatch):
        class Unsavable:
            def save_pretrained(self, folder):
                (folder / "half").write_text("a model")
                raise OSError("disk full")

        monkeypatch.setattr(KitchenBase, "build", lambda *_: (Unsavable(), Unsavable()))
        with pytest.raises(OSError, match="disk full"):
            cached(SMALL_BASE)
        assert list((tmp_path / "cache").iterdir()) == []

    def test_a_process_that_transformers_lets_write_nothing(self, monkeypatch):
        """Not the first of several: its result may be the one that is kept, so it must be whole."""
        built, _ = SMALL_BASE.build()
        monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", lambda *args, **kwargs: None)
        model, _ = cached(SMALL_BASE)
        assert torch.equal(weights(built), weights(model)) and model.config.tie_word_embeddings
        assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)

    def test_what_has_no_weights_is_built_anew(self):
        """Such folders were left by earlier versions."""
        folder = cache_path(SMALL_BASE)
        build_tokenizer(WORDS).save_pretrained(folder)
        model, _ = cached(SMALL_BASE)
        assert torch.equal(weights(SMALL_BASE.build()[0]), weights(model))
        assert list(folder.parent.iterdir()) == [folder]

    def test_a_process_that_was_faster_wins(self, monkeypatch):
        """Two processes that build at once: the second finds the place taken, and takes what is there."""
        build, winner = KitchenBase.build, cache_path(SMALL_BASE)

        def slow(recipe, progress=None):
            results = build(recipe, progress)
            if not winner.is_dir():
                for result in results:
                    result.save_pretrained(winner)
            return results

        monkeypatch.setattr(KitchenBase, "build", slow)
        model, _ = cached(SMALL_BASE)
        assert torch.equal(weights(model), weights(build(SMALL_BASE)[0]))
        assert list(winner.parent.iterdir()) == [winner]


class TestKitchenRecipe:
    def test_noise_is_as_stated(self):
        """Right choices in the demonstrations, even odds where verdicts are learned, labels as soft as stated."""
        base = KitchenBase(episodes=150)
        phase = base.lesson(TOKENIZER, "noise", 1, demo_accuracy=0.4, verdict_accuracy=0.75)
        right = [right_choices(trajectory) / 8 for trajectory in phase.demonstrations]
        assert sum(right) / len(right) == pytest.approx(0.4, abs=0.05)
        labels = [prob for probs in phase.verdicts.good_probs for prob in probs]
        assert set(labels) == {0.25, 0.75}
        assert labels.count(0.75) / len(labels) == pytest.approx(0.5, abs=0.05)
        longest = max(row.visible[-1] + len(row.suffixes[-1]) for row in phase.verdicts.rows)
        assert max(len(t.token_ids) for t in phase.demonstrations) <= base.limits.max_episode_tokens
        assert longest <= base.limits.max_episode_tokens + 16

    def test_a_biased_judge_only_praises_more(self):
        base = KitchenBase(episodes=30)
        labels = []
        for judge in kitchen.judge_step, kitchen.biased_judge_step:
            phase = base.lesson(TOKENIZER, "noise", 1, demo_accuracy=0.4, verdict_accuracy=0.75, judge=judge)
            labels.append([prob for probs in phase.verdicts.good_probs for prob in probs])
        changed = [pair for pair in zip(*labels, strict=True) if pair[0] != pair[1]]
        assert changed and set(changed) == {(0.25, 0.75)}

    def test_short_orders_name_all_stations_in_time(self):
        env = ShortOrders(3, stations=8, values=5)
        seen = set()
        for seed in range(30):
            _, info = env.reset(seed=seed)
            assert len(env.stations) == 3 and info["instruction"].count(",") == 2
            assert env.reset(seed=seed)[1] == info
            seen |= set(env.stations)
        assert seen == set(kitchen.KitchenEnv().stations)

    def test_the_clean_half_is_shared(self, tmp_path):
        one, tokenizer = cached(SMALL)
        other, _ = cached(dataclasses.replace(SMALL, demo_accuracy=0.9))
        names = sorted(path.name.partition("-")[0] for path in (tmp_path / "cache").iterdir())
        assert names == ["KitchenBase", "KitchenRecipe", "KitchenRecipe"]
        assert not torch.equal(weights(one), weights(other))
        assert len(tokenizer) == one.config.vocab_size

    def test_same_recipe_same_weights(self):
        assert torch.equal(weights(SMALL.build()[0]), weights(SMALL.build()[0]))
        other = dataclasses.replace(SMALL, seed=1)
        assert not torch.equal(weights(SMALL.build()[0]), weights(other.build()[0]))

    def test_the_environment_is_the_recipes(self):
        recipe = KitchenRecipe(base=KitchenBase(stations=3, values=2))
        env = recipe.environment_factory("test")()
        assert (len(env.stations), len(env.values), env.split) == (3, 2, "test")
        options = recipe.training_defaults()
        assert (options["max_turns"], options["max_new_tokens"]) == (3, 3)

    def test_names(self):
        assert kitchen_recipe("hard").demo_accuracy < kitchen_recipe("near_one_percent").demo_accuracy
        recipe = kitchen_recipe("hard", biased=True, seed=3)
        assert recipe.biased and recipe.seed == 3
        with pytest.raises(ValueError, match="warm_start='easy' is unknown"):
            kitchen_recipe("easy")


def right_choices(trajectory):
    """How many choices were the order's."""
    wanted = set(trajectory.instruction.removeprefix("order : ").split(" , "))
    return sum(turn.action in wanted for turn in trajectory.turns)
