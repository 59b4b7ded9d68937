"""What the policy sees of a long episode: the instruction and the last turns. No torch."""

from collections.abc import Sequence

from .chat import PromptFormat
from .types import Turn, Window


def first_message(instruction: str, observation: str) -> str:
    """The first user message: the instruction in front of the observation, unless that shows it already."""
    return observation if not instruction or instruction in observation else f"{instruction}\n\n{observation}"


def widest_window(
    token_ids: Sequence[int],
    turns: Sequence[Turn],
    observation: str,
    instruction: str,
    chat: PromptFormat,
    *,
    history: int,
    max_tokens: int,
) -> Window | None:
    """The window of the last `history` turns and the present observation, or of fewer turns where these do not fit.

    While the window reaches back to the beginning it shows exactly the episode's tokens. Later it opens with the
    instruction (o_0 where the environment gives none, since that is where it says what to do) and the observation of
    its first turn; from there on, actions and observations are again exactly the episode's tokens.

    Args:
        token_ids (`Sequence[int]`): `(L,)` the episode so far, up to the prompt for the next action.
        turns (`Sequence[Turn]`): those that are over.
        observation (`str`): what the next action answers.
        instruction (`str`): the task; may be empty.
        chat ([`PromptFormat`]): of the opening.
        history (`int`): most turns shown before the present observation.
        max_tokens (`int`): most tokens of the window.

    Returns:
        [`Window`], or `None` where the present observation alone is too long.
    """
    task = instruction or (turns[0].observation if turns else "")
    for first in range(max(0, len(turns) - history), len(turns) + 1):
        start = turns[first].action_span[0] if first < len(turns) else len(token_ids)
        if first == 0:
            head = tuple(token_ids[:start])
        else:
            shown = turns[first].observation if first < len(turns) else observation
            head = tuple(chat.opening(first_message(task, shown)))
        if len(head) + len(token_ids) - start <= max_tokens:
            return Window(head, start)
    return None
