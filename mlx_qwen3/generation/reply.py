"""One reply in the making: the token loop, the thinking budget and the text, step by step."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection

import mlx.core as mx

from mlx_qwen3.generation.loop import Progress, Token, TokenLoop
from mlx_qwen3.generation.output import Completion, Event, Output, Timing, Usage
from mlx_qwen3.generation.request import Request
from mlx_qwen3.generation.sampling import Sampler
from mlx_qwen3.generation.speculator import Speculator
from mlx_qwen3.generation.thinking import ThinkingMeter
from mlx_qwen3.model.transformer import Transformer
from mlx_qwen3.text.parser import StreamParser
from mlx_qwen3.text.stops import StopStrings
from mlx_qwen3.text.tokenizer import Tokenizer


class Reply:
    """Owns everything that exists for one reply only: cache, sampler, parser, clock.

    Construction refuses what could not work (OptionError) before anything is computed. Then
    `start`, `step` until `done`, `end`; `close` at any time frees the cache.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        request: Request,
        eos_ids: Collection[int],
        *,
        load_seconds: float = 0.0,
        speculator: Speculator | None = None,
    ) -> None:
        self._request = request
        self._load_seconds = load_seconds
        seed = request.params.seed
        seed = secrets.randbits(64) if seed is None else seed
        sampler = Sampler(request.params, model.config.vocab_size, seed)
        sampler.observe_prompt(request.prompt_ids)
        cache = model.make_cache(max_kv_size=request.max_kv_size, kv_bits=request.kv_bits)
        self._loop: TokenLoop | None = (
            TokenLoop(model, cache, sampler)
            if request.speculation == "off" or speculator is None
            else speculator.loop(cache, sampler, request, seed)
        )
        self._meter = ThinkingMeter(
            tokenizer,
            in_thinking=request.in_thinking,
            expect_thinking=not request.raw,
            budget=request.params.thinking_budget,
        )
        parser = StreamParser(
            in_thinking=request.in_thinking,
            expect_thinking=not request.raw,
            parse_tools=not request.raw,
            tools=request.tools or None,
        )
        self._output = Output(tokenizer, parser, StopStrings(request.params.stop), eos_ids)
        self._started = self._first_token = 0.0

    @property
    def done(self) -> bool:
        """Whether the reply has ended: by itself, at a stop string, or at max_tokens."""
        return self._output.finish_reason is not None or self._room <= 0

    def start(self, progress: Progress | None = None) -> None:
        """Read the prompt and enqueue the first token."""
        self._started = time.perf_counter()
        self._require_loop().feed(self._request.prompt_ids, progress)

    def step(self) -> list[Event]:
        """Generate one token, or end a thought that is over budget; return what became certain."""
        tokens = self._early_stop() or [self._require_loop().next(last=self._room == 1)]
        self._first_token = self._first_token or time.perf_counter()
        return [event for token in tokens for event in self._take(token)]

    def end(self) -> list[Event]:
        """Release held-back text and conclude with the "end" event."""
        events = self._output.finish(self._output.finish_reason or "length")
        return [*events, Event("end", completion=self._completion())]

    def close(self) -> None:
        """Free the cache and the step in flight."""
        if self._loop is not None:
            self._loop = None
            mx.clear_cache()

    @property
    def _room(self) -> int:
        return self._request.max_tokens - len(self._output.token_ids)

    def _early_stop(self) -> list[Token]:
        forced = self._meter.early_stop()[: self._room]
        if forced:
            self._require_loop().force(forced)
        return [Token(token_id) for token_id in forced]

    def _take(self, token: Token) -> list[Event]:
        self._meter.add(token.token_id)
        return self._output.add(token)

    def _require_loop(self) -> TokenLoop:
        if self._loop is None:
            raise RuntimeError("this reply was closed")
        return self._loop

    def _completion(self) -> Completion:
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
            usage=Usage(len(self._request.prompt_ids), len(output.token_ids), self._meter.tokens),
            timing=Timing(
                load=self._load_seconds,
                prefill=prefill,
                decode=decode,
                tokens_per_second=after_first / decode if decode > 0 else 0.0,
            ),
            peak_memory_bytes=mx.get_peak_memory(),
            logprobs=None if self._request.params.logprobs is None else tuple(output.logprobs),
            proposed_tokens=loop.proposed,
            accepted_tokens=loop.accepted,
        )
