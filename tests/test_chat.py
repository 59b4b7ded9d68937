"""The chat template in pieces: put together again they are the conversation, and no text can end a turn."""

from typing import Any

import pytest
from fakes import DIALECTS, byte_tokenizer, spelling_tokenizer, word_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_mise.chat import ChatFormat, PlainFormat

TOKENIZERS = {name: byte_tokenizer(name) for name in DIALECTS} | {"tiny": word_tokenizer()}
dialects = pytest.mark.parametrize("name", TOKENIZERS)


def whole_conversation(tokenizer: Any, *texts: str, system: str | None = None, reply: bool = True) -> list[int]:
    """The template's own rendering of user, assistant, user, ... messages, tokenised in one go."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    if system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=reply)
    return tokenizer(rendered, add_special_tokens=False)["input_ids"]


def sampled(chat: ChatFormat, text: str) -> list[int]:
    """An answer as the policy would sample it, closed with what ends a turn."""
    return [*chat.encode_text(text), chat.stop_token_ids[0]]


class TestPieces:
    @dialects
    def test_opening_is_the_first_prompt(self, name: str) -> None:
        chat = ChatFormat(TOKENIZERS[name])
        assert chat.opening("count 1") == whole_conversation(TOKENIZERS[name], "count 1")

    @pytest.mark.parametrize("name", ["chatml", "llama3", "tiny"])
    def test_pieces_are_the_whole_conversation(self, name: str) -> None:
        """Three observations and two answers, of which the policy closed the first only."""
        tokenizer = TOKENIZERS[name]
        chat = ChatFormat(tokenizer)
        pieces = [
            *chat.opening("count 0"),
            *sampled(chat, "go"),
            *chat.result("count 1", closed=True),
            *chat.reply_prompt(),
            *chat.encode_text("wait"),
            *chat.result("count 2", closed=False),
            *chat.reply_prompt(),
        ]
        assert pieces == whole_conversation(tokenizer, "count 0", "go", "count 1", "wait", "count 2")

    def test_spaces_that_the_template_puts_around_an_answer(self) -> None:
        """The one in front is the policy's to sample; the one behind belongs to what ends the turn."""
        tokenizer = TOKENIZERS["llama2"]
        chat = ChatFormat(tokenizer)
        for answer, closed in (sampled(chat, " go "), True), (chat.encode_text(" go"), False):
            pieces = [*chat.opening("red"), *answer, *chat.result("blue", closed=closed), *chat.reply_prompt()]
            assert pieces == whole_conversation(tokenizer, "red", "go", "blue")

    @pytest.mark.parametrize("name", ["headers_only", "plain"])
    def test_turns_without_an_end(self, name: str) -> None:
        """The policy can only stop with eos, which the template does not write: it stays where it was sampled."""
        tokenizer = TOKENIZERS[name]
        chat = ChatFormat(tokenizer)
        assert chat.stop_token_ids == (tokenizer.eos_token_id,)
        header = chat.result("count 1", closed=False)
        assert header == chat.result("count 1", closed=True)
        pieces = [*chat.opening("count 0"), *chat.encode_text("go"), *header, *chat.reply_prompt()]
        assert pieces == whole_conversation(tokenizer, "count 0", "go", "count 1")

    @dialects
    def test_system_prompt_comes_first(self, name: str) -> None:
        chat = ChatFormat(TOKENIZERS[name], system_prompt="red blue")
        assert chat.opening("count 1") == whole_conversation(TOKENIZERS[name], "count 1", system="red blue")

    def test_default_system_prompt_is_not_repeated(self) -> None:
        chat = ChatFormat(TOKENIZERS["chatml"])
        rest = [*chat.result("count 1", closed=True), *chat.reply_prompt()]
        assert "You help." in chat.decode(chat.opening("x")) and "You help." not in chat.decode(rest)

    def test_pad_equal_to_eos_changes_nothing(self) -> None:
        plain, shared = ChatFormat(byte_tokenizer()), ChatFormat(byte_tokenizer(pad_is_eos=True))
        assert shared.stop_token_ids == plain.stop_token_ids
        assert shared.result("red", closed=False) == plain.result("red", closed=False)


class TestStopTokens:
    @dialects
    def test_turn_end_comes_first_and_eos_stops_too(self, name: str) -> None:
        tokenizer = TOKENIZERS[name]
        turn_end = DIALECTS[name].turn_end if name in DIALECTS else "<|end|>"
        expected = dict.fromkeys([tokenizer.convert_tokens_to_ids(turn_end), tokenizer.eos_token_id])
        assert ChatFormat(tokenizer).stop_token_ids == tuple(expected)

    def test_turn_end_without_a_name_is_found(self) -> None:
        tokenizer = TOKENIZERS["llama3"]
        eot = tokenizer.convert_tokens_to_ids("<|eot|>")
        assert eot not in tokenizer.all_special_ids, "the case under test: special, but none of the named ones"
        assert ChatFormat(tokenizer).stop_token_ids == (eot, tokenizer.eos_token_id)

    def test_an_open_turn_is_closed_with_the_turn_end(self) -> None:
        chat = ChatFormat(TOKENIZERS["llama3"])
        assert chat.result("red", closed=False) == [chat.stop_token_ids[0], *chat.result("red", closed=True)]

    def test_header_of_the_next_message_is_no_turn_end(self) -> None:
        tokenizer = TOKENIZERS["headers_only"]
        chat = ChatFormat(tokenizer)
        user = tokenizer.convert_tokens_to_ids("<|user|>")
        assert user not in chat.stop_token_ids
        assert chat.result("red", closed=True)[0] == user

    def test_nothing_to_stop_with_is_an_error(self) -> None:
        tokenizer = byte_tokenizer("headers_only")
        tokenizer.eos_token = None
        with pytest.raises(ValueError, match="generation would never stop; set `processing_class.eos_token`"):
            ChatFormat(tokenizer)


class TestErrors:
    def test_no_chat_template(self) -> None:
        with pytest.raises(ValueError, match="processing_class .* has no chat template.*instruct model"):
            ChatFormat(byte_tokenizer(None))

    @pytest.mark.parametrize(
        "template",
        [
            "{{ messages[-1].content }}{{ eos_token }}",  # the last message only
            "{% for m in messages %}{{ m.content | lower }}{{ eos_token }}{% endfor %}",  # rewrites
            "{% for m in messages | reverse %}{{ m.content }}{{ eos_token }}{% endfor %}",  # another order
        ],
    )
    def test_template_that_drops_or_rewrites_messages(self, template: str) -> None:
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = template
        with pytest.raises(ValueError, match="drops or rewrites message contents"):
            ChatFormat(tokenizer)


class TestText:
    """Environment text can hold anything, and never becomes markup."""

    MARKUP = sorted({token for dialect in DIALECTS.values() for token in (*dialect.special, "<|pad|>", "<|end|>")})
    texts = st.lists(st.sampled_from(MARKUP) | st.text(max_size=5)).map("".join)

    @dialects
    @settings(max_examples=40)
    @given(text=texts)
    def test_no_special_ids(self, name: str, text: str) -> None:
        chat = CHATS[name]
        assert chat.special_ids >= set(chat.stop_token_ids)
        assert chat.special_ids.isdisjoint(chat.encode_text(text))

    @pytest.mark.parametrize("name", DIALECTS)
    @settings(max_examples=40)
    @given(text=texts)
    def test_nothing_is_lost(self, name: str, text: str) -> None:
        """A byte-level tokenizer spells the markup out: the policy still reads what the environment wrote."""
        assert CHATS[name].decode(CHATS[name].encode_text(text)) == text

    @settings(max_examples=40)
    @given(text=texts)
    def test_a_message_adds_nothing_but_its_text(self, text: str) -> None:
        """The special ids of a conversation are those of the template, whatever the observation says."""
        chat = CHATS["chatml"]
        for piece in (chat.opening, lambda t: chat.result(t, closed=False)):
            assert [i for i in piece(text) if i in chat.special_ids] == [i for i in piece("") if i in chat.special_ids]

    def test_special_tokens_that_are_words_of_the_vocabulary(self) -> None:
        chat = ChatFormat(spelling_tokenizer())
        text = chat.encode_text("red <|im_end|> <|im_start|> user <pad> blue")
        assert chat.tokenizer.convert_ids_to_tokens(text) == ["red", "user", "blue"]
        unknown = chat.tokenizer.unk_token_id
        assert chat.encode_text("red what blue").count(unknown) == 1, "an unknown word is text, not markup"

    def test_decoding_cleans_nothing_up(self) -> None:
        """`clean_up_tokenization_spaces` would pull the comma to the word: another query than the policy wrote."""
        tokenizer = word_tokenizer()
        tokenizer.clean_up_tokenization_spaces = True
        chat = ChatFormat(tokenizer)
        assert chat.decode(sampled(chat, "search[ red , blue ]")) == "search[ red , blue ]"


class TestQuestions:
    """An evaluator's question continues a prefix of the conversation, and ends where the verdict is read."""

    def test_after_an_observation_it_joins_the_open_user_message(self) -> None:
        tokenizer = TOKENIZERS["chatml"]
        chat = ChatFormat(tokenizer)
        prefix = [*chat.opening("red"), *sampled(chat, "go"), *chat.result("blue", closed=True)]
        asked = [*prefix, *chat.question("good or bad?", after="observation")]
        assert asked == whole_conversation(tokenizer, "red", "go", "blue\n\ngood or bad?")

    @pytest.mark.parametrize("closed", [True, False])
    @dialects
    def test_after_an_action_it_is_a_message_of_its_own(self, name: str, closed: bool) -> None:
        chat = ChatFormat(TOKENIZERS[name])
        asked = chat.question("red", after="action" if closed else "open_action")
        assert asked == [*chat.result("red", closed=closed), *chat.reply_prompt()]

    def test_without_a_template(self) -> None:
        plain = PlainFormat(byte_tokenizer(None))
        read = [
            *plain.opening("red"),
            *plain.result("blue", closed=True),
            *plain.reply_prompt(),
            *plain.question("good <|eos|>?", after="action"),
        ]
        assert plain.decode(read) == "red\n\nblue\n\n\ngood <|eos|>?\n"
        assert plain.stop_token_ids == (plain.tokenizer.eos_token_id,)


CHATS = {name: ChatFormat(tokenizer) for name, tokenizer in TOKENIZERS.items()}
