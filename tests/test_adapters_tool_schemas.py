"""Schemas of tools: those of transformers, without transformers."""

import enum
import json
from typing import Any, Literal, Optional

import pytest
from transformers.utils import get_json_schema

from trl_mise.envs.adapter_tool_calls import ToolCall, ToolCallParser
from trl_mise.envs.adapter_tool_schemas import tool_prompt, tool_schema


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Tools:
    """Methods as GRPOTrainer takes them."""

    def plain(self, text: str, count: int, ratio: float, flag: bool = False) -> str:
        """Does something plain.

        It takes two lines to say so.

        Args:
            text: The text.
            count (`int`): How often,
                in words.
            ratio: How much: a share.
            flag: Whether to.

        Returns:
            What came of it.
        """
        return ""

    def nested(
        self,
        items: list[str],
        table: dict[str, int],
        either: int | str,
        maybe: Optional[str] = None,  # noqa: UP045
        kind: Literal["a", "b"] = "a",
        colour: Colour = Colour.RED,
        pair: tuple[int, str] = (1, "a"),
        anything: Any = None,
        rows: list[dict[str, float]] | None = None,
    ) -> dict[str, Any]:
        """Takes everything.

        Args:
            items: Some.
            table: A table.
            either: One or the other.
            maybe: Perhaps.
            kind: Which.
            colour: Its colour.
            pair: Two.
            anything: Whatever.
            rows: Rows.
        """
        return {}

    def choice(self, drink: str) -> str:
        """Orders.

        Args:
            drink: What to drink (choices: ["tea", "coffee"])
        """
        return drink

    def nothing(self) -> str:
        """Does nothing."""
        return ""


@pytest.mark.parametrize("name", ["plain", "nested", "choice", "nothing"])
def test_schemas_are_those_of_transformers(name: str) -> None:
    method = getattr(Tools(), name)
    expected = get_json_schema(method)
    expected["function"].pop("return", None)
    assert tool_schema(method) == expected


def test_what_transformers_refuses_is_left_open() -> None:
    def tool(self_made: "Missing", plain, *rest, **options):  # type: ignore[name-defined,no-untyped-def]  # noqa: F821
        pass

    function = tool_schema(tool)["function"]
    assert function["description"] == ""
    assert function["parameters"] == {
        "type": "object",
        "properties": {"self_made": {}, "plain": {}},
        "required": ["self_made", "plain"],
    }


def test_the_prompt_names_every_tool_and_shows_a_call_that_can_be_read() -> None:
    text = tool_prompt([tool_schema(Tools().plain), tool_schema(Tools().nothing)])
    schemas = [json.loads(line) for line in text.splitlines() if line.startswith('{"name": ')]
    assert [schema["name"] for schema in schemas] == ["plain", "nothing"]
    shown = next(line for line in text.splitlines() if line.startswith("<tool_call>"))
    assert ToolCallParser().parse(shown) == [ToolCall("the tool", {"argument": "value"})]
    assert tool_prompt([]) == ""
