"""A conversation: history, tools and settings, and one turn after the other."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mlx_qwen3.agent.history import Message, load_messages, save_messages, user
from mlx_qwen3.agent.loop import Approve, ToolResult, Turn
from mlx_qwen3.agent.tools import Offer, Tool, distinct
from mlx_qwen3.errors import OptionError

if TYPE_CHECKING:
    from mlx_qwen3.agent.mcp import McpServers
    from mlx_qwen3.generation.output import Completion, Event

Progress = Callable[[int, int], None]

MAX_STEPS = 20
MAX_RESULT = 20_000  # characters; some 5,000 tokens of English


class Talker(Protocol):
    """What a conversation needs of an LLM."""

    @property
    def mode(self) -> str:
        """How it thinks: "hybrid", "always" or "never"."""

    @property
    def context_length(self) -> int:
        """Tokens of prompt and reply together."""

    @property
    def tokenizer(self) -> Any:
        """Encodes text to token_ids."""

    def render(self, messages: Any, tools: Any = None, thinking: bool | None = None) -> str:
        """The prompt that the chat template makes of messages."""

    def stream(
        self, prompt: Any, *, progress: Progress | None = None, **options: Any
    ) -> Generator[Event, None, None]:
        """The events of a reply."""


class Conversation:
    """Talk with a model; it remembers, and it may act.

        chat = Conversation(llm, system="Be brief.", mcp="servers.json")
        print(chat.send("What time is it in Tokyo?").text)

    system: the system message; not one of `messages`, and so it outlives a reset.
    tools: functions, schemas in OpenAI's form (whose calls you answer yourself), or Tool objects.
    mcp: an `mcpServers` file or mapping, whose servers live as long as the conversation; or
    McpServers that several share, which are yours to close.
    approve: is shown each call and says whether it may run; None lets all of them.
    max_steps: replies of one turn that may call tools. messages: a history to go on from.
    options: what LLM.stream gets in every turn (thinking, max_tokens, temperature, ...).

    messages holds the turns in OpenAI's form, reasoning_content and all: it is the chat template
    that decides how much of it the model sees again (Qwen3's leave out the reasoning of earlier
    turns and keep it within a running turn). Not for several threads at once.
    Raises McpError, OptionError.
    """

    def __init__(
        self,
        llm: Talker,
        *,
        system: str | None = None,
        tools: Iterable[Tool | Offer] = (),
        mcp: McpServers | str | Path | Mapping[str, Any] | None = None,
        approve: Approve | None = None,
        max_steps: int = MAX_STEPS,
        messages: Iterable[Mapping[str, Any]] = (),
        **options: Any,
    ) -> None:
        if max_steps < 1:
            raise OptionError(f"max_steps is {max_steps}; expected 1 or more")
        self.llm = llm
        self.system = system
        self.options = options
        self.messages: list[Message] = [dict(message) for message in messages]
        self.max_steps = max_steps
        self.approve: Approve = approve or (lambda _: True)
        self._own = [Tool.of(tool) for tool in tools]
        self.servers = None if mcp is None else _servers(mcp)
        self._owns_servers = self.servers is not mcp

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the MCP servers that were started for this conversation."""
        if self.servers is not None and self._owns_servers:
            self.servers.close()

    @property
    def tools(self) -> tuple[Tool, ...]:
        """Everything the model may call, under the names it knows; waits for servers to start."""
        listed = self.servers.tools() if self.servers is not None else []
        return distinct([*self._own, *listed])

    def send(self, text: str | None = None, **options: Any) -> Completion:
        """One turn, to its end; returns the model's last reply. Arguments as in `stream`.

        finish_reason "tool_calls" means that calls are left for you to answer, or that the step
        limit was reached.
        """
        completion = None
        for event in self.stream(text, **options):
            if event.kind == "end":
                completion = event.completion
        if completion is None:
            raise RuntimeError("the reply ended without its last event")
        return completion

    def stream(
        self, text: str | None = None, *, progress: Progress | None = None, **options: Any
    ) -> Generator[Event | ToolResult, None, None]:
        """One turn as it happens: LLM.stream's events, and a ToolResult for each call.

        A reply that calls tools ends with its own "end" event, and the next reply follows; the
        turn is over when the iterator is. text: the user's message; None goes on from `messages`
        as they are, after you have answered calls yourself.
        options: for this turn only, over the conversation's own.
        However it ends (an error, Ctrl-C, closing the iterator), what was said until then stays
        in the history, and calls without a result count as cancelled; a message that nothing was
        said to leaves no trace. Raises what LLM.stream does, before anything is generated.
        """
        tools = {tool.name: tool for tool in self.tools}
        options = {**self.options, **options}
        if tools:
            options["tools"] = [tool.offer for tool in tools.values()]

        def reply(messages: Sequence[Message]) -> Generator[Event, None, None]:
            return self.llm.stream(self._with_system(messages), progress=progress, **options)

        pending = [] if text is None else [user(text)]
        first = reply([*self.messages, *pending])
        turn = Turn(
            reply, self.messages, pending, tools, self.approve, self.max_steps, self._result_limit
        )
        return turn.run(first)

    def prompt(self) -> list[Message]:
        """The messages as the model gets them, system message first."""
        return self._with_system(self.messages)

    def token_count(self) -> int:
        """How long the conversation is, in tokens, as the model would read it now."""
        if not self.prompt():
            return 0
        tools = [tool.offer for tool in self.tools]
        thinking = self.options.get("thinking")
        text = self.llm.render(self.prompt(), tools=tools or None, thinking=thinking)
        return len(self.llm.tokenizer.encode(text))

    def reset(self) -> None:
        """Forget the turns so far."""
        self.messages.clear()

    def save(self, path: str | Path) -> None:
        """Write system message and turns to a JSON file. Raises OptionError."""
        save_messages(path, self.prompt())

    def load(self, path: str | Path) -> None:
        """Go on from a saved conversation instead of this one. Raises OptionError."""
        messages = load_messages(path)
        if messages and messages[0]["role"] == "system":
            self.system = messages.pop(0).get("content")
        self.messages[:] = messages

    @property
    def _result_limit(self) -> int:
        # A token is rarely less than a character: a result never takes half of the context.
        return min(MAX_RESULT, self.llm.context_length // 2)

    def _with_system(self, messages: Sequence[Message]) -> list[Message]:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, *messages]


def _servers(mcp: McpServers | str | Path | Mapping[str, Any]) -> McpServers:
    # Imported here: a conversation without servers has no use for asyncio.
    from mlx_qwen3.agent.mcp import McpServers

    return mcp if isinstance(mcp, McpServers) else McpServers(mcp)
