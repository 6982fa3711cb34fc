"""Run Qwen3 on Apple Silicon: streamed, with thinking under control.

    from mlx_qwen3 import load

    llm = load("0.6b")
    print(llm.generate("Why is the sky blue?").text)

Nothing heavy is imported until a name below is used.
"""

from typing import TYPE_CHECKING, Any

from mlx_qwen3._version import __version__
from mlx_qwen3.errors import (
    BusyError,
    CacheFullError,
    CheckpointError,
    ConfigError,
    ContextOverflowError,
    DeviceError,
    EngineError,
    McpError,
    ModelNotFoundError,
    OptionError,
    PeerError,
    Qwen3Error,
    SchemaError,
    TemplateError,
    TokenizerError,
    WeightsError,
)

if TYPE_CHECKING:
    from mlx_qwen3.agent.conversation import Conversation
    from mlx_qwen3.agent.loop import ToolResult
    from mlx_qwen3.agent.mcp import McpServers
    from mlx_qwen3.agent.tools import Tool
    from mlx_qwen3.engine.settings import PrefixCache
    from mlx_qwen3.generation.output import CallDelta, Completion, Event, Usage
    from mlx_qwen3.generation.sampling import SamplingParams
    from mlx_qwen3.llm import LLM, load
    from mlx_qwen3.text.tool_calls import ToolCall
    from mlx_qwen3.text.tool_schemas import tool_schema

__all__ = [
    "LLM",
    "BusyError",
    "CacheFullError",
    "CallDelta",
    "CheckpointError",
    "Completion",
    "ConfigError",
    "ContextOverflowError",
    "Conversation",
    "DeviceError",
    "EngineError",
    "Event",
    "McpError",
    "McpServers",
    "ModelNotFoundError",
    "OptionError",
    "PeerError",
    "PrefixCache",
    "Qwen3Error",
    "SamplingParams",
    "SchemaError",
    "TemplateError",
    "TokenizerError",
    "Tool",
    "ToolCall",
    "ToolResult",
    "Usage",
    "WeightsError",
    "__version__",
    "load",
    "tool_schema",
]

_LAZY = {
    "LLM": "mlx_qwen3.llm",
    "load": "mlx_qwen3.llm",
    "CallDelta": "mlx_qwen3.generation.output",
    "PrefixCache": "mlx_qwen3.engine.settings",
    "Completion": "mlx_qwen3.generation.output",
    "Event": "mlx_qwen3.generation.output",
    "Usage": "mlx_qwen3.generation.output",
    "SamplingParams": "mlx_qwen3.generation.sampling",
    "ToolCall": "mlx_qwen3.text.tool_calls",
    "tool_schema": "mlx_qwen3.text.tool_schemas",
    "Conversation": "mlx_qwen3.agent.conversation",
    "McpServers": "mlx_qwen3.agent.mcp",
    "Tool": "mlx_qwen3.agent.tools",
    "ToolResult": "mlx_qwen3.agent.loop",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
