"""A long episode, short enough to be judged in one view: all actions, observations cut to a budget. No torch."""

from collections.abc import Sequence
from dataclasses import replace

from .chat import PromptFormat
from .history import first_message
from .notices import warn_once
from .types import Trajectory, Turn

ELLIPSIS = "..."


def compress(trajectory: Trajectory, chat: PromptFormat, max_tokens: int) -> Trajectory:
    """The same episode in at most `max_tokens` tokens: what is too long of its observations is cut off at their end.

    All observations get the same share, as far as they need it (the shorter ones stay whole), and the instruction is
    kept. Actions are kept as sampled; only where they alone are too long are they cut as well, which is said once.

    Args:
        trajectory ([`Trajectory`]): a finished episode.
        chat ([`PromptFormat`]): of the rollout.
        max_tokens (`int`): most tokens up to the last result.

    Returns:
        [`Trajectory`]: with spans that fit its tokens and without windows; equal to the episode, but for the windows,
        where that is short enough.

    Raises:
        ValueError: the chat template's own tokens leave no room.
    """
    whole = replace(trajectory, windows=())
    if not trajectory.turns or trajectory.turns[-1].result_end <= max_tokens:
        return whole
    texts = [*(turn.observation for turn in trajectory.turns), trajectory.final_observation]
    lengths = [len(chat.encode_text(text)) for text in texts]
    bare = _rebuild(whole, [ELLIPSIS] * len(texts), None, chat)
    limit = _even_share(lengths, max_tokens - len(bare.token_ids))
    while limit > 0:
        shortened = [_cut(text, length, limit) for text, length in zip(texts, lengths, strict=True)]
        found = _rebuild(whole, shortened, None, chat)
        if len(found.token_ids) <= max_tokens:
            return found
        limit = int(0.9 * limit)  # cut text does not always have its share of the tokens
    return bare if len(bare.token_ids) <= max_tokens else _cut_actions(whole, bare, chat, max_tokens)


def _cut_actions(whole: Trajectory, bare: Trajectory, chat: PromptFormat, max_tokens: int) -> Trajectory:
    warn_once(
        f"hindsight: the actions of an episode alone are longer than {max_tokens} tokens and are cut for the "
        "evaluator; raise hindsight_context_tokens, or lower max_turns or max_new_tokens"
    )
    lengths = [end - start for start, end in (turn.action_span for turn in bare.turns)]
    limit = _even_share(lengths, max_tokens - len(bare.token_ids) + sum(lengths))
    if limit < 1:
        raise ValueError(
            f"hindsight_context_tokens: the markup of {len(bare.turns)} turns alone leaves no room within "
            f"{max_tokens} tokens; raise hindsight_context_tokens, or lower max_turns"
        )
    return _rebuild(whole, [ELLIPSIS] * (len(bare.turns) + 1), limit, chat)


def _rebuild(
    trajectory: Trajectory, observations: Sequence[str], action_limit: int | None, chat: PromptFormat
) -> Trajectory:
    """The episode with other texts of its observations o_0 ... o_T, and actions of at most so many tokens."""
    ids = chat.opening(first_message(trajectory.instruction, observations[0]))
    turns: list[Turn] = []
    for t, turn in enumerate(trajectory.turns):
        action = list(trajectory.token_ids[slice(*turn.action_span)])
        if action_limit is not None and len(action) > action_limit:
            action = [*action[: action_limit - 1], action[-1]]  # with its stop token
        span = (len(ids), len(ids) + len(action))
        ids = [*ids, *action]
        if turn.result_in_tokens:
            ids += chat.result(observations[t + 1], closed=turn.closed)
        turns.append(replace(turn, observation=observations[t], action_span=span, result_end=len(ids)))
        if t + 1 < trajectory.num_steps:
            ids += chat.reply_prompt()
    return replace(trajectory, token_ids=tuple(ids), turns=tuple(turns))


def _even_share(lengths: Sequence[int], budget: int) -> int:
    """Largest m with `sum(min(length, m)) <= budget`; 0 where there is none."""
    low, high = 0, max(lengths, default=0)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(min(length, middle) for length in lengths) <= budget:
            low = middle
        else:
            high = middle - 1
    return low


def _cut(text: str, length: int, limit: int) -> str:
    """About the first `limit` of the text's `length` tokens, to the end of a word where there is one."""
    if length <= limit:
        return text
    kept = text[: max(0, len(text) * limit // length - len(ELLIPSIS))]
    shortened, space, _ = kept.rpartition(" ")
    return f"{shortened if space else kept} {ELLIPSIS}".strip()
