"""Messages and tools to one prompt string, by the checkpoint's own Jinja chat template.

Byte for byte what transformers' `apply_chat_template(..., tokenize=False)` renders (version 5),
without transformers.
"""

import numbers
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlx_qwen3.errors import TemplateError, TokenizerError
from mlx_qwen3.text.folder import TokenizerSettings, one_line, read_chat_templates

if TYPE_CHECKING:
    import jinja2

Mode = Literal["hybrid", "always", "never"]
CallForm = Literal["json", "xml"]
ThinkingState = Literal["open", "closed", "none"]

_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
_ASSISTANT_HEADER = "<|im_start|>assistant\n"
_END_OF_TURN = "<|im_end|>"
_PROBE = ({"role": "user", "content": "Hi"},)
# What a template's own expressions can raise beside Jinja's errors ("None + str" and the like).
_EXPRESSION_ERRORS = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError)


class ChatTemplate:
    """A checkpoint's chat template, or its set of named ones ("default", "tool_use").

    source: the template, or name -> template.
    special_tokens: variables the template sees, such as {"eos_token": "<|im_end|>"}.
    Compiled on the first rendering.
    """

    def __init__(
        self, source: str | Mapping[str, str], special_tokens: Mapping[str, str] | None = None
    ) -> None:
        self.sources = {"default": source} if isinstance(source, str) else dict(source)
        self.special_tokens = dict(special_tokens or {})
        self._compiled: dict[str, jinja2.Template] = {}

    @classmethod
    def from_folder(cls, folder: str | Path) -> "ChatTemplate":
        """The template of a checkpoint folder, without loading its tokenizer.

        Raises TokenizerError when the folder has none, or its files are malformed.
        """
        settings = TokenizerSettings.from_folder(Path(folder))
        sources = read_chat_templates(Path(folder), settings.options)
        if not sources:
            raise TokenizerError(
                f"{folder} has no chat template (tokenizer_config.json, chat_template.jinja); "
                "it is a base model: give it a raw prompt"
            )
        return cls(sources, settings.named)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The prompt for these messages.

        messages: {"role", "content"} and, for an assistant, reasoning_content and tool_calls
        (OpenAI's form, arguments as an object or as its JSON text); keys that are None count as
        absent. tools: JSON schemas in OpenAI's form. add_generation_prompt: end with the header
        of the assistant's turn. variables: whatever the template knows, such as
        enable_thinking=False.
        Raises TemplateError when the template refuses (one line, in the template's words).
        """
        chat = _plain_messages(messages)
        context = {**self.special_tokens, "documents": None, **_plain(variables, "variables")}
        context |= {
            "tools": None if tools is None else _plain_tools(tools),
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._render(self._pick(tools is not None), chat, context)
        except TemplateError:
            if not _lacks_content(chat):
                raise
            return self._render(self._pick(tools is not None), _with_content(chat), context)

    @cached_property
    def mode(self) -> Mode:
        """How the checkpoint thinks, found by rendering.

        "hybrid": enable_thinking changes the prompt (Qwen3). "always": the generation prompt
        opens <think> by itself (Thinking-2507). "never": neither (Instruct-2507).
        Raises TemplateError when the template cannot render one plain user message.
        """
        on, off = (self.render(_PROBE, enable_thinking=enabled) for enabled in (True, False))
        if on != off:
            return "hybrid"
        return "always" if thinking_state(self.render(_PROBE)) == "open" else "never"

    @cached_property
    def call_form(self) -> CallForm:
        """How the checkpoint writes tool calls: Qwen3's JSON, or Qwen3-Coder's XML."""
        return "xml" if any("<function=" in source for source in self.sources.values()) else "json"

    def _pick(self, has_tools: bool) -> str:
        for name in ("tool_use", "default") if has_tools else ("default",):
            if name in self.sources:
                return name
        raise TemplateError(
            f"the checkpoint names its chat templates {', '.join(sorted(self.sources))}; "
            'expected one called "default"'
        )

    def _render(self, name: str, chat: list[dict[str, Any]], context: dict[str, Any]) -> str:
        from jinja2 import TemplateError as JinjaError

        from mlx_qwen3.text.sandbox import compile_template

        try:
            if name not in self._compiled:
                self._compiled[name] = compile_template(self.sources[name])
            return self._compiled[name].render({"messages": chat, **context})
        except (JinjaError, RecursionError, *_EXPRESSION_ERRORS) as exc:
            raise TemplateError(_explain(exc)) from exc


def thinking_state(prompt: str) -> ThinkingState:
    """What a rendered prompt leaves the model in: where its output begins.

    "open": inside a <think> that the prompt opened. "closed": after a think block that the
    prompt already closed, so an answer follows. "none": neither, the model may open one itself.
    Looks at the newest assistant turn only, where the prompt has one in Qwen3's format, else
    at the very end.
    """
    head, header, tail = prompt.rpartition(_ASSISTANT_HEADER)
    if not header:
        found = re.search(r"<think>\s*(</think>)?\s*\Z", head + tail)
        return "none" if found is None else "closed" if found[1] else "open"
    turn = tail.lstrip()
    if not turn.startswith("<think>") or _END_OF_TURN in turn:
        return "none"
    return "closed" if "</think>" in turn else "open"


def _plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if not messages:
        raise TemplateError("no messages; expected at least one {'role', 'content'}")
    return [_plain_message(message, place) for place, message in enumerate(messages)]


def _plain_message(message: Any, place: int) -> dict[str, Any]:
    where = f"messages[{place}]"
    if not isinstance(message, Mapping):
        raise TemplateError(f"{where} is a {type(message).__name__}, expected an object")
    plain: dict[str, Any] = _plain({k: v for k, v in message.items() if v is not None}, where)
    reasoning = next((plain[k] for k in _REASONING_KEYS if plain.get(k) is not None), None)
    if reasoning is not None:  # the names other clients use, and the one gpt-oss templates read
        plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
    return plain


def _plain_tools(tools: Sequence[Mapping[str, Any]]) -> list[Any]:
    for place, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise TemplateError(
                f"tools[{place}] is a {type(tool).__name__}, expected a JSON schema object"
            )
    return [_plain(tool, f"tools[{place}]") for place, tool in enumerate(tools)]


def _plain(value: Any, where: str) -> Any:
    """A copy made of plain JSON types, which is all an untrusted template may see."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind, convert in _CONVERSIONS:
        if isinstance(value, kind):
            return convert(value)
    if isinstance(value, Mapping):
        return {_plain(k, where): _plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        items = [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    raise TemplateError(f"{where} is a {type(value).__name__}, expected text or JSON values")


# Subclasses (enums, numpy's numbers) lose what they add.
_CONVERSIONS: tuple[tuple[type, Any], ...] = (
    (str, str.__str__),
    (numbers.Integral, int),
    (numbers.Real, float),
)


def _lacks_content(chat: list[dict[str, Any]]) -> bool:
    return any("content" not in message for message in chat)


def _with_content(chat: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """OpenAI clients send content null beside tool_calls; templates often need a string."""
    return [message if "content" in message else {**message, "content": ""} for message in chat]


def _explain(exc: Exception) -> str:
    line = getattr(exc, "lineno", None)
    if line is not None:
        return f"the chat template is broken at line {line}: {one_line(exc)}"
    return f"the chat template refused these messages: {one_line(exc) or type(exc).__name__}"
