"""Clocks by time zone or city, among them those of a real MCP server."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from random import Random

from chat import Example, assistant, held_out, user
from places import CITIES, OTHER_ZONES, TOWNS, ZONE_OF, ZONES
from schemas import Style, mcp_time_tools, restyle, schema
from task import Offer, Task, as_json
from words import split_words

CLOCK_NAMES = split_words(
    """
    get_time get_current_time current_time clock world_clock time_in_city get_clock city_time
    local_time time_now get_local_time what_time lookup_time
    """
)
CLOCK_TEXTS = (
    "Get the current time",
    "Get the current time in a city",
    "Returns the local time of a place.",
    "The time now, by time zone",
    "World clock",
    "Tells the time in a time zone",
)
BY_ZONE = ("timezone", "time_zone", "tz", "zone", "iana_timezone")
BY_CITY = ("city", "location", "place", "city_name")
TIME_QUESTIONS = (
    "What time is it in {p}?",
    "what time is it in {p}",
    "What's the time in {p}?",
    "Tell me the time in {p}.",
    "What is the current time in {p}?",
    "Current time in {p}?",
    "Can you tell me what time it is in {p}?",
    "time in {p}",
    "How late is it in {p}?",
    "Please give me the local time in {p}.",
    "Do you know what time it is in {p} right now?",
    "What time is it in {p} now?",
)
DAY_QUESTIONS = ("What day is it in {p}?", "Which day of the week is it in {p}?")
DATE_QUESTIONS = ("What is the date in {p}?", "What's today's date in {p}?", "Date in {p}?")
QUESTIONS = {"the time": TIME_QUESTIONS, "the day": DAY_QUESTIONS, "the date": DATE_QUESTIONS}
HERE_QUESTIONS = ("What time is it?", "what time is it now", "Tell me the time.", "Time?")


def _moment(rng: Random) -> datetime:
    offset = rng.choice((0, 1, 2, 3, 5.5, 5.75, 8, 9, 10, 12, -3, -4, -5, -6, -7, -8, -10))
    zone = timezone(timedelta(hours=offset))
    start = datetime(2024, 1, 1, tzinfo=zone)
    return start + timedelta(seconds=rng.randrange(6 * 365 * 86400))


def _stamp(rng: Random, place: str, moment: datetime, real: bool) -> dict:
    """A clock's response; real: exactly the fields of mcp-server-time."""
    iso = moment.isoformat(timespec="seconds")
    day = f"{moment:%A}"
    if real:
        dst = rng.random() < 0.4
        return {"timezone": place, "datetime": iso, "day_of_week": day, "is_dst": dst}
    forms = (
        {"timezone": place, "datetime": iso, "day_of_week": day},
        {"place": place, "time": f"{moment:%H:%M}", "date": f"{moment:%Y-%m-%d}", "day": day},
        {"time": f"{moment:%H:%M:%S}", "date": f"{moment:%Y-%m-%d}", "weekday": day},
        {"city": place, "local_time": f"{moment:%Y-%m-%d %H:%M}", "day": day},
        {"now": iso, "day": day, "utc_offset": f"{moment:%z}"},
    )
    return rng.choice(forms)


@dataclass(frozen=True)
class Question:
    """What is asked of a clock: of "the time", "the day" or "the date" at a place."""

    text: str
    place: str  # as the user names it; empty: here
    value: str  # as the clock wants it
    what: str

    @property
    def suffix(self) -> str:
        return f" in {self.place}" if self.place else ""


def _ask(rng: Random, test: bool, by_zone: bool, local: str | None) -> Question:
    kind = rng.random()
    what = "the time" if kind <= 0.7 else "the day" if kind > 0.85 else "the date"
    while True:
        city = rng.choice(CITIES)
        phrase = rng.choice(QUESTIONS[what])
        place, value = city, ZONE_OF[city] if by_zone else city
        if by_zone and rng.random() < 0.08:
            place = value = rng.choice(ZONES + OTHER_ZONES)
        elif not by_zone and rng.random() < 0.2:
            place = value = rng.choice(TOWNS)
        if held_out(f"{place}|{phrase}", 10) == test:
            break
    if local and not test and rng.random() < 0.08:
        return Question(rng.choice(HERE_QUESTIONS), "", local, "the time")
    return Question(phrase.format(p=place), place, value, what)


def _clock_task(rng: Random, test: bool, name: str, field: str, local: str | None) -> Task:
    """local: for mcp-server-time, the server's own zone; None for any other clock."""
    by_zone, real = field in BY_ZONE, local is not None
    asked, moment = _ask(rng, test, by_zone, local), _moment(rng)
    response = as_json(rng, _stamp(rng, asked.value, moment, real), real)
    clock = f"{moment:%H:%M}"
    said = {"the time": clock, "the day": f"{moment:%A}", "the date": f"{moment:%Y-%m-%d}"}
    if asked.what == "the time" and not real and rng.random() < 0.15:
        response = rng.choice((clock, f"It is {clock}", f"{clock}:{moment:%S}"))
    return Task(
        question=asked.text,
        intent=f"{asked.what}{asked.suffix}" + (f", {field} {asked.value}" if by_zone else ""),
        call={"name": name, "arguments": {field: asked.value}},
        response=response,
        finding=f"The tool says {said[asked.what]}.",
        answer=f"It is {said[asked.what]}{asked.suffix}.",
    )


def clock(rng: Random, style: Style) -> Offer:
    name = restyle(rng, rng.choice(CLOCK_NAMES))
    field = rng.choice(BY_ZONE + BY_CITY)
    text = "IANA time zone, e.g. Europe/Paris" if field in BY_ZONE else "Name of the city"
    tool = schema(style, name, rng.choice(CLOCK_TEXTS), [(field, text, {})], [field])
    return Offer(tool, lambda r, test: _clock_task(r, test, name, field, None))


def mcp_clock(rng: Random) -> list[Offer]:
    """The tools of mcp-server-time: the clock alone or with its converter."""
    local = rng.choice(("Etc/UTC", "Etc/UTC", rng.choice(ZONES)))
    current, convert = mcp_time_tools(local, titled=rng.random() < 0.6)
    offers = [
        Offer(current, lambda r, t: _clock_task(r, t, "get_current_time", "timezone", local)),
        Offer(convert, _convert_task),
    ]
    return offers if rng.random() < 0.6 else offers[:1]


CONVERT_QUESTIONS = (
    "What is {t} in {a} in {b} time?",
    "Convert {t} from {a} to {b}.",
    "When it is {t} in {a}, what time is it in {b}?",
    "It is {t} in {a}. What time is it in {b}?",
)


def _convert_task(rng: Random, test: bool) -> Task:
    while True:
        source, target = rng.sample(CITIES, 2)
        phrase = rng.choice(CONVERT_QUESTIONS)
        if held_out(f"{source}|{target}|{phrase}", 10) == test:
            break
    time = f"{rng.randrange(24):02d}:{rng.randrange(60):02d}"
    start = _moment(rng).replace(hour=int(time[:2]), minute=int(time[3:]), second=0)
    hours = rng.choice((-13, -9, -6, -5, -3.25, -1, 0, 1, 2, 3.5, 6, 7, 8, 9.5, 11))
    end = start.astimezone(timezone(timedelta(hours=max(-12, min(14, hours)))))
    zones = ZONE_OF[source], ZONE_OF[target]
    response = {
        "source": _stamp(rng, zones[0], start, real=True),
        "target": _stamp(rng, zones[1], end, real=True),
        "time_difference": f"{hours:+.1f}h",
    }
    arguments = {"source_timezone": zones[0], "time": time, "target_timezone": zones[1]}
    return Task(
        phrase.format(t=time, a=source, b=target),
        f"{time} in {source} as time in {target}, {zones[0]} to {zones[1]}",
        {"name": "convert_time", "arguments": arguments},
        json.dumps(response, indent=2),
        f"The target says {end:%H:%M}.",
        f"It is {end:%H:%M} in {target}.",
    )


ZONE_QUESTIONS = (
    "What is the time zone of {p}?",
    "Which time zone is {p} in?",
    "Time zone of {p}?",
    "What's the IANA time zone of {p}?",
)


def zone_sample(rng: Random, test: bool) -> Example:
    """A city's time zone, asked for without tools."""
    while True:
        city, phrase = rng.choice(CITIES), rng.choice(ZONE_QUESTIONS)
        if held_out(f"{city}|{phrase}", 10) == test:
            break
    field, zone = rng.choice(BY_ZONE), ZONE_OF[city]
    thought = f"The user wants the time zone of {city}, {field} {zone}."
    answer = assistant(f"The time zone of {city} is {zone}.", thought)
    return Example("time zone", (user(phrase.format(p=city)), answer))
