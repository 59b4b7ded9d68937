"""Token pieces of a conversation: the chat template, cut where the environment's text goes in.

Sampled ids are never re-tokenised. So instead of rendering the growing conversation again and again, the template is
rendered once with marker texts and cut at the markers; the pieces between them are tokenised with special tokens, the
environment's text without, so that an observation that contains `<|im_end|>` cannot end a turn.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

After = Literal["observation", "action", "open_action"]

_USER_1, _REPLY, _USER_2 = "MISEUSERONE", "MISEREPLY", "MISEUSERTWO"


class PromptFormat(Protocol):
    """What rollout and hindsight need to know about a tokenizer's conversation format."""

    stop_token_ids: tuple[int, ...]

    def encode_text(self, text: str) -> list[int]: ...

    def decode(self, token_ids: Sequence[int]) -> str: ...

    def opening(self, text: str) -> list[int]: ...

    def result(self, text: str, *, closed: bool) -> list[int]: ...

    def reply_prompt(self) -> list[int]: ...

    def closing_length(self, token_ids: Sequence[int]) -> int: ...

    def question(self, text: str, *, after: After) -> list[int]: ...


class PlainFormat:
    """Format without a chat template: text is joined by blank lines. For single-turn prompts only.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): needs no chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        eos = tokenizer.eos_token_id
        self.stop_token_ids: tuple[int, ...] = () if eos is None else (int(eos),)
        # A chat model's turn tokens are often special without having a name (eos, pad, ...) in the tokenizer.
        added = getattr(tokenizer, "added_tokens_decoder", {})
        flagged = {int(token_id) for token_id, token in added.items() if token.special}
        self.special_ids = frozenset({*map(int, tokenizer.all_special_ids), *flagged} - {tokenizer.unk_token_id})

    def encode_text(self, text: str) -> list[int]:
        """Ids of text that must not inject special tokens."""
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        # Where special tokens are ordinary words of the vocabulary as well, text can still spell them.
        return [int(token) for token in encoded["input_ids"] if token not in self.special_ids]

    def encode_markup(self, text: str) -> list[int]:
        """Ids of the template's own text, special tokens included."""
        return [int(token) for token in self.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def decode(self, token_ids: Sequence[int]) -> str:
        # Without clean-up: "red , blue" must not become "red, blue" on its way to the environment.
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def opening(self, text: str) -> list[int]:
        return self.encode_text(text)

    def result(self, text: str, *, closed: bool) -> list[int]:
        return self.encode_text(f"\n\n{text}")

    def reply_prompt(self) -> list[int]:
        return self.encode_text("\n")

    def closing_length(self, token_ids: Sequence[int]) -> int:
        return 0

    def question(self, text: str, *, after: After) -> list[int]:
        return self.encode_text(f"\n\n{text}\n")


class ChatFormat(PlainFormat):
    """The pieces of a tokenizer's chat template.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): must have a chat template.
        system_prompt (`str`, *optional*): system message put in front of every conversation.
        template_kwargs (`Mapping`, *optional*): passed to the chat template, e.g. `{"enable_thinking": False}`.

    Raises:
        ValueError: the tokenizer has no chat template, or the template does not keep the texts of the messages.
    """

    def __init__(
        self, tokenizer: Any, system_prompt: str | None = None, template_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(tokenizer)
        self._template_kwargs = dict(template_kwargs or {})
        if getattr(tokenizer, "chat_template", None) is None:
            raise ValueError(
                f"processing_class {type(tokenizer).__name__} has no chat template, but episodes of several turns "
                "need one; use an instruct model's tokenizer or set `processing_class.chat_template`"
            )
        system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
        first = {"role": "user", "content": _USER_1}
        dialogue = [first, {"role": "assistant", "content": _REPLY}, {"role": "user", "content": _USER_2}]
        head, tail = self._cut(self._render(system + [first]), [_USER_1])
        pieces = self._cut(self._render(system + dialogue), [_USER_1, _REPLY, _USER_2])

        self._head = self.encode_markup(head)
        self._reply_prompt = self.encode_markup(tail)
        between = self.encode_markup(pieces[2])
        # The piece between an answer and the next message starts with the token that ends the answer, if the template
        # has one; the policy samples that token itself, so it must not appear twice.
        ended = self._cut(self._render(system + dialogue[:2], reply=False), [_USER_1, _REPLY])[2]
        end = self._find_turn_end(between, self.encode_markup(ended))
        self._turn_end = end
        self._user_header = between[len(end) :]
        self.stop_token_ids = tuple(dict.fromkeys([*end[-1:], *self.stop_token_ids]))
        if not self.stop_token_ids:
            raise ValueError(
                "processing_class has no eos token and its chat template does not end a turn with a special token: "
                "generation would never stop; set `processing_class.eos_token`"
            )

    def _render(self, messages: list[dict[str, str]], *, reply: bool = True) -> str:
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=reply, **self._template_kwargs
        )

    def _find_turn_end(self, between: list[int], ended: list[int]) -> list[int]:
        """What ends an answer: `between` up to its first special token, if that is no part of the next header.

        Args:
            between (`list[int]`): from an answer to the next user message.
            ended (`list[int]`): after an answer that is the last message.
        """
        position = next((i for i, token in enumerate(between) if token in self.special_ids), None)
        if position is None or self.decode(between[:position]).strip():
            return []
        endings = {next((token for token in ended if token in self.special_ids), None), self.tokenizer.eos_token_id}
        return between[: position + 1] if between[position] in endings else []

    def _cut(self, rendered: str, markers: list[str]) -> list[str]:
        pieces = []
        for marker in markers:
            before, found, rendered = rendered.partition(marker)
            if not found:
                raise ValueError(
                    "the chat template of processing_class drops or rewrites message contents (a user, assistant, "
                    "user conversation does not come out with its texts in order); use a template that keeps them"
                )
            pieces.append(before)
        return [*pieces, rendered]

    def opening(self, text: str) -> list[int]:
        """`[system] + first user message + generation prompt`: what the policy reads before its first action."""
        return [*self._head, *self.encode_text(text), *self._reply_prompt]

    def result(self, text: str, *, closed: bool) -> list[int]:
        """An observation after an action, *without* the closing [`reply_prompt`], so that a question may follow it.

        Args:
            text (`str`): the observation.
            closed (`bool`): the policy sampled the stop token of its turn; otherwise it is added here (not trainable).
        """
        return [*([] if closed else self._turn_end), *self._user_header, *self.encode_text(text)]

    def reply_prompt(self) -> list[int]:
        """Closes the user's message and opens the assistant's."""
        return list(self._reply_prompt)

    def closing_length(self, token_ids: Sequence[int]) -> int:
        """How many of the last tokens only close a message and open the assistant's, as [`reply_prompt`] does."""
        prompt = self._reply_prompt
        if prompt and list(token_ids[-len(prompt) :]) == prompt:
            return len(prompt)
        # Another role's header, or a template that opens a reply in its own way after a tool: from the last token that
        # ends a turn on. The text before it may contain one, what comes after it may not.
        ends = [i for i, token in enumerate(token_ids) if token in self._turn_end[-1:]]
        return len(token_ids) - ends[-1] if ends and len(token_ids) - ends[-1] <= 2 * len(prompt) else 0

    def question(self, text: str, *, after: After) -> list[int]:
        """An evaluator's question that continues a prefix of the conversation; the next token is the verdict.

        Args:
            text (`str`): the question.
            after (`"observation"`, `"action"` or `"open_action"`): what the prefix ends with: an observation inside a
                user message, an action with its stop token, or an action that ran out of tokens.
        """
        if after == "observation":
            return [*self.encode_text(f"\n\n{text}"), *self._reply_prompt]
        return [*self.result(text, closed=after == "action"), *self._reply_prompt]
