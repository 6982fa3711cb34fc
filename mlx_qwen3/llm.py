"""A loaded model that talks: messages in, events out.

    llm = load("0.6b")
    for event in llm.stream("Why is the sky blue?"):
        print(event.text, end="")

`load` and `LLM` are what most programs need; the parts (tokenizer, model, token loop) are
attributes and may be used alone.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

from mlx_qwen3.device import Device
from mlx_qwen3.engine.prefix_store import PrefixStore
from mlx_qwen3.engine.settings import PrefixCache
from mlx_qwen3.errors import CheckpointError, ContextOverflowError, OptionError, TokenizerError
from mlx_qwen3.generation.answer import AnswerOptions
from mlx_qwen3.generation.caches import CacheStore
from mlx_qwen3.generation.constraints import Vocabulary
from mlx_qwen3.generation.loop import Progress
from mlx_qwen3.generation.output import Completion, Event
from mlx_qwen3.generation.reply import Reply
from mlx_qwen3.generation.request import Request, Speculation
from mlx_qwen3.generation.sampling import SamplingParams
from mlx_qwen3.generation.speculator import Speculator, refuse_other_vocabulary
from mlx_qwen3.hub import resolve
from mlx_qwen3.model.config import token_ids
from mlx_qwen3.model.peers import Peers
from mlx_qwen3.model.residency import Residency, spare_bytes
from mlx_qwen3.model.transformer import Transformer
from mlx_qwen3.model.weights import load_model
from mlx_qwen3.text.template import CallForm, Mode, thinking_state
from mlx_qwen3.text.tokenizer import Tokenizer
from mlx_qwen3.text.tool_schemas import Tool, as_tools

Message = Mapping[str, Any]
Prompt = str | Sequence[Message] | Sequence[int]

DEFAULT_MAX_TOKENS = 32_768  # Qwen's recommendation for most queries
# Qwen's recommendations, for what a checkpoint's generation_config.json leaves open.
_MODE_DEFAULTS = {
    True: {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0},
    False: {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.0},
}
_FROM_GENERATION_CONFIG = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_SMALLEST_KV_SIZE = 5  # tokens: the first four are kept, and one must be able to move on


def load(
    model: str | Path,
    *,
    dtype: str | None = None,
    revision: str | None = None,
    prefix_cache: bool | PrefixCache = True,
    draft: str | Path | None = None,
    experts: str | None = None,
    memory_budget: str | int | None = None,
    parallel: str | None = None,
) -> LLM:
    """Load a model by short name ("0.6b", "demo"), repo id or folder; download it if need be.

    dtype: "bfloat16", "float16" or "float32"; None lets the device decide.
    prefix_cache: whether prompts read once are kept, in memory and (from 1,024 tokens on) on
    disk, so that what begins alike is not read again; a PrefixCache sets how much and where.
    draft: a smaller model of the same vocabulary, whose guesses the model verifies.
    experts: "resident", or "streamed" from disk as far as they do not fit the budget; None:
    streamed where the model does not fit otherwise. memory_budget: bytes, or a size such as
    "6GB", for weights, context and work together; None: what this device can spare.
    parallel: "tensor" spreads the model over the processes that `mlx.launch` started, which all
    make the same calls; replies are then read anew, and nothing is speculated or streamed.
    Raises ModelNotFoundError, CheckpointError (ConfigError, WeightsError, TokenizerError),
    OptionError for a draft of another vocabulary, DeviceError for a budget that is too small,
    PeerError where processes are missing or differ.
    """
    folder = resolve(model, revision=revision)
    llm = LLM.from_folder(
        folder,
        dtype=dtype,
        prefix_cache=prefix_cache,
        experts=experts,
        memory_budget=memory_budget,
        parallel=parallel,
    )
    if draft is not None:
        llm.draft = LLM.from_folder(resolve(draft), dtype=dtype)
    return llm


class LLM:
    """A model, its tokenizer and its defaults. Safe to use from several threads.

    model: `llm.model(token_ids)` -> logits. tokenizer: `encode`, `decode`.
    context_length: tokens of prompt and reply together that the model was made for.
    prefix_store: where caches go between replies; None: each reply reads all of its prompt.
    draft: a smaller model of the same vocabulary to speculate with, None for none.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        generation_config: Mapping[str, Any],
        *,
        load_seconds: float = 0.0,
        prefix_store: CacheStore | None = None,
    ) -> None:
        self.model = model
        self.prefix_store = prefix_store
        self.tokenizer = tokenizer
        self.generation_config = dict(generation_config)
        self.load_seconds = load_seconds
        # Reentrant: garbage collection may close a forgotten stream in the midst of a step.
        self._step = threading.RLock()
        self._draft: LLM | None = None
        self._speculators: WeakKeyDictionary[LLM, Speculator] = WeakKeyDictionary()

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        dtype: str | None = None,
        prefix_cache: bool | PrefixCache = False,
        experts: str | None = None,
        memory_budget: str | int | None = None,
        parallel: str | None = None,
        peers: Peers | None = None,
    ) -> LLM:
        """Load a model folder in Hugging Face or MLX layout. Arguments and errors are `load`'s.

        Here nothing is kept between replies unless prefix_cache says so.
        peers: the processes of `parallel`, where they are joined already.
        """
        start = time.perf_counter()
        residency = Residency.of(experts, memory_budget)
        with ThreadPoolExecutor(1) as pool:  # meanwhile: weights are mostly waited for
            text = pool.submit(_load_text, Path(folder))
            if parallel is None:
                model = load_model(folder, dtype=dtype, residency=residency)
            else:
                kept = prefix_cache if isinstance(prefix_cache, PrefixCache) else None
                _refuse_with_parallel(
                    experts=experts, memory_budget=memory_budget, prefix_cache=kept
                )
                model = _load_part(Path(folder), parallel, peers, dtype)
            tokenizer = text.result()
        config = _read_generation_config(Path(folder))
        settings = PrefixCache() if prefix_cache is True else prefix_cache
        if model.peers is not None:  # what one process kept, another may have let go
            settings = False
        budgeted = memory_budget is not None or model.expert_traffic is not None
        if settings and budgeted and settings.memory_bytes is None:
            settings = replace(settings, memory_bytes=spare_bytes(residency, Device.current()))
        store = PrefixStore.for_model(model, Path(folder), settings) if settings else None
        seconds = time.perf_counter() - start
        return cls(model, tokenizer, config, load_seconds=seconds, prefix_store=store)

    @property
    def context_length(self) -> int:
        """Tokens, stretched by YaRN where the config says so."""
        return self.model.config.context_length

    @property
    def draft(self) -> LLM | None:
        """The draft model of replies that name no other; setting it may raise OptionError."""
        return self._draft

    @draft.setter
    def draft(self, draft: LLM | None) -> None:
        if self.model.peers is not None:
            _refuse_with_parallel(draft=draft)
        self._speculator(draft)
        self._draft = draft

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Every token that ends a reply, whichever file names it."""
        named = token_ids(self.generation_config.get("eos_token_id"))
        own = self.tokenizer.eos_token_id
        return frozenset(
            {*named, *self.model.config.eos_token_id, *(() if own is None else (own,))}
        )

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokens as grammars see them; what is costly about it is made when first needed."""
        return Vocabulary(self.tokenizer, self.model.config.vocab_size, self.eos_ids)

    @cached_property
    def mode(self) -> Mode:
        """How this checkpoint thinks: "hybrid", "always" or "never"."""
        template = self.tokenizer.chat_template
        return "never" if template is None else template.mode

    def render(
        self,
        messages: Prompt,
        tools: Sequence[Tool] | None = None,
        thinking: bool | None = None,
    ) -> str:
        """What the checkpoint's chat template makes of the messages, ready to be continued.

        A str is one user message. thinking None leaves it to the template. Raises TemplateError,
        TokenizerError (no template), OptionError (a model that cannot switch its thinking).
        """
        template = self.tokenizer.chat_template
        if template is None:
            raise TokenizerError(
                "this model has no chat template (a base model?); send the prompt raw (raw=True, "
                "--raw)"
            )
        if thinking is not None and thinking != (self.mode == "always") and self.mode != "hybrid":
            word = {"always": "always thinks", "never": "never thinks"}[self.mode]
            raise OptionError(f"this model {word}; leave thinking out")
        variables = {} if thinking is None else {"enable_thinking": thinking}
        return template.render(_messages(messages), as_tools(tools) or None, **variables)

    def stream(
        self,
        prompt: Prompt,
        *,
        thinking: bool | None = None,
        tools: Sequence[Tool] | None = None,
        raw: bool = False,
        max_kv_size: int | None = None,
        kv_bits: int | None = None,
        speculation: Speculation | Literal[False] | None = None,
        draft: LLM | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> Generator[Event, None, None]:
        """Generate a reply; yields events as their text becomes certain, "end" last.

        prompt: messages, or a str for one user message; raw=True sends a str, or token ids,
        without template.
        max_kv_size: keep the first tokens and the most recent ones, this many in all, and so
        never run out of context. kv_bits: 4 or 8, to store the context packed.
        speculation: "lookup" has the model verify what followed earlier in prompt and reply,
        "draft" what a draft model says (`draft`, or the one of `load`); the reply is the same.
        False or "off": neither; None: a draft model if there is one, else lookup where the device
        may gain. Either stops by itself while it does not pay, and waits where penalties of
        thinking are set apart.
        progress: called with (tokens read, tokens to read) during prefill.
        tools: functions, with type hints and a docstring, or JSON schemas in OpenAI's form.
        options: SamplingParams' fields (max_tokens, temperature, seed, stop, ...) and
        AnswerOptions' (schema, regex, grammar, whitespace, tool_choice, strict,
        parallel_tool_calls).
        Closing the iterator stops the work and frees its memory. Everything is checked before
        work starts: raises OptionError (SchemaError), TemplateError, ContextOverflowError here.
        """
        request = self.request(
            prompt,
            thinking=thinking,
            tools=tools,
            raw=raw,
            max_kv_size=max_kv_size,
            kv_bits=kv_bits,
            speculation=speculation,
            draft=draft,
            **options,
        )
        return self._run(self._reply(request, draft), progress)

    def generate(self, prompt: Prompt, **options: Any) -> Completion:
        """The whole reply at once; arguments and errors are those of `stream`."""
        completion = None
        for event in self.stream(prompt, **options):
            completion = event.completion
        assert completion is not None  # "end" is always last
        return completion

    async def astream(
        self, prompt: Prompt, *, progress: Progress | None = None, **options: Any
    ) -> AsyncGenerator[Event, None]:
        """`stream` for asyncio. Cancelling the task, or closing the iterator, stops the work.

        All steps run on one thread of this model's own, where progress is called too; several
        streams take turns.
        """
        import asyncio

        loop = asyncio.get_running_loop()
        left = threading.Event()

        def watch(done: int, total: int) -> None:
            if left.is_set():  # between two chunks of a prompt nobody waits for
                raise asyncio.CancelledError
            if progress is not None:
                progress(done, total)

        events = await loop.run_in_executor(
            self._worker, lambda: self.stream(prompt, progress=watch, **options)
        )
        try:
            while (
                event := await loop.run_in_executor(self._worker, next, events, None)
            ) is not None:
                yield event
        finally:
            left.set()
            # Queued behind the step that may still run: a generator cannot be closed within.
            # Not awaited: an event loop that is shutting down would leave it undone.
            self._worker.submit(events.close)

    def request(
        self,
        prompt: Prompt,
        *,
        thinking: bool | None = None,
        tools: Sequence[Tool] | None = None,
        raw: bool = False,
        max_kv_size: int | None = None,
        kv_bits: int | None = None,
        speculation: Speculation | Literal[False] | None = None,
        draft: LLM | None = None,
        **options: Any,
    ) -> Request:
        """Check and prepare a reply without starting it; arguments and errors as in `stream`."""
        answer = AnswerOptions.take(options)
        offered = [] if answer.chosen == "none" else as_tools(tools)
        budget = options.get("thinking_budget")
        if raw:
            _refuse_with_raw(
                thinking=thinking,
                tools=tools or None,
                **{name: options.get(name) for name in options if name.startswith("thinking_")},
            )
        elif budget == 0 and self.mode == "hybrid":
            thinking = False
        text = "" if raw else self.render(prompt, offered, thinking)
        state = "none" if raw else thinking_state(text)
        may_think = state == "none" and not raw
        thinks = state == "open" or (may_think and self.mode == "hybrid")
        params = SamplingParams.from_options(options, self._defaults(thinks))
        prompt_ids = tuple(self._raw_ids(prompt) if raw else self.tokenizer.encode(text))
        if not prompt_ids:
            raise OptionError("the prompt is empty; expected at least one token")
        return Request(
            prompt_ids=prompt_ids,
            params=params,
            max_tokens=self._max_tokens(len(prompt_ids), params.max_tokens, max_kv_size),
            in_thinking=state == "open",
            raw=raw,
            may_think=may_think,
            answer=answer,
            constraint=answer.constraint(
                offered,
                self._call_form,
                self.vocabulary,
                in_thinking=state == "open",
                may_think=may_think,
            ),
            tools=tuple(offered),
            max_kv_size=max_kv_size,
            kv_bits=kv_bits,
            speculation=self._speculation(speculation, draft or self.draft),
        )

    def _raw_ids(self, prompt: Prompt) -> Sequence[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        size, token_ids = self.model.config.vocab_size, [one for one in prompt if type(one) is int]
        if len(token_ids) != len(prompt):
            raise OptionError(
                "raw takes a text or token ids; messages need the chat template (leave raw out)"
            )
        if not all(0 <= token_id < size for token_id in token_ids):
            raise OptionError(f"a token id of the prompt is not below the vocabulary's {size}")
        return token_ids

    @cached_property
    def _call_form(self) -> CallForm:
        template = self.tokenizer.chat_template
        return "json" if template is None else template.call_form

    def _speculation(
        self, wanted: Speculation | Literal[False] | None, draft: LLM | None
    ) -> Speculation:
        """Who proposes tokens. Raises OptionError."""
        if self.model.peers is not None:  # when it pays is measured, and measured differently
            _refuse_with_parallel(speculation=wanted or None, draft=draft)
            return "off"
        if wanted is None:
            possible = self._speculator(draft).possible
            return "off" if not possible else "lookup" if draft is None else "draft"
        if wanted is False:
            return "off"
        if wanted not in get_args(Speculation):
            names = ", ".join(get_args(Speculation))
            raise OptionError(f"speculation is {wanted!r}; expected one of {names}, or nothing")
        if wanted == "draft" and draft is None:
            raise OptionError(
                'speculation "draft" needs a draft model; name one: draft=, --draft 0.6b'
            )
        return wanted

    def _speculator(self, draft: LLM | None) -> Speculator:
        """What is known about speculating with this draft model; without one, under ourselves."""
        key = draft or self
        if key not in self._speculators:
            if draft is not None:
                refuse_other_vocabulary(self.model, self.tokenizer, draft.model, draft.tokenizer)
            self._speculators[key] = Speculator(self.model, None if draft is None else draft.model)
        return self._speculators[key]

    def _defaults(self, thinks: bool) -> dict[str, Any]:
        """The checkpoint's sampling settings over Qwen's for the mode."""
        return {**_MODE_DEFAULTS[thinks], **_own_sampling(self.generation_config)}

    def _max_tokens(self, prompt: int, wanted: int | None, max_kv_size: int | None) -> int:
        """How many tokens may be generated. Raises ContextOverflowError when they do not fit."""
        if max_kv_size is not None:
            if type(max_kv_size) is not int or max_kv_size < _SMALLEST_KV_SIZE:
                raise OptionError(
                    f"max_kv_size is {max_kv_size!r}; expected a whole number from "
                    f"{_SMALLEST_KV_SIZE} on"
                )
            return wanted or DEFAULT_MAX_TOKENS
        room = self.context_length - prompt
        if room < (wanted or 1):
            asked = f" and max_tokens {wanted}" if wanted else ""
            raise ContextOverflowError(
                f"the prompt's {prompt} tokens{asked} do not fit the context of "
                f"{self.context_length}; shorten them, or set max_kv_size to forget old tokens"
            )
        return wanted or min(room, DEFAULT_MAX_TOKENS)

    def _reply(self, request: Request, draft: LLM | None) -> Reply:
        off = request.speculation == "off"
        return Reply(
            self.model,
            self.tokenizer,
            request,
            self.eos_ids,
            load_seconds=self.load_seconds,
            store=self.prefix_store,
            speculator=None if off else self._speculator(draft or self.draft),
        )

    def _run(self, reply: Reply, progress: Progress | None) -> Generator[Event, None, None]:
        """Generate token by token. The lock is held for a step at a time, never across a yield."""
        try:
            with self._step:
                reply.start(progress)
            while not reply.done:
                with self._step:
                    events = reply.step()
                yield from events
            yield from reply.end()
        except Exception:
            with self._step:
                reply.close(failed=True)
            raise
        finally:
            with self._step:
                reply.close()

    @cached_property
    def _worker(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlx-qwen3")


def _load_part(folder: Path, parallel: str, peers: Peers | None, dtype: str | None) -> Transformer:
    # Needs numpy, which takes its time to import.
    from mlx_qwen3.model.parallel import load_part, refuse_unknown

    refuse_unknown(parallel)
    return load_part(folder, parallel, peers or Peers.join(), dtype=dtype)


def _refuse_with_parallel(**options: Any) -> None:
    for name, value in options.items():
        if value not in (None, "off"):
            raise OptionError(
                f"a model spread over processes (parallel) takes no {name}; leave one of them out"
            )


def _load_text(folder: Path) -> Tokenizer:
    """The tokenizer, and what the first rendering would wait for."""
    tokenizer = Tokenizer.from_folder(folder)
    import mlx_qwen3.text.sandbox  # noqa: F401 - imports jinja2

    return tokenizer


def _read_generation_config(folder: Path) -> dict[str, Any]:
    """generation_config.json, {} where there is none. Raises CheckpointError when it is broken."""
    path = folder / "generation_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as exc:
        raise CheckpointError(f"{path}: cannot be read as JSON ({exc}); download it again") from exc
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: holds a {type(config).__name__}; expected an object")
    try:
        SamplingParams(**_own_sampling(config))
    except OptionError as exc:
        raise CheckpointError(f"{path}: {exc}") from exc
    eos = config.get("eos_token_id")
    if not all(isinstance(one, int) for one in (eos if isinstance(eos, list) else [eos or 0])):
        raise CheckpointError(f"{path}: eos_token_id is {eos!r}; expected token ids")
    return config


def _own_sampling(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling settings a generation_config.json has. Greedy ones do not count.

    Greedy is for those who ask: Qwen3 loops under it.
    """
    own = {name: generation_config.get(name) for name in _FROM_GENERATION_CONFIG}
    own["temperature"] = own["temperature"] or None
    return {name: value for name, value in own.items() if value is not None}


def _messages(prompt: Prompt) -> list[Any]:
    """What is no message is left for the template to refuse."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def _refuse_with_raw(**options: Any) -> None:
    for name, value in options.items():
        if value is not None:
            raise OptionError(f"{name} needs the chat template, which raw leaves out; drop either")
