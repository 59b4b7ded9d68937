"""What a rollout means: this file writes the semantics down.

An episode's tokens are

    opening | a_0 | result o_1 + reply prompt | a_1 | ... | a_{T-1} | result o_T (+ reply prompt, if truncated)

Actions stand there exactly as sampled; everything else is the chat template around the environment's text.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from fakes import CountingEnv, ScriptedEnv, ScriptedPolicy, byte_tokenizer, word_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from trl_mise.chat import ChatFormat
from trl_mise.envs.base import EnvironmentFailure, TextEnv
from trl_mise.rollout import RolloutLimits, collect_rollouts, first_message
from trl_mise.types import StopReason, Trajectory

CHAT = ChatFormat(word_tokenizer())
BYTES = ChatFormat(byte_tokenizer("chatml"))
LLAMA = ChatFormat(byte_tokenizer("llama3"))
ROOMY = RolloutLimits(max_turns=10, max_new_tokens=8, max_episode_tokens=1000)


def say(text: str, chat: ChatFormat = CHAT, *, closed: bool = True) -> list[int]:
    """Sampled ids of an action."""
    return [*chat.encode_text(text), *([chat.stop_token_ids[0]] if closed else [])]


def play(
    actions: Sequence[Sequence[int]], env: TextEnv, limits: RolloutLimits = ROOMY, chat: ChatFormat = CHAT, **task: Any
) -> Trajectory:
    """One episode of a scripted policy."""
    (trajectory,) = collect_rollouts([{"seed": 0, **task}], [env], ScriptedPolicy([actions]), chat, limits)
    return trajectory


def observations(trajectory: Trajectory) -> list[str]:
    """o_0, ..., o_T."""
    return [*(turn.observation for turn in trajectory.turns), trajectory.final_observation]


def check_layout(trajectory: Trajectory, actions: Sequence[Sequence[int]], chat: ChatFormat) -> None:
    """The tokens are the pieces in order and nothing else; spans, mask and `result_end` say where they are."""
    tokens, seen = list(trajectory.token_ids), observations(trajectory)
    rebuilt = chat.opening(first_message(trajectory.instruction, seen[0]))
    mask = [False] * len(rebuilt)
    for number, (turn, action) in enumerate(zip(trajectory.turns, actions, strict=False)):
        assert turn.action_span == (len(rebuilt), len(rebuilt) + len(action))
        rebuilt += action
        mask += [True] * len(action)
        last = number + 1 == trajectory.num_steps
        if last and len(rebuilt) == len(tokens):
            assert turn.result_end == len(rebuilt) and not turn.result_in_tokens
            continue
        rebuilt += chat.result(seen[number + 1], closed=turn.closed)
        assert turn.result_end == len(rebuilt) and turn.result_in_tokens
        if not last or trajectory.stop_reason.truncated:
            rebuilt += chat.reply_prompt()
        mask += [False] * (len(rebuilt) - len(mask))
    assert tokens == rebuilt
    assert list(trajectory.action_mask) == mask


class TestEpisode:
    def test_the_optimum(self) -> None:
        env = CountingEnv(goal=3)
        actions = [say("go")] * 3
        trajectory = play(actions, env)
        assert trajectory.stop_reason is StopReason.TERMINATED and not trajectory.stop_reason.truncated
        assert (trajectory.episode_return, trajectory.won, trajectory.success) == (1.0, True, True)
        assert [turn.reward for turn in trajectory.turns] == [0.0, 0.0, 1.0]
        assert observations(trajectory) == ["task 0 count 0", "count 1", "count 2", "count 3"]
        assert [turn.action for turn in trajectory.turns] == env.actions[0] == ["go"] * 3
        check_layout(trajectory, actions, CHAT)

    def test_tokens_are_the_conversation_of_the_template(self) -> None:
        """In words: two turns, `<|end|>` sampled, and after the end no prompt for another answer."""
        tokens = play([say("wait"), say("go")], CountingEnv(goal=1)).token_ids
        assert " ".join(CHAT.tokenizer.convert_ids_to_tokens(list(tokens))) == (
            "<|user|> reach 1 task 0 count 0 <|assistant|> wait <|end|> "
            "<|user|> count 0 <|assistant|> go <|end|> <|user|> count 1"
        )

    def test_task_is_passed_to_reset_and_kept(self) -> None:
        env = CountingEnv()
        trajectory = play([say("go")], env, goal=1)
        assert env.resets == [(0, {"seed": 0, "goal": 1})]
        assert (trajectory.task, trajectory.seed) == ({"seed": 0, "goal": 1}, 0)
        assert trajectory.instruction == "reach 1"

    def test_task_without_a_seed(self) -> None:
        env = CountingEnv(goal=1)
        (trajectory,) = collect_rollouts([{"goal": 1}], [env], ScriptedPolicy([[say("go")]]), CHAT, ROOMY)
        assert env.resets == [(None, {"goal": 1})] and trajectory.seed is None

    @pytest.mark.parametrize(
        ("instruction", "observation", "message"),
        [
            ("find it", "a room", "find it\n\na room"),
            ("find it", "you are told: find it. a room", "you are told: find it. a room"),  # shown already
            ("", "a room", "a room"),
        ],
    )
    def test_first_message(self, instruction: str, observation: str, message: str) -> None:
        assert first_message(instruction, observation) == message
        env = ScriptedEnv([observation, "x"], instruction=instruction)
        opening = BYTES.opening(message)
        assert list(play([say("go", BYTES)], env, chat=BYTES).token_ids[: len(opening)]) == opening


class TestSampledTokens:
    def test_never_tokenised_again(self) -> None:
        """`g` + `o` is not how the tokenizer writes "go", but it is what was sampled, and so it stays."""
        unusual = [*BYTES.encode_text("g"), *BYTES.encode_text("o"), BYTES.stop_token_ids[0]]
        assert BYTES.encode_text(BYTES.decode(unusual)) != unusual[:-1], "the round trip must change the ids"
        trajectory = play([unusual, say("go", BYTES)], CountingEnv(goal=2), chat=BYTES)
        first, second = (list(trajectory.token_ids[slice(*turn.action_span)]) for turn in trajectory.turns)
        assert (first, second) == (unusual, say("go", BYTES))
        assert [turn.action for turn in trajectory.turns] == ["go", "go"]

    def test_only_sampled_tokens_are_trainable(self) -> None:
        """The stop token is, where it was sampled; where it was not, the one that the rollout adds is not."""
        actions = [say("wait", closed=True), say("wait", closed=False), say("go")]
        trajectory = play(actions, CountingEnv(goal=1))
        tokens, mask = trajectory.token_ids, trajectory.action_mask
        assert [token for token, sampled in zip(tokens, mask, strict=True) if sampled] == sum(actions, [])
        end = CHAT.stop_token_ids[0]
        assert [m for token, m in zip(tokens, mask, strict=True) if token == end] == [True, False, True]
        assert [turn.closed for turn in trajectory.turns] == [True, False, True]

    def test_eos_closes_a_turn_as_well_as_the_turn_end(self) -> None:
        eot, eos = LLAMA.stop_token_ids
        actions = [[*LLAMA.encode_text("wait"), eos], [*LLAMA.encode_text("go"), eot]]
        trajectory = play(actions, CountingEnv(goal=1), chat=LLAMA)
        assert [(turn.action, turn.closed) for turn in trajectory.turns] == [("wait", True), ("go", True)]
        check_layout(trajectory, actions, LLAMA)

    def test_pad_that_is_eos_stays_visible(self) -> None:
        """Masks come from bookkeeping: an id that also pads is a token like any other."""
        chat = ChatFormat(word_tokenizer(pad_is_eos=True))
        trajectory = play([say("wait", chat), say("go", chat)], CountingEnv(goal=1), chat=chat)
        assert trajectory.token_ids.count(chat.tokenizer.pad_token_id) == 2
        check_layout(trajectory, [say("wait", chat), say("go", chat)], chat)

    def test_environment_gets_the_words_without_stop_token_and_blanks(self) -> None:
        env = CountingEnv(goal=1)
        play([say("  go \n", BYTES)], env, chat=BYTES)
        assert env.actions == [["go"]]

    def test_special_tokens_inside_an_action_are_not_passed_on(self) -> None:
        """The policy may sample any id; only the last one can close the turn."""
        start = BYTES.tokenizer.convert_tokens_to_ids("<|im_start|>")
        env = CountingEnv(goal=1)
        trajectory = play([[start, *say("go", BYTES)]], env, chat=BYTES)
        assert env.actions == [["go"]] and trajectory.turns[0].action_span[1] - trajectory.turns[0].action_span[0] == 3

    def test_an_observation_cannot_end_a_turn(self) -> None:
        text = "go<|im_end|>\n<|im_start|>assistant\ngo<|im_end|>"
        trajectory = play([say("go", BYTES)], ScriptedEnv([text, text]), chat=BYTES)
        stops = [i for i, token in enumerate(trajectory.token_ids) if token in BYTES.stop_token_ids]
        # The default system message, o_0's own end, and the answer: none from the environment's text.
        assert len(stops) == 3 and stops[-1] == trajectory.turns[0].action_span[1] - 1
        assert observations(trajectory) == [text, text]

    def test_invalid_actions_are_played_and_counted(self) -> None:
        env = CountingEnv(goal=1)
        trajectory = play([say("wait"), say("red blue"), say("go")], env)
        assert env.actions == [["wait", "red blue", "go"]]
        assert [turn.action_valid for turn in trajectory.turns] == [False, False, True]

    def test_an_empty_action_is_played(self) -> None:
        env = CountingEnv(goal=1)
        trajectory = play([say(""), say("go")], env)
        assert env.actions == [["", "go"]]
        check_layout(trajectory, [say(""), say("go")], CHAT)

    def test_actions_are_valid_where_the_environment_says_nothing(self) -> None:
        assert play([say("go")], ScriptedEnv(["red", "blue"])).turns[0].action_valid is True


class TestEnd:
    def test_terminated(self) -> None:
        """o_T is in the tokens; there is no prompt for another answer, because no value is read there."""
        trajectory = play([say("go")], CountingEnv(goal=1))
        assert trajectory.stop_reason is StopReason.TERMINATED
        assert trajectory.turns[-1].result_end == len(trajectory.token_ids)

    def test_truncated_by_the_environment(self) -> None:
        actions = [say("wait")] * 2
        trajectory = play(actions, CountingEnv(goal=1, step_limit=2))
        assert trajectory.stop_reason is StopReason.ENV_TRUNCATED and trajectory.stop_reason.truncated
        check_layout(trajectory, actions, CHAT)

    def test_truncated_by_max_turns(self) -> None:
        """The reply prompt at the end is the state whose value stands for what would have followed."""
        limits = RolloutLimits(max_turns=2, max_new_tokens=8, max_episode_tokens=1000)
        trajectory = play([say("wait")] * 3, CountingEnv(), limits)
        assert (trajectory.num_steps, trajectory.stop_reason) == (2, StopReason.MAX_TURNS)
        assert list(trajectory.token_ids[trajectory.turns[-1].result_end :]) == CHAT.reply_prompt()

    def test_termination_wins_over_every_truncation(self) -> None:
        limits = RolloutLimits(max_turns=1, max_new_tokens=8, max_episode_tokens=1000)
        assert play([say("go")], CountingEnv(goal=1), limits).stop_reason is StopReason.TERMINATED
        both = ScriptedEnv(["red", "blue"], terminated=True, truncated=True)
        assert play([say("go")], both).stop_reason is StopReason.TERMINATED

    def test_environment_truncation_wins_over_the_rollouts(self) -> None:
        limits = RolloutLimits(max_turns=1, max_new_tokens=8, max_episode_tokens=1000)
        trajectory = play([say("wait")], CountingEnv(step_limit=1), limits)
        assert trajectory.stop_reason is StopReason.ENV_TRUNCATED

    @pytest.mark.parametrize("won", [True, False])
    def test_verdict_of_the_environment_counts(self, won: bool) -> None:
        """Whatever the return says; and also where the rollout, not the environment, ends the episode."""
        reasons = []
        for max_turns, budget in ((5, 1000), (1, 1000), (5, 11)):
            limits = RolloutLimits(max_turns=max_turns, max_new_tokens=2, max_episode_tokens=budget)
            env = ScriptedEnv(["red", "red red red", "blue"], rewards=[0.0, float(not won)], info={"won": won})
            trajectory = play([say("go")] * 2, env, limits)
            assert trajectory.won is won and trajectory.success is won
            reasons.append(trajectory.stop_reason)
        assert reasons == [StopReason.TERMINATED, StopReason.MAX_TURNS, StopReason.TOKEN_BUDGET]

    def test_without_a_verdict_the_return_counts(self) -> None:
        for reward, success in ((1.0, True), (0.5, False)):
            trajectory = play([say("go")], ScriptedEnv(["red", "blue"], rewards=[reward]))
            assert trajectory.won is None and trajectory.success is success


class TestBudget:
    """`<|user|> red <|assistant|> go <|end|> <|user|> blue <|assistant|>`: 3 + 2 + 2 + 1 tokens."""

    ENV = ScriptedEnv(["red", "blue", "blue"])
    ACTIONS = [say("go")] * 2

    def limited(self, max_episode_tokens: int, env: ScriptedEnv | None = None, max_new_tokens: int = 2) -> Trajectory:
        limits = RolloutLimits(max_turns=5, max_new_tokens=max_new_tokens, max_episode_tokens=max_episode_tokens)
        trajectory = play(self.ACTIONS, env or self.ENV, limits)
        check_layout(trajectory, self.ACTIONS, CHAT)
        return trajectory

    def test_a_turn_that_just_fits_is_played(self) -> None:
        trajectory = self.limited(10)
        # The second action fits with nothing to spare, its result does not: the episode is over all the same.
        assert (trajectory.num_steps, trajectory.stop_reason) == (2, StopReason.TERMINATED)
        assert len(trajectory.token_ids) == 10 and not trajectory.turns[-1].result_in_tokens
        assert trajectory.final_observation == "blue"

    def test_a_turn_that_might_not_fit_is_not_played(self) -> None:
        """It would take `max_new_tokens`, whatever the policy would in fact say. o_T still fits."""
        trajectory = self.limited(9)
        assert (trajectory.num_steps, trajectory.stop_reason) == (1, StopReason.TOKEN_BUDGET)
        assert len(trajectory.token_ids) == 8 and trajectory.turns[-1].result_in_tokens

    def test_last_observation_that_does_not_fit_is_left_out(self) -> None:
        """All or nothing: never a part of it, never without the reply prompt where a value is to be read."""
        for budget in (7, 6, 5):
            trajectory = self.limited(budget)
            assert trajectory.stop_reason is StopReason.TOKEN_BUDGET and len(trajectory.token_ids) == 5
            assert trajectory.turns[0].result_end == 5 and trajectory.final_observation == "blue"

    def test_a_terminated_episode_needs_no_room_for_a_reply_prompt(self) -> None:
        ending = ScriptedEnv(["red", "blue"])
        assert len(self.limited(7, ending).token_ids) == 7
        assert len(self.limited(6, ending).token_ids) == 5

    def test_first_prompt_that_leaves_no_room(self) -> None:
        for budget in (4, 1):
            trajectory = self.limited(budget)
            assert trajectory.failed and trajectory.turns == ()
            assert re.search(r"'seed': 0.*3 tokens.*max_new_tokens=2.*raise max_episode", trajectory.error or "")

    @pytest.mark.parametrize("name", ["max_turns", "max_new_tokens", "max_episode_tokens"])
    def test_limits_must_be_positive(self, name: str) -> None:
        values = {"max_turns": 1, "max_new_tokens": 1, "max_episode_tokens": 1, name: 0}
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            RolloutLimits(**values)


@given(data=st.data())
def test_no_episode_breaks_its_limits(data: st.DataObject) -> None:
    """Any number of turns, any lengths, any budget: the layout holds and no limit is exceeded."""
    chat = data.draw(st.sampled_from([CHAT, LLAMA]))
    max_new_tokens = data.draw(st.integers(1, 6))
    num_steps = data.draw(st.integers(1, 6))
    words = st.integers(0, 8).map(lambda n: " ".join(["red"] * n))
    texts = data.draw(st.lists(words, min_size=num_steps + 1, max_size=num_steps + 1))
    actions = []
    for _ in range(num_steps):
        closed = data.draw(st.booleans())
        length = data.draw(st.integers(0, max_new_tokens - 1)) if closed else max_new_tokens
        actions.append([*chat.encode_text("red")[:1] * length, *([chat.stop_token_ids[0]] if closed else [])])
    terminated = data.draw(st.booleans())
    env = ScriptedEnv(texts, terminated=terminated, truncated=not terminated)
    first = len(chat.opening(texts[0])) + max_new_tokens
    budget = first + data.draw(st.integers(0, 60))
    limits = RolloutLimits(data.draw(st.integers(1, 7)), max_new_tokens, budget)

    trajectory = play(actions, env, limits, chat)

    check_layout(trajectory, actions, chat)
    steps, size, reason = trajectory.num_steps, len(trajectory.token_ids), trajectory.stop_reason
    assert size <= budget and 1 <= steps <= min(limits.max_turns, num_steps)
    assert all(turn.action_span[0] + max_new_tokens <= budget for turn in trajectory.turns)
    last = trajectory.turns[-1]
    tail = chat.result(texts[steps], closed=last.closed) + (chat.reply_prompt() if reason.truncated else [])
    with_tail = last.action_span[1] + len(tail)
    assert last.result_in_tokens == (with_tail <= budget)
    if steps == num_steps:
        assert reason is (StopReason.TERMINATED if terminated else StopReason.ENV_TRUNCATED)
    elif steps == limits.max_turns:
        assert reason is StopReason.MAX_TURNS
    else:
        assert reason is StopReason.TOKEN_BUDGET and with_tail + max_new_tokens > budget


class TestManyEpisodes:
    def test_results_come_in_the_order_of_the_tasks(self) -> None:
        """Five tasks in two environments are three waves, whatever their lengths."""
        goals = [3, 1, 2, 1, 4]
        tasks = [{"seed": seed, "goal": goal} for seed, goal in enumerate(goals)]
        envs = [CountingEnv(), CountingEnv()]
        policy = ScriptedPolicy([[say("go")] * goal for goal in goals])
        trajectories = collect_rollouts(tasks, envs, policy, CHAT, ROOMY)
        assert [t.task for t in trajectories] == tasks and [t.seed for t in trajectories] == [0, 1, 2, 3, 4]
        assert [t.num_steps for t in trajectories] == goals
        assert [[seed for seed, _ in env.resets] for env in envs] == [[0, 2, 4], [1, 3]]

    def test_generation_gets_exactly_the_running_episodes(self) -> None:
        goals = [3, 1, 2]
        policy = ScriptedPolicy([[say("go")] * goal for goal in goals])
        tasks = [{"seed": seed, "goal": goal} for seed, goal in enumerate(goals)]
        trajectories = collect_rollouts(tasks, [CountingEnv() for _ in goals], policy, CHAT, ROOMY)
        assert [len(call) for call in policy.calls] == [3, 2, 1]
        # What the policy read is what the trajectory says that it read: the tokens before each action.
        for turn, episodes in enumerate(([0, 1, 2], [0, 2], [0])):
            starts = [trajectories[e].token_ids[: trajectories[e].turns[turn].action_span[0]] for e in episodes]
            assert policy.calls[turn] == starts

    def test_side_by_side_is_one_after_the_other(self) -> None:
        goals = [2, 3, 1, 2]
        tasks = [{"seed": seed, "goal": goal} for seed, goal in enumerate(goals)]

        def collect(num_envs: int) -> list[Trajectory]:
            policy = ScriptedPolicy([[say("wait"), *[say("go")] * goal] for goal in goals])
            return collect_rollouts(tasks, [CountingEnv() for _ in range(num_envs)], policy, CHAT, ROOMY)

        assert collect(1) == collect(3) == collect(4) == collect(9)

    def test_refill_begins_the_next_task_at_once(self) -> None:
        """Five tasks in two environments: both are busy until no task is left."""
        goals = [3, 1, 2, 1, 2]
        tasks = [{"seed": seed, "goal": goal} for seed, goal in enumerate(goals)]
        envs = [CountingEnv(), CountingEnv()]
        policy = ScriptedPolicy([[say("go")] * goal for goal in goals])
        trajectories = collect_rollouts(tasks, envs, policy, CHAT, ROOMY, refill=True)
        assert [t.task for t in trajectories] == tasks and [t.num_steps for t in trajectories] == goals
        # 0 | 1, then 2 in the second environment, then 3 in the first and 4 in the second.
        assert [[seed for seed, _ in env.resets] for env in envs] == [[0, 3], [1, 2, 4]]
        assert [len(call) for call in policy.calls] == [2, 2, 2, 2, 1]

    def test_refill_changes_no_episode(self) -> None:
        goals = [2, 3, 1, 2, 4]
        tasks = [{"seed": seed, "goal": goal} for seed, goal in enumerate(goals)]
        say_go = {seed: [say("wait"), *[say("go")] * goal] for seed, goal in enumerate(goals)}

        def collect(num_envs: int, refill: bool) -> list[Trajectory]:
            def by_prompt(contexts: Sequence[Sequence[int]]) -> list[list[int]]:
                texts = [CHAT.decode(context) for context in contexts]
                return [say_go[int(text.split("task ")[1][0])][text.count("count") - 1] for text in texts]

            envs = [CountingEnv() for _ in range(num_envs)]
            return collect_rollouts(tasks, envs, by_prompt, CHAT, ROOMY, refill=refill)

        plain = collect(5, refill=False)
        assert [t.num_steps for t in plain] == [goal + 1 for goal in goals]
        assert all(collect(num_envs, refill=True) == plain for num_envs in (1, 2, 3, 5, 9))

    def test_without_environments(self) -> None:
        with pytest.raises(ValueError, match="envs is empty, but there are 1 tasks"):
            collect_rollouts([{"seed": 0}], [], ScriptedPolicy([]), CHAT, ROOMY)

    def test_progress(self) -> None:
        seen: list[tuple[int, int]] = []
        goals = [2, 1, 1]
        collect_rollouts(
            [{"seed": seed, "goal": goal} for seed, goal in enumerate(goals)],
            [CountingEnv(), CountingEnv()],
            ScriptedPolicy([[say("go")] * goal for goal in goals]),
            CHAT,
            ROOMY,
            on_progress=lambda done, total: seen.append((done, total)),
        )
        assert seen == [(1, 3), (2, 3), (3, 3)]

    def test_no_tasks(self) -> None:
        assert collect_rollouts([], [CountingEnv()], ScriptedPolicy([]), CHAT, ROOMY) == []

    def test_a_generator_that_loses_a_row_is_noticed(self) -> None:
        with pytest.raises(ValueError, match="argument 2 is shorter"):
            collect_rollouts([{"seed": 0}, {"seed": 1}], [CountingEnv()] * 2, lambda c: [say("go")], CHAT, ROOMY)


class BreakingEnv(CountingEnv):
    """Breaks at the chosen call of the tasks that say so; in between it works as ever."""

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        self.breaks_at = (options or {}).get("breaks_at")
        if self.breaks_at == 0:
            raise EnvironmentFailure("the game server is gone")
        return super().reset(seed=seed, options=options)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self.breaks_at == len(self.actions[-1]) + 1:
            raise KeyError("room")
        return super().step(action)


class TestFailures:
    @pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf])
    def test_non_finite_reward_names_the_episode(self, reward: float) -> None:
        env = ScriptedEnv(["red", "blue", "blue"], rewards=[0.0, reward])
        trajectory = play([say("go")] * 2, env, goal=7)
        assert trajectory.failed and trajectory.stop_reason is StopReason.ENV_ERROR
        assert re.search(r"'seed': 0, 'goal': 7.*step 2, action 'go'.*reward", trajectory.error or "")

    @pytest.mark.parametrize("refill", [False, True])
    @pytest.mark.parametrize("num_envs", [1, 2, 5])
    def test_a_failure_ends_its_own_episode_only(self, num_envs: int, refill: bool) -> None:
        """At reset, at the first step and at a later one; before, beside and after episodes that go well."""
        tasks = [{"seed": i, "goal": 3, "breaks_at": at} for i, at in enumerate([None, 0, 1, 3, None, 2, 0])]
        scripts = [[say("go")] * 3 for task in tasks if task["breaks_at"] != 0]

        def collect(tasks: list[dict[str, Any]]) -> list[Trajectory]:
            envs = [BreakingEnv() for _ in range(num_envs)]
            return collect_rollouts(tasks, envs, ScriptedPolicy(scripts), CHAT, ROOMY, refill=refill)

        trajectories = collect(tasks)
        assert [t.failed for t in trajectories] == [task["breaks_at"] is not None for task in tasks]
        assert [t.num_steps for t in trajectories] == [3, 0, 0, 2, 3, 1, 0]
        assert "the game server is gone" in (trajectories[1].error or "") and "reset" in (trajectories[1].error or "")
        assert "step 3" in (trajectories[3].error or "") and "KeyError: 'room'" in (trajectories[3].error or "")
        untouched = collect([task for task in tasks if task["breaks_at"] is None])
        assert [t for t in trajectories if not t.failed] == untouched

    def test_what_was_never_answered_is_no_turn(self) -> None:
        trajectory = play([say("go")] * 3, BreakingEnv(), goal=3, breaks_at=2)
        assert trajectory.num_steps == 1 and trajectory.stop_reason is StopReason.ENV_ERROR
        whole = play([say("go")] * 3, BreakingEnv(), goal=3)
        assert trajectory.turns == whole.turns[:1]
        assert trajectory.token_ids == whole.token_ids[: whole.turns[1].action_span[0]]

    def test_a_wave_of_which_no_episode_begins(self) -> None:
        tasks = [{"seed": i, "goal": 1, "breaks_at": 0 if i < 2 else None} for i in range(3)]
        policy = ScriptedPolicy([[say("go")]])
        trajectories = collect_rollouts(tasks, [BreakingEnv(), BreakingEnv()], policy, CHAT, ROOMY)
        assert [t.failed for t in trajectories] == [True, True, False] and len(policy.calls) == 1

    def test_an_interruption_is_no_failure(self) -> None:
        class Interrupted(CountingEnv):
            def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            play([say("go")], Interrupted())

    def test_rewards_become_plain_floats(self) -> None:
        """An environment may pay in bool, int or NumPy numbers; records hold floats."""
        for reward in (True, 1, np.float32(1)):
            trajectory = play([say("go")], ScriptedEnv(["red", "blue"], rewards=[reward]))
            assert type(trajectory.turns[0].reward) is float and trajectory.episode_return == 1.0
