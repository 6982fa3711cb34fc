"""Qwen3 inside a desktop app's own process: the model on a thread, its words in the window.

    python examples/embed_python.py [MODEL]

The user interface owns the main thread and must never wait. So the model has a thread with an
asyncio loop of its own, and all it says comes back through `post`: whatever the toolkit has for
"call this on the main thread".

    AppKit (PyObjC)   Assistant("4b", PyObjCTools.AppHelper.callAfter)
    Qt (PySide6)      Assistant("4b", Poster().post), in embed_qt.py
    here              Assistant("demo", MainLoop().post), a queue and a loop that empties it

`Assistant` is what to take along; the rest of this file stands for the app.
"""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import aclosing
from typing import Any, TypeVar

from mlx_qwen3 import LLM, Event, load

Post = Callable[[Callable[[], None]], Any]
"""Takes a function on any thread; calls it on the main thread, in order. It does not wait."""
T = TypeVar("T")


class Question:
    """A question that was asked.

    Its callbacks are called on the main thread: on_event with every event of the reply, "end" last;
    on_error instead of what would have come. Once it is cancelled neither is called any more,
    whatever was on its way.
    """

    def __init__(
        self, on_event: Callable[[Event], None], on_error: Callable[[Exception], None]
    ) -> None:
        self.on_event = on_event
        self.on_error = on_error
        self.cancelled = False
        self.work: Future[None] | None = None

    def cancel(self) -> None:
        """Stop the model within a step."""
        self.cancelled = True
        if self.work is not None:
            self.work.cancel()


class Assistant:
    """A model on a thread of its own.

    Every method is for the main thread, and none but `close` waits. Questions may be asked before
    the model is loaded, and while others are answered: then replies take turns, token by token.
    """

    def __init__(self, model: str, post: Post) -> None:
        self._post = post
        self._closed = False
        started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(started)))
        self._thread.start()
        self._loop = started.result()
        self._llm: Future[LLM] = self._begin(asyncio.to_thread(load, model))

    def ask(
        self,
        messages: list[dict[str, str]],
        on_event: Callable[[Event], None],
        on_error: Callable[[Exception], None],
        **options: Any,
    ) -> Question:
        """Begin a reply; options are those of `LLM.stream`."""
        question = Question(on_event, on_error)
        question.work = self._begin(self._answer(question, messages, options))
        return question

    def close(self) -> None:
        """Stop everything and wait for it: for a step at most, or until the model is loaded.

        No callback is called after this.
        """
        if not self._closed:
            self._closed = True
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join()

    async def _main(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        self._closing = asyncio.Event()
        started.set_result(asyncio.get_running_loop())
        await self._closing.wait()  # then asyncio.run cancels what still runs

    def _begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _answer(
        self, question: Question, messages: list[dict[str, str]], options: dict[str, Any]
    ) -> None:
        try:
            # Shielded: a question that is cancelled must not cancel the loading for all others.
            llm = await asyncio.shield(asyncio.wrap_future(self._llm))
            async with aclosing(llm.astream(messages, **options)) as events:
                async for event in events:
                    self._tell(question, question.on_event, event)
        except Exception as exc:  # noqa: BLE001 - whatever it is, a window waits for it
            self._tell(question, question.on_error, exc)

    def _tell(self, question: Question, callback: Callable[[T], None], value: T) -> None:
        def call() -> None:
            if not (question.cancelled or self._closed):
                callback(value)

        self._post(call)


class MainLoop:
    """The smallest main loop there is: calls what is posted, until `quit`."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def post(self, call: Callable[[], None]) -> None:
        self._calls.put(call)

    def quit(self) -> None:
        self._calls.put(None)

    def run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


class Window:
    """Prints what a window would show; quits when every question is answered or stopped."""

    def __init__(self, model: str) -> None:
        self.loop = MainLoop()
        self.assistant = Assistant(model, self.loop.post)
        self.questions: dict[str, Question] = {}
        self.events: dict[str, list[Event]] = {}

    def ask(self, text: str, patience: int | None = None) -> None:
        """patience: events of the reply after which the user presses Stop."""
        self.events[text] = []
        self.questions[text] = self.assistant.ask(
            [{"role": "user", "content": text}],
            lambda event: self._show(text, event, patience),
            lambda error: self._end(text, f"failed: {error}"),
            temperature=0.0,
            max_tokens=500,
        )

    def _show(self, text: str, event: Event, patience: int | None) -> None:
        events = self.events[text]
        events.append(event)
        if len(events) == 1:
            print(text, "...")
        if event.completion is not None:
            self._end(text, event.completion.text)
        elif len(events) == patience:
            self.questions[text].cancel()
            self._end(text, "stopped")

    def _end(self, text: str, result: str) -> None:
        print(text, result)
        del self.questions[text]
        if not self.questions:
            self.loop.quit()


def main(model: str = "demo") -> None:
    """Three questions side by side, the last of which is stopped."""
    window = Window(model)
    window.ask("What is 27 + 58?")
    window.ask("What is 14 + 21?")
    window.ask("What is 4821 + 3990?", patience=3)
    try:
        window.loop.run()
    finally:
        window.assistant.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
