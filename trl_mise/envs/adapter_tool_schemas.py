"""JSON schemas of tools from their type hints and docstrings, and the text that tells a policy of its tools.

The schemas are those of `transformers.utils.get_json_schema`, which TRL renders, made without transformers: an
environment must not need it. What that function refuses (an argument without a hint or a description, a type that JSON
has no word for) is left open here.
"""

import enum
import inspect
import json
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_TYPES: Mapping[Any, str] = {
    int: "integer",
    float: "number",
    str: "string",
    bool: "boolean",
    type(None): "null",
    list: "array",
    tuple: "array",
    dict: "object",
}
_SECTION = re.compile(r"^(Args|Arguments|Returns|Raises|Yields|Examples?|Notes?):\s*$")
_ARGUMENT = re.compile(r"^\**(\w+)(?:\s*\([^()\n]*\))?:\s*(.*)$")
_CHOICES = re.compile(r"\s*\(choices:\s*(.*?)\)\s*$", re.IGNORECASE)


def tool_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """The schema `{"type": "function", "function": {name, description, parameters}}` of a function or bound method.

    Args:
        function (callable): with type hints and a Google-style docstring.
    """
    description, documented = _docstring(inspect.getdoc(function) or "")
    hints = _type_hints(function)
    properties: dict[str, Any] = {}
    required = []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        properties[name] = _described(_type_schema(hints.get(name, Any)), documented.get(name))
        if parameter.default is parameter.empty:
            required.append(name)
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        parameters["required"] = required
    body = {"name": function.__name__, "description": description, "parameters": parameters}
    return {"type": "function", "function": body}


def tool_prompt(schemas: Sequence[Mapping[str, Any]]) -> str:
    """Tells a policy which tools there are and how to call them; works with any model, trained on tools or not.

    Args:
        schemas: from [`tool_schema`].
    """
    if not schemas:
        return ""
    listed = "\n".join(json.dumps(schema["function"], ensure_ascii=False) for schema in schemas)
    return (
        f"You have these tools, each with the JSON schema of its arguments:\n{listed}\n\n"
        "To use a tool, answer with\n"
        '<tool_call>{"name": "the tool", "arguments": {"argument": "value"}}</tool_call>\n'
        "You may call several tools in one answer. An answer without a tool call ends the task."
    )


def _type_hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except Exception:  # an annotation whose name cannot be found any more
        return {}


def _type_schema(hint: Any) -> dict[str, Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return _enum_schema(list(arguments))
    if origin in (Union, types.UnionType):
        return _union_schema(arguments)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _enum_schema([member.value for member in hint])
    schema: dict[str, Any] = {"type": _TYPES[origin or hint]} if (origin or hint) in _TYPES else {}
    if origin is list and arguments:
        schema["items"] = _type_schema(arguments[0])
    elif origin is tuple and arguments:
        schema["prefixItems"] = [_type_schema(argument) for argument in arguments if argument is not ...]
    elif origin is dict and len(arguments) == 2:
        schema["additionalProperties"] = _type_schema(arguments[1])
    return schema


def _union_schema(options: Sequence[Any]) -> dict[str, Any]:
    found = [_type_schema(option) for option in options if option is not type(None)]
    if len(found) == 1:
        schema = dict(found[0])
    elif all(option.keys() == {"type"} for option in found):
        names = sorted({option["type"] for option in found})
        schema = {"type": names[0] if len(names) == 1 else names}
    else:
        schema = {"anyOf": found}
    if type(None) in options:
        schema["nullable"] = True
    return schema


def _enum_schema(values: list[Any]) -> dict[str, Any]:
    names = list(dict.fromkeys(_TYPES[type(value)] for value in values if type(value) in _TYPES))
    return {"type": names[0] if len(names) == 1 else names, "enum": values}


def _described(schema: dict[str, Any], description: str | None) -> dict[str, Any]:
    if description is None:
        return schema
    choices = _CHOICES.search(description)
    if choices:
        try:
            schema["enum"] = json.loads(choices.group(1))
            description = description[: choices.start()]
        except ValueError:
            pass
    return {**schema, "description": description}


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """(what stands before the sections, the arguments' descriptions) of a Google-style docstring."""
    sections: dict[str, list[str]] = {"": []}
    current = ""
    for line in text.splitlines():
        heading = _SECTION.match(line)
        current = heading.group(1) if heading else current
        sections.setdefault(current, []).extend([] if heading else [line])
    documented: dict[str, str] = {}
    lines = [line for line in sections.get("Args", sections.get("Arguments", [])) if line.strip()]
    margin = min((len(line) - len(line.lstrip()) for line in lines), default=0)
    name = None
    for line in lines:
        entry = _ARGUMENT.match(line[margin:])
        if entry:
            name = entry.group(1)
            documented[name] = entry.group(2).strip()
        elif name is not None:
            documented[name] = f"{documented[name]} {line.strip()}".strip()
    return "\n".join(sections[""]).strip(), documented
