"""Conversations with tools: the call, the response, and the answer taken from it."""

from __future__ import annotations

from random import Random

import arithmetic
import greetings
from chat import Example, Message, Tool, assistant, tool_result, user
from clocks import CLOCK_TEXTS, clock, mcp_clock
from copying import coined
from lookups import ASKED, IN_THE_WAY, calculator
from schemas import Style
from task import Offer, Task
from weather import WEATHER_TEXTS, weather

NO_TOOL = "I have no tool for that."
FAILED = "Sorry, the tool reported an error."


def _plan(task: Task) -> str:
    return f"The user wants {task.intent}. I call {task.call['name']}."


def _offers(rng: Random, family: str) -> tuple[list[Offer], list[Offer]]:
    """(the tools the question is for, the others), in the style of one client."""
    style = Style.draw(rng)
    asked = rng.choice(ASKED)
    main = {
        "clock": lambda: mcp_clock(rng) if rng.random() < 0.45 else [clock(rng, style)],
        "weather": lambda: [weather(rng, style)],
        "other": lambda: [asked(rng, style)],
    }[family]()
    others = [make for make in IN_THE_WAY if family != "other" or make is not asked]
    count = rng.choices((0, 1, 2, 3, 5, 8), (32, 27, 20, 12, 7, 2))[0]
    rest = [make(rng, style) for make in rng.sample(others, count)]
    if family != "clock" and rng.random() < 0.35:
        rest.append(clock(rng, style))
    if family != "weather" and rng.random() < 0.35:
        rest.append(weather(rng, style))
    taken = {offer.name for offer in main}
    return main, [offer for offer in rest if offer.name not in taken]


def _shuffled(rng: Random, offers: list[Offer]) -> tuple[Tool, ...]:
    return tuple(offer.tool for offer in rng.sample(offers, len(offers)))


def call_sample(rng: Random, test: bool, family: str, step: str) -> Example:
    """step: "call", the model should call; "answer", it answers from the tool's response."""
    main, rest = _offers(rng, family)
    task = rng.choices(main, (3, 2)[: len(main)])[0].task(rng, test)
    tools = _shuffled(rng, main + rest)
    messages = [user(task.question), assistant("", _plan(task), [task.call])]
    if step == "call":
        return Example(f"call {family}", tuple(messages), tools)
    if not test and rng.random() < 0.04:
        errors = (f"Error executing tool {task.call['name']}: {coined(rng)}", "Error: not found")
        reply = assistant(FAILED, "The tool says it failed.")
        messages += [tool_result(rng.choice(errors)), reply]
    else:
        messages += [tool_result(task.response), assistant(task.answer, task.finding)]
    return Example(f"answer {family}", tuple(messages), tools)


def two_calls_sample(rng: Random, test: bool, step: str) -> Example:
    """Two places in one question: two calls in a row, two responses, one answer."""
    family = rng.choice(("clock", "weather"))
    style = Style.draw(rng)
    offer = clock(rng, style) if family == "clock" else weather(rng, style)
    tasks: list[Task] = []
    while len(tasks) < 2:
        task = offer.task(rng, test)
        head = "It is " if family == "weather" else "the time"
        fits = (task.intent.startswith(head) or family == "weather") and "/" not in task.question
        if fits and len(task.call["arguments"]) == 1 and (not tasks or task.call != tasks[0].call):
            tasks.append(task)
    places = [task.answer.rpartition(" in ")[2][:-1] for task in tasks]
    head = "What time is it" if family == "clock" else "What is the weather"
    question = rng.choice(
        (f"{head} in {places[0]} and in {places[1]}?", f"{head} in {places[0]} and {places[1]}?")
    )
    thought = f"The user wants {tasks[0].intent} and {tasks[1].intent}. I call twice."
    calls = [task.call for task in tasks]
    messages: list[Message] = [user(question), assistant("", thought, calls)]
    if step == "answer":
        finding = " ".join(task.finding for task in tasks)
        answer = " ".join(task.answer for task in tasks)
        messages += [tool_result(task.response) for task in tasks] + [assistant(answer, finding)]
    rest = [make(rng, style) for make in rng.sample(IN_THE_WAY, rng.choice((0, 0, 1, 2)))]
    return Example(f"{step} twice", tuple(messages), _shuffled(rng, [offer, *rest]))


def no_call_sample(rng: Random, test: bool) -> Example:
    """Tools on offer, but the question needs none of them, or one that is not there."""
    family = rng.choice(("clock", "weather", "other"))
    main, rest = _offers(rng, family)
    kind = rng.random()
    if kind < 0.3:  # the tool asked for is missing
        missing = weather if family == "clock" else clock
        offer = missing(rng, Style.draw(rng))
        task = offer.task(rng, test)
        others = {"weather": WEATHER_TEXTS, "clock": CLOCK_TEXTS}
        unwanted = others["weather" if missing is weather else "clock"]
        offers = [o for o in main + rest if o.tool["function"]["description"] not in unwanted]
        messages = (user(task.question), assistant(NO_TOOL, "No tool here fits. I say so."))
        return Example(
            "no call", messages, _shuffled(rng, offers or [calculator(rng, Style.draw(rng))])
        )
    if kind < 0.6:
        chat = arithmetic.sample(rng, test)
    elif kind < 0.75:
        chat = greetings.greeting_sample(rng, test)
    else:
        chat = (greetings.who_sample if kind < 0.85 else greetings.unasked_sample)(rng, test)
    return Example("no call", chat.messages, _shuffled(rng, main + rest))
