"""Options that several commands share, declared once, and the loading of the model they name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from mlx_qwen3.engine.settings import PrefixCache
    from mlx_qwen3.llm import LLM
    from mlx_qwen3.model.peers import Peers

Model = Annotated[
    str | None, typer.Option("--model", "-m", help="Short name (0.6b), repo id or folder.")
]
Dtype = Annotated[
    str | None, typer.Option(help="bfloat16, float16 or float32; default: the device's.")
]
System = Annotated[str | None, typer.Option(help="A system message.")]

MaxTokens = Annotated[
    int | None, typer.Option(help="Tokens to generate at most, thinking included.")
]
Temperature = Annotated[
    float | None, typer.Option(help="0 is greedy; default: the checkpoint's own.")
]
TopP = Annotated[float | None, typer.Option(help="Nucleus to draw from.")]
TopK = Annotated[int | None, typer.Option(help="Candidates to draw from.")]
MinP = Annotated[float | None, typer.Option(help="Least share of the best's odds.")]
PresencePenalty = Annotated[float | None, typer.Option(help="Against repetition, 0 to 2.")]
FrequencyPenalty = Annotated[float | None, typer.Option(help="The same, per occurrence.")]
RepetitionPenalty = Annotated[float | None, typer.Option(help="The same, as a factor; 1 is off.")]
Seed = Annotated[int | None, typer.Option(help="Same seed, same text.")]
Stop = Annotated[
    list[str] | None, typer.Option(help="End the answer before this text (repeatable).")
]
Thinking = Annotated[
    bool | None,
    typer.Option("--thinking/--no-thinking", help="Think first, or answer at once."),
]
ThinkingBudget = Annotated[
    int | None, typer.Option(help="Tokens of thinking before the answer is due.")
]
ThinkingPresencePenalty = Annotated[
    float | None, typer.Option(help="Of thinking, where it is to differ from the answer's.")
]
MaxKvSize = Annotated[
    int | None, typer.Option(help="Remember this many tokens, forget older ones.")
]
Mcp = Annotated[
    str | None, typer.Option(help="MCP servers the model may use: an mcpServers JSON file.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Let every tool call run unasked.")]
MaxSteps = Annotated[
    int | None, typer.Option(help="Replies of one turn that may call tools; default 20.")
]
KvBits = Annotated[int | None, typer.Option(help="Store the context in 4 or 8 bits.")]
NoPrefixCache = Annotated[
    bool, typer.Option("--no-prefix-cache", help="Keep nothing of what is read, on disk least.")
]
PrefixCacheSize = Annotated[
    str | None, typer.Option(help="Disk that long prompts read before may take; default: 8GB.")
]
Speculation = Annotated[
    str | None,
    typer.Option(help="lookup, draft or off: guess tokens ahead where it pays; same replies."),
]
Draft = Annotated[
    str | None, typer.Option(help="A smaller model of the same family to guess ahead with.")
]

Experts = Annotated[
    str | None,
    typer.Option(help="resident or streamed (from disk, as far as they do not fit)."),
]
MemoryBudget = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Memory for the model and its work, as in 6GB."),
]

Parallel = Annotated[
    str | None,
    typer.Option(help="tensor or pipeline: share the model with the processes of mlx.launch."),
]

# Parameters of a command that bear the names of LLM.stream's.
_OF_A_REPLY = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "thinking",
    "thinking_budget",
    "thinking_presence_penalty",
    "regex",
    "whitespace",
    "tool_choice",
    "raw",
    "max_kv_size",
    "kv_bits",
    "speculation",
)

DEMO_NOTE = (
    "no --model given: this is the bundled demo model, which can add, subtract and call tools; "
    "for a real one: --model 0.6b (mlx-qwen3 models lists them)"
)

STREAMED_NOTE = (
    "this model is larger than what memory can spare: its experts are read from disk as they are "
    "needed (--memory-budget SIZE sets how much is used)"
)


def reply_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """What LLM.stream takes out of a command's values (`context.params`), as far as given."""
    return {name: values[name] for name in _OF_A_REPLY if values.get(name) is not None}


def prefix_cache(no_prefix_cache: bool, size: str | None) -> bool | PrefixCache:
    """What LLM.from_folder gets as prefix_cache. Raises BadParameter for what is no size."""
    if no_prefix_cache and size is not None:
        raise typer.BadParameter("--no-prefix-cache leaves no use for --prefix-cache-size")
    if no_prefix_cache or size is None:
        return not no_prefix_cache
    from mlx_qwen3.engine.settings import PrefixCache

    return PrefixCache(disk_bytes=size_in_bytes(size, "--prefix-cache-size"))


def size_in_bytes(text: str, option: str) -> int:
    """ "8GB" or "8GiB" as bytes. Raises BadParameter for what is no size. option: who says it."""
    from mlx_qwen3.errors import OptionError
    from mlx_qwen3.sizes import parse_size

    try:
        return parse_size(text)
    except OptionError as exc:
        raise typer.BadParameter(f"{option} {text}: expected a size such as 500MB, 8GB") from exc


def open_model(
    model: str | None,
    dtype: str | None,
    prefix_cache: bool | PrefixCache = False,
    draft: str | None = None,
    *,
    experts: str | None = None,
    memory_budget: str | None = None,
    parallel: str | None = None,
    peers: Peers | None = None,
) -> LLM:
    """Load the model a command was given; the demo, with a word about it, when it was none.

    draft: the model to speculate with. experts, memory_budget, parallel: as `load` takes them.
    peers: the processes of `parallel`.
    Downloads what is not here yet, with a bar on a terminal. Raises as `mlx_qwen3.load` does,
    and BadParameter for a budget that is no size.
    """
    from mlx_qwen3.cli.peers import is_silent
    from mlx_qwen3.cli.terminal import note

    budget = None if memory_budget is None else size_in_bytes(memory_budget, "--memory-budget")
    if model is None and not is_silent(peers):
        note(DEMO_NOTE)
    name = "demo" if model is None else model
    folder, draft_folder = fetch(name), None if draft is None else fetch(draft)

    from mlx_qwen3.llm import LLM

    llm = LLM.from_folder(
        folder,
        dtype=dtype,
        prefix_cache=prefix_cache,
        experts=experts,
        memory_budget=budget,
        parallel=parallel,
        peers=peers,
    )
    if llm.model.expert_traffic is not None and experts is None and memory_budget is None:
        note(STREAMED_NOTE)
    if draft_folder is not None:
        llm.draft = LLM.from_folder(draft_folder, dtype=dtype)
    return llm


def fetch(name: str) -> Path:
    """The folder of a model; downloads what is not here yet, with a bar on a terminal."""
    from mlx_qwen3.cli.display import download_bar
    from mlx_qwen3.hub import resolve

    with download_bar(name) as progress:
        return resolve(name, progress=progress)
