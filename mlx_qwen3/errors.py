"""Everything this package raises on purpose.

    Qwen3Error
    ├── CheckpointError          a model folder that cannot be used as it is
    │   ├── ConfigError          config.json: missing, wrong architecture, impossible values
    │   ├── WeightsError         a tensor or file: missing, extra, misshapen, truncated, refused
    │   └── TokenizerError       tokenizer or chat template: missing or unreadable
    ├── ModelNotFoundError       no such model: unknown name, not downloaded, no network
    ├── OptionError              an option unknown or out of range (also a ValueError)
    │   └── SchemaError          a schema, regex or grammar that cannot be enforced or satisfied
    ├── TemplateError            the chat template refused the messages
    ├── ContextOverflowError     prompt and max_tokens do not fit the context
    ├── CacheFullError           more tokens than a cache was made for
    ├── DeviceError              this machine cannot do what was asked
    ├── BusyError                no room for one more reply now; says when to ask again
    ├── PeerError                processes of one model that are missing, differ or went away
    ├── EngineError              the engine failed while it worked on a reply
    └── McpError                 a list of MCP servers that cannot be read, or no SDK to reach them

Every message is one line for a person: what was found, what was expected, what to do.
"""


class Qwen3Error(Exception):
    """Base of every error below; catch this to catch them all."""


class CheckpointError(Qwen3Error):
    """A model folder that cannot be used as it is."""


class ConfigError(CheckpointError):
    """config.json is missing, of another architecture, or impossible."""


class WeightsError(CheckpointError):
    """A tensor or weight file is missing, extra, misshapen, truncated or refused."""


class TokenizerError(CheckpointError):
    """The tokenizer or its chat template is missing or unreadable."""


class ModelNotFoundError(Qwen3Error):
    """No such model: an unknown name, nothing downloaded, or no network."""


class OptionError(Qwen3Error, ValueError):
    """An option is unknown or out of range."""


class SchemaError(OptionError):
    """A schema, regex or grammar that cannot be enforced, or that nothing satisfies."""


class TemplateError(Qwen3Error):
    """The chat template refused the messages."""


class ContextOverflowError(Qwen3Error):
    """Prompt and max_tokens together do not fit the context."""


class CacheFullError(Qwen3Error):
    """A cache was asked to hold more tokens than it was made for."""


class DeviceError(Qwen3Error):
    """This machine cannot do what was asked."""


class BusyError(Qwen3Error):
    """No room for one more reply at the moment. retry_after: seconds after which to ask again."""

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class PeerError(Qwen3Error):
    """Processes that one model is spread over are missing, differ, or went away."""


class EngineError(Qwen3Error):
    """The engine failed while it worked on a reply, or before it could begin."""


class McpError(Qwen3Error):
    """A list of MCP servers cannot be read, or the `mcp` package is not installed."""
