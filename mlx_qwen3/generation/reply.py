"""One reply in the making: the token loop, the thinking budget and the text, step by step."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx

from mlx_qwen3.errors import OptionError
from mlx_qwen3.generation.caches import CacheStore
from mlx_qwen3.generation.constraints import Constraint
from mlx_qwen3.generation.loop import Loop, Progress, Token, TokenLoop
from mlx_qwen3.generation.output import Completion, Event, ExpertUse, Output, Timing, Usage
from mlx_qwen3.generation.penalties import ThinkTags
from mlx_qwen3.generation.request import Request
from mlx_qwen3.generation.sampling import Sampler
from mlx_qwen3.generation.speculator import Speculator
from mlx_qwen3.generation.thinking import ThinkingMeter
from mlx_qwen3.model.cache import Cache
from mlx_qwen3.model.experts import ExpertTraffic
from mlx_qwen3.model.transformer import Transformer
from mlx_qwen3.text.folder import one_line
from mlx_qwen3.text.parser import THINK, THINK_END, StreamParser
from mlx_qwen3.text.stops import StopStrings
from mlx_qwen3.text.tokenizer import Tokenizer

# The loop of a reply whose steps are made elsewhere, out of its cache, sampler and constraint.
MakeLoop = Callable[[Cache, Sampler, Constraint | None], Loop]


class Reply:
    """Owns everything that exists for one reply only: cache, sampler, parser, clock.

    Construction refuses what could not work (OptionError) before anything is computed. Then
    `start`, `step` until `done`, `end`; `close` at any time frees the cache, or gives it back to
    the store it was leased from.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        request: Request,
        eos_ids: Collection[int],
        *,
        load_seconds: float = 0.0,
        store: CacheStore | None = None,
        speculator: Speculator | None = None,
        make_loop: MakeLoop | None = None,
    ) -> None:
        self._model = model
        self._given_loop = make_loop
        self._store = store
        self._speculator = speculator
        self._request = request
        self._load_seconds = load_seconds
        seed = request.params.seed
        peers = model.peers
        self._seed = secrets.randbits(64) if seed is None else seed
        if peers is not None:
            self._seed = peers.share_number(self._seed)
        self._sampler = Sampler(
            request.params,
            model.config.vocab_size,
            self._seed,
            _think_tags(tokenizer, request),
            None if peers is None else peers.share,
        )
        self._sampler.observe_prompt(request.prompt_ids)
        # Until `start`: a reply that never begins has nothing to give back.
        self._cache: Cache | None = model.make_cache(
            max_kv_size=request.max_kv_size, kv_bits=request.kv_bits
        )
        self._loop: Loop | None = None
        self._cached_tokens = 0
        self._constraint = None if request.constraint is None else request.constraint.start()
        self._meter = ThinkingMeter(
            tokenizer,
            in_thinking=request.in_thinking,
            expect_thinking=not request.raw,
            budget=request.params.thinking_budget,
        )
        self._output = _output(tokenizer, request, eos_ids)
        self._started = self._first_token = 0.0
        self._traffic: list[ExpertTraffic] = []  # before the prompt, and behind it

    @property
    def done(self) -> bool:
        """Whether the reply has ended: by itself, at a stop string, or at max_tokens."""
        return self._output.finish_reason is not None or self._room <= 0

    def start(self, progress: Progress | None = None) -> None:
        """Read the prompt and enqueue the first token."""
        self._started = time.perf_counter()
        if self._cache is None:
            raise RuntimeError("this reply was closed")
        if self._store is not None:
            self._cache = self._store.lease(self._request)
            self._cached_tokens = self._cache.offset
        self._loop = self._make_loop(self._cache)
        self._note_traffic()
        self._loop.feed(self._request.prompt_ids[self._cached_tokens :], progress)
        if self._note_traffic() and self._given_loop is None:
            # Steps wait for their experts: the first token is there now.
            self._first_token = time.perf_counter()

    def _note_traffic(self) -> bool:
        """Whether experts are streamed."""
        traffic = self._model.expert_traffic
        self._traffic += [] if traffic is None else [traffic]
        return traffic is not None

    def _make_loop(self, cache: Cache) -> Loop:
        request, sampler, constraint = self._request, self._sampler, self._constraint
        if self._given_loop is not None:
            return self._given_loop(cache, sampler, constraint)
        # Which penalties hold may change within a burst, and counts with them: token by token then.
        if request.speculation == "off" or self._speculator is None or sampler.switches:
            return TokenLoop(self._model, cache, sampler, constraint=constraint)
        return self._speculator.loop(cache, sampler, request, self._seed, constraint)

    def step(self) -> list[Event]:
        """Generate one token, or end a thought that is over budget; return what became certain."""
        forced = self.end_thought()
        if forced is not None:
            return forced
        token = self._require_loop().next(last=self._room == 1)
        return self._take([token])

    def end_thought(self) -> list[Event] | None:
        """End a thought that is over budget by force; None while none is."""
        forced = self._early_stop()
        return self._take(forced) if forced else None

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Everything that is certain so far: the prompt's, and those generated."""
        return (*self._request.prompt_ids, *self._output.token_ids)

    def pause(self) -> None:
        """Free the cache between two steps, or lend it back to the store; `resume` goes on."""
        cache, self._cache = self._cache, None
        if cache is not None and self._store is not None:
            self._give_back(self._store, cache, self._require_loop().offset)

    def resume(self) -> Cache:
        """A cache to go on in, which holds the beginning of `token_ids`."""
        if self._store is None:
            self._cache = self._model.make_cache(
                max_kv_size=self._request.max_kv_size, kv_bits=self._request.kv_bits
            )
        else:
            self._cache = self._store.lease(replace(self._request, prompt_ids=self.token_ids))
        return self._cache

    def end(self) -> list[Event]:
        """Release held-back text and conclude with the "end" event."""
        events = self._metered(self._output.finish(self._output.finish_reason or "length"))
        return [*events, Event("end", completion=self._completion())]

    def close(self, *, failed: bool = False) -> None:
        """Free the cache and the step in flight. failed: what they hold is not to be trusted."""
        loop, self._loop = self._loop, None
        cache, self._cache = self._cache, None
        if loop is None or cache is None:
            return
        certain = 0 if failed else loop.offset
        del loop  # waits for the step in flight
        if self._store is not None:
            self._give_back(self._store, cache, certain)
        del cache
        mx.clear_cache()

    def _give_back(self, store: CacheStore, cache: Cache, certain: int) -> None:
        """Hand the cache over with the tokens in it; a token that nobody saw is not among them."""
        prompt = self._request.prompt_ids
        token_ids = (*prompt, *self._output.token_ids)[:certain]
        # Templates drop thoughts from the history, and nothing behind them stays in its place.
        lasting = len(prompt) if self._meter.tokens else len(token_ids)
        store.give_back(cache, token_ids, lasting=lasting)

    @property
    def _room(self) -> int:
        return self._request.max_tokens - len(self._output.token_ids)

    def _early_stop(self) -> list[Token]:
        forced = self._meter.early_stop()[: self._room]
        if forced:
            self._require_loop().force(forced)
        return [Token(token_id) for token_id in forced]

    def _take(self, tokens: Sequence[Token]) -> list[Event]:
        self._first_token = self._first_token or time.perf_counter()
        return [event for token in tokens for event in self._read(token)]

    def _read(self, token: Token) -> list[Event]:
        before = self._meter.tokens
        self._meter.add(token.token_id)
        return self._metered(self._output.add(token, thinking=self._meter.tokens > before))

    def _metered(self, events: list[Event]) -> list[Event]:
        return [replace(event, thinking_tokens=self._meter.tokens) for event in events]

    def _require_loop(self) -> Loop:
        if self._loop is None:
            raise RuntimeError("this reply was closed, or never started")
        return self._loop

    def _parsed(self) -> Any:
        """The answer as an object; None, and perhaps a warning, where it is none."""
        output = self._output
        if output.finish_reason != "stop":
            return None
        try:
            return self._request.answer.parse(output.text("answer"))
        except ValueError as exc:  # cut at a stop string, or refused by the class's own validators
            output.warnings.append(f"the answer does not fit its schema: {one_line(exc)}")
            return None

    def _experts(self) -> ExpertUse | None:
        now = self._model.expert_traffic
        if now is None:
            return None
        before, behind = self._traffic
        decode, steps = now - behind, max(len(self._output.token_ids) - 1, 1)
        prompt = behind - before
        return ExpertUse(decode.hit_rate, decode.bytes_read / steps, prompt.bytes_read)

    def _completion(self) -> Completion:
        parsed = self._parsed()
        output, now = self._output, time.perf_counter()
        prefill = (self._first_token or now) - self._started
        decode = now - (self._first_token or now)
        after_first = len(output.token_ids) - 1
        loop = self._require_loop()
        return Completion(
            text=output.text("answer"),
            thinking=output.text("thinking"),
            tool_calls=tuple(output.tool_calls),
            token_ids=tuple(output.token_ids),
            finish_reason=output.finish_reason or "length",
            usage=Usage(
                len(self._request.prompt_ids),
                len(output.token_ids),
                self._meter.tokens,
                self._cached_tokens,
            ),
            timing=Timing(
                load=self._load_seconds,
                prefill=prefill,
                decode=decode,
                tokens_per_second=after_first / decode if decode > 0 else 0.0,
            ),
            peak_memory_bytes=mx.get_peak_memory(),
            logprobs=None if self._request.params.logprobs is None else tuple(output.logprobs),
            parsed=parsed,
            warnings=tuple(output.warnings),
            stop=output.stop,
            proposed_tokens=loop.proposed,
            accepted_tokens=loop.accepted,
            experts=self._experts(),
        )


def _output(tokenizer: Tokenizer, request: Request, eos_ids: Collection[int]) -> Output:
    """The text side of a reply to this request."""
    parser = StreamParser(
        in_thinking=request.in_thinking,
        expect_thinking=not request.raw,
        parse_tools=request.parse_tools,
        verbatim=request.answer.formed,
        tools=request.tools or None,
    )
    return Output(
        tokenizer,
        parser,
        StopStrings(request.params.stop),
        eos_ids,
        request.tools or None,
        one_call=not request.answer.parallel_tool_calls,
    )


def _think_tags(tokenizer: Tokenizer, request: Request) -> ThinkTags | None:
    """Where penalties of thinking hold; None where there are none, or there is no thinking."""
    if request.params.thinking_penalties is None or not (request.in_thinking or request.may_think):
        return None
    opening, closing = tokenizer.token_to_id(THINK), tokenizer.token_to_id(THINK_END)
    if opening is None or closing is None:
        raise OptionError(
            "penalties of thinking need tokens for <think> and </think>, which this tokenizer does "
            "not have; set presence_penalty and the like for the whole reply"
        )
    return ThinkTags(opening, closing, request.in_thinking, request.may_think)
