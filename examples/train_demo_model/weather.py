"""Weather by city."""

from __future__ import annotations

from random import Random

from chat import held_out
from copying import coined
from places import CITIES, TOWNS
from schemas import Parameter, Style, restyle, schema
from task import Offer, Task, as_json
from words import split_words

WEATHER_NAMES = split_words(
    """
    get_weather weather current_weather get_current_weather weather_report weather_by_city
    check_weather forecast get_forecast weather_now lookup_weather city_weather
    """
)
WEATHER_TEXTS = (
    "Get the weather in a city",
    "Get the current weather for a location",
    "Current weather by city.",
    "Returns temperature and conditions of a place",
    "Weather report",
    "Look up the weather",
)
WEATHER_FIELDS = ("city", "location", "place", "city_name", "q")
WEATHER_QUESTIONS = (
    "What is the weather in {p}?",
    "What's the weather like in {p}?",
    "How is the weather in {p}?",
    "weather in {p}",
    "Tell me the weather in {p}.",
    "Is it warm in {p}?",
    "Is it raining in {p}?",
    "What is the temperature in {p}?",
    "How warm is it in {p} today?",
    "Give me the weather for {p}.",
    "Do I need an umbrella in {p}?",
    "Can you check the weather in {p}?",
)
CONDITIONS = (
    "sunny",
    "cloudy",
    "rainy",
    "snowy",
    "windy",
    "foggy",
    "stormy",
    "clear",
    "overcast",
    "humid",
    "light rain",
    "heavy rain",
    "light snow",
    "partly cloudy",
    "mostly sunny",
    "drizzle",
    "hazy",
)
UNITS = ("celsius", "fahrenheit")


def _weather_response(rng: Random, place: str, degrees: int, sky: str, unit: str) -> str:
    sign = "°C" if unit == "celsius" else "°F"
    extra = {"humidity": rng.randrange(20, 100), "wind_kmh": rng.randrange(0, 60)}
    forms = (
        {"city": place, "temperature": degrees, "unit": unit, "condition": sky},
        {"location": place, "temperature": f"{degrees}{sign}", "conditions": sky},
        {"temperature": degrees, "unit": sign, "sky": sky} | extra,
        {"place": place, "condition": sky, "temp": degrees, "unit": unit, **extra},
        {"weather": {"description": sky, "temperature": degrees, "unit": unit}, "city": place},
    )
    if rng.random() < 0.2:
        texts = (f"{degrees} {sign}, {sky}", f"{place}: {sky}, {degrees} {sign}")
        return rng.choice(texts)
    return as_json(rng, rng.choice(forms))


def _weather_task(rng: Random, test: bool, name: str, field: str, with_unit: bool) -> Task:
    while True:
        place = rng.choice(CITIES + TOWNS)
        if rng.random() < 0.25:
            place = coined(rng).title()
        phrase = rng.choice(WEATHER_QUESTIONS)
        if held_out(f"{place}|{phrase}", 10) == test:
            break
    unit, question, arguments = rng.choice(UNITS), phrase.format(p=place), {field: place}
    if with_unit and rng.random() < 0.5:
        question = f"{question[:-1] if question[-1] in '.?' else question} in {unit}?"
        arguments["unit"] = unit
    degrees, sky = rng.randrange(-20, 40), rng.choice(CONDITIONS)
    unit = unit if "unit" in arguments or rng.random() < 0.15 else "celsius"
    degrees = degrees if unit == "celsius" else degrees * 9 // 5 + 32
    sign = "°C" if unit == "celsius" else "°F"
    return Task(
        question,
        f"the weather in {place}",
        {"name": name, "arguments": arguments},
        _weather_response(rng, place, degrees, sky, unit),
        f"The tool says {degrees} {sign}, {sky}.",
        f"It is {degrees} {sign} and {sky} in {place}.",
    )


def weather(rng: Random, style: Style) -> Offer:
    name, field = restyle(rng, rng.choice(WEATHER_NAMES)), rng.choice(WEATHER_FIELDS)
    with_unit = rng.random() < 0.3
    parameters: list[Parameter] = [(field, "The city to look up", {})]
    if with_unit:
        parameters.append(("unit", "Temperature unit", {"enum": list(UNITS)}))
    tool = schema(style, name, rng.choice(WEATHER_TEXTS), parameters, [field])
    return Offer(tool, lambda r, test: _weather_task(r, test, name, field, with_unit))
