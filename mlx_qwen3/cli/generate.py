"""`mlx-qwen3 generate`: one prompt, one reply."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_qwen3.cli import options
from mlx_qwen3.cli.peers import is_silent, joined

if TYPE_CHECKING:
    from mlx_qwen3.llm import LLM


# Options that only describe the reply are read from the context, all at once.
def generate(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help='What to ask; "-" reads it from stdin.')],
    model: options.Model = None,
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    presence_penalty: options.PresencePenalty = None,
    frequency_penalty: options.FrequencyPenalty = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    thinking: options.Thinking = None,
    thinking_budget: options.ThinkingBudget = None,
    thinking_presence_penalty: options.ThinkingPresencePenalty = None,
    system: options.System = None,
    tools: Annotated[
        str | None, typer.Option(help="JSON file with a list of tools the model may call.")
    ] = None,
    tool_choice: Annotated[
        str | None, typer.Option(help="auto, none, required, or the tool to call.")
    ] = None,
    schema: Annotated[
        str | None, typer.Option(help="JSON file with a schema that the answer must satisfy.")
    ] = None,
    regex: Annotated[str | None, typer.Option(help="What the whole answer must match.")] = None,
    grammar: Annotated[
        str | None, typer.Option(help="File with a Lark grammar of the answer.")
    ] = None,
    whitespace: Annotated[
        str | None, typer.Option(help="Of a schema's JSON: compact, spaced or free.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="No chat template.")] = False,
    max_kv_size: options.MaxKvSize = None,
    kv_bits: options.KvBits = None,
    no_prefix_cache: options.NoPrefixCache = False,
    prefix_cache_size: options.PrefixCacheSize = None,
    speculation: options.Speculation = None,
    draft: options.Draft = None,
    experts: options.Experts = None,
    memory_budget: options.MemoryBudget = None,
    dtype: options.Dtype = None,
    parallel: options.Parallel = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Answer one prompt, streamed."""
    arguments = options.reply_options(context.params)
    if tools is not None:
        arguments["tools"] = read_tools(tools)
    for name, file in (("schema", schema), ("grammar", grammar)):
        if file is not None:
            arguments[name] = read_text(file, name)
    if raw and (system, tools, thinking) != (None, None, None):
        raise typer.BadParameter("--raw leaves no place for --system, --tools and --thinking")
    kept = options.prefix_cache(no_prefix_cache, prefix_cache_size)
    text = read_stdin() if prompt == "-" else prompt
    question = text if raw else _messages(text.removesuffix("\n"), system)
    with joined(parallel) as peers:
        llm = options.open_model(
            model,
            dtype,
            kept,
            draft,
            experts=experts,
            memory_budget=memory_budget,
            parallel=parallel,
            peers=peers,
        )
        show = _follow if is_silent(peers) else _print_json if as_json else _print_stream
        show(llm, question, arguments)


def _follow(llm: LLM, question: Any, arguments: dict[str, Any]) -> None:
    """Make the steps of a reply that another process prints."""
    for _ in llm.stream(question, **arguments):
        pass


def _print_json(llm: LLM, question: Any, arguments: dict[str, Any]) -> None:
    import json

    from mlx_qwen3.cli.terminal import as_json, note

    completion = llm.generate(question, **arguments)
    for warning in completion.warnings:
        note(f"warning: {warning}")
    print(json.dumps(as_json(completion), ensure_ascii=False))


def _print_stream(llm: LLM, question: Any, arguments: dict[str, Any]) -> None:
    from mlx_qwen3.cli.terminal import note_figures, reply_view

    completion = None
    with reply_view(sys.stdout) as (printer, progress):
        for event in llm.stream(question, progress=progress, **arguments):
            printer.show(event)
            completion = event.completion
    if completion is not None:
        note_figures(completion)


def _messages(text: str, system: str | None) -> list[dict[str, str]]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    return [*messages, {"role": "user", "content": text}]


def read_stdin() -> str:
    """Everything on stdin. Raises OptionError when it is no text."""
    from mlx_qwen3.errors import OptionError

    try:
        return sys.stdin.read()
    except UnicodeDecodeError as exc:
        raise OptionError(f"stdin cannot be read as text ({exc}); expected UTF-8") from exc


def read_text(file: str, option: str) -> str:
    """The text of a file. Raises OptionError."""
    from pathlib import Path

    from mlx_qwen3.errors import OptionError

    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as exc:
        raise OptionError(f"--{option} {file}: cannot be read ({exc})") from exc


def read_tools(file: str) -> list[dict[str, Any]]:
    """The list of tools in a JSON file. Raises OptionError when it is none."""
    import json

    from mlx_qwen3.errors import OptionError

    text = read_text(file, "tools")
    try:
        tools = json.loads(text)
    except ValueError as exc:
        raise OptionError(f"--tools {file}: cannot be read as JSON ({exc})") from exc
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise OptionError(f"--tools {file}: expected a JSON list of tools (OpenAI's form)")
    return tools
