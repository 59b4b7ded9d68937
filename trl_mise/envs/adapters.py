"""Environments that were written for something else, as text environments, and text environments for TRL.

| Function | from | to |
|---|---|---|
| [`from_gymnasium`] | Gymnasium, text or named discrete actions | `TextEnv` |
| [`from_trl_environment`] | a class for `environment_factory` of TRL's GRPOTrainer | `TextEnv` |
| [`from_openenv`] | an OpenEnv client | `TextEnv` |
| [`as_trl_environment`] | `TextEnv` | a class for `environment_factory` of TRL's GRPOTrainer |

The trainer calls `environment_factory` once for every episode that it plays side by side, so each call must make an
environment of its own. Each adapter takes a factory in place of an environment, and `functools.partial` makes a
factory of the adapter, which can be pickled (worker processes need that) if its parts can:

```python
environment_factory=partial(from_gymnasium, partial(gymnasium.make, "FrozenLake-v1"), action_names=[...])
```

`partial(from_gymnasium, env)` with one instance serves one episode at a time; a second one that begins in it makes the
first fail with a message that says so.
"""

from .adapter_gymnasium import GymnasiumTextEnv, from_gymnasium
from .adapter_openenv import OpenEnvTextEnv, from_openenv
from .adapter_tool_calls import MalformedCall, ToolCall, ToolCallParser, format_tool_call
from .adapter_trl import TRLToolEnv, from_trl_environment
from .adapter_trl_export import as_trl_environment

__all__ = [
    "GymnasiumTextEnv",
    "MalformedCall",
    "OpenEnvTextEnv",
    "TRLToolEnv",
    "ToolCall",
    "ToolCallParser",
    "as_trl_environment",
    "format_tool_call",
    "from_gymnasium",
    "from_openenv",
    "from_trl_environment",
]
