"""Answers of a form, tools that must be called, thinking before both: through the public API."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pydantic
import pytest

from mlx_qwen3.errors import OptionError, SchemaError
from mlx_qwen3.generation.output import Completion
from mlx_qwen3.llm import LLM
from mlx_qwen3.text.tokenizer import Tokenizer
from tests.checkpoints import write_checkpoint, write_tokenizer
from tests.fakes_model import EOS, FakeConfig, FakeModel
from tests.model.tiny_models import TINY_MODELS

ANY: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_tokens": 400}
OPEN, CLOSE = "<tool_call>\n", "\n</tool_call>"
LEVEL = {
    "type": "object",
    "properties": {"level": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["level"],
    "additionalProperties": False,
}
ENDLESS = {
    "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}},
    "$ref": "#/$defs/node",
}
ENDLESS["$defs"]["node"]["required"] = ["next"]  # type: ignore[index]
SET = {"name": "set_level", "description": "Set it.", "parameters": LEVEL}
GET = {"name": "get_level", "parameters": {"type": "object", "properties": {}}}


class Point(pydantic.BaseModel):
    x: int = pydantic.Field(ge=0, le=9)
    kind: Literal["near", "far"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    small = {"num_hidden_layers": 1, "max_position_embeddings": 4096}
    return write_checkpoint(tmp_path_factory.mktemp("m"), TINY_MODELS["dense"].config | small)


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return LLM.from_folder(folder)


@pytest.fixture(scope="module")
def coder(llm: LLM, tmp_path_factory: pytest.TempPathFactory) -> LLM:
    """The same model, under a template that writes calls in XML."""
    folder = write_tokenizer(tmp_path_factory.mktemp("coder"))
    path = folder / "tokenizer_config.json"
    template = json.loads(path.read_text())["chat_template"]
    form = "{# <tool_call>\n<function=f>\n</function>\n</tool_call> #}"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": form + template}))
    return LLM(llm.model, Tokenizer.from_folder(folder), {})


Saying = Callable[..., LLM]


@pytest.fixture
def saying(llm: LLM) -> Saying:
    """saying(text, **options): a model that says this in answer to "Hi" under these options."""

    def make(text: str, **options: Any) -> LLM:
        prompt = len(llm.request("Hi", **options).prompt_ids)
        script = [*llm.tokenizer.encode(text), EOS]
        model: Any = FakeModel.saying(script, prompt=prompt, config=FakeConfig(context_length=4096))
        return LLM(model, llm.tokenizer, {"temperature": 0.6})

    return make


# --- schemas -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", [LEVEL, json.dumps(LEVEL)], ids=["mapping", "text"])
def test_a_schema_gives_the_parsed_object(form: Any, llm: LLM) -> None:
    done = llm.generate("Hi", schema=form, thinking=False, seed=1, **ANY)
    assert done.finish_reason == "stop"
    assert done.parsed == json.loads(done.text)
    assert done.parsed["level"] in range(1, 10)


def test_a_pydantic_class_gives_an_object_of_it(llm: LLM) -> None:
    done = llm.generate("Hi", schema=Point, thinking=False, seed=1, **ANY)
    assert isinstance(done.parsed, Point)
    assert done.parsed.kind in ("near", "far")


def test_a_class_that_refuses_its_own_schema_warns(llm: LLM) -> None:
    class Odd(Point):
        @pydantic.field_validator("x")
        @classmethod
        def never(cls, value: int) -> int:
            raise ValueError("not odd enough")

    done = llm.generate("Hi", schema=Odd, thinking=False, seed=1, **ANY)
    assert done.parsed is None
    (warning,) = done.warnings
    assert "not odd enough" in warning
    assert "\n" not in warning


def test_an_answer_cut_short_is_not_parsed(llm: LLM) -> None:
    done = llm.generate("Hi", schema=Point, thinking=False, **{**ANY, "max_tokens": 5})
    assert (done.parsed, done.finish_reason, done.warnings) == (None, "length", ())
    assert done.text == '{"x":'


def test_regex_and_grammar(llm: LLM) -> None:
    done = llm.generate("Hi", regex="(ja|nein), [0-9]{2}/[a-c]+", thinking=False, **ANY)
    assert done.text.startswith(("ja, ", "nein, "))
    assert done.parsed is None
    lark = 'start: "<tool_call>" NUMBER ("+" NUMBER)* "</think>"\nNUMBER: /[0-9]/'
    done = llm.generate("Hi", grammar=lark, thinking=False, **ANY)
    assert done.text.startswith("<tool_call>")  # in a text with a form a tag is only text
    assert done.text.endswith("</think>")
    assert done.tool_calls == ()


def test_a_form_without_a_template(llm: LLM) -> None:
    assert llm.generate("x", raw=True, regex="[0-9]{4}", **ANY).text.isdigit()


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"schema": {"not": {}}}, SchemaError, 'schema cannot be enforced: .*"not"'),
        ({"schema": {"enum": []}}, SchemaError, "schema cannot be enforced: Unsatisfiable"),
        ({"schema": ENDLESS}, SchemaError, "schema cannot be satisfied: it requires itself"),
        ({"schema": "{"}, SchemaError, "schema is not JSON"),
        ({"schema": [1]}, SchemaError, "schema is a list; expected a JSON schema object"),
        ({"schema": {"x": {1, 2}}}, SchemaError, "schema is not JSON"),
        ({"regex": "("}, SchemaError, "regex cannot be enforced"),
        ({"regex": r"[^\s\S]"}, SchemaError, "regex cannot be satisfied"),
        ({"grammar": "start: x"}, SchemaError, "grammar cannot be enforced"),
        ({"regex": ""}, OptionError, "regex is ''; expected a text"),
        ({"regex": "a", "schema": LEVEL}, OptionError, "schema and regex are given"),
        ({"schema": LEVEL, "whitespace": "none"}, OptionError, "expected one of compact, spaced"),
        ({"strict": 1}, OptionError, "strict is 1; expected True or False"),
        ({"tool_choice": "required"}, OptionError, "there are no tools"),
        ({"tool_choice": "f", "tools": [SET]}, OptionError, "tools on offer are: set_level"),
        ({"tool_choice": 5}, OptionError, "tool_choice is 5; expected"),
        ({"tool_choice": {"type": "function"}}, OptionError, "tool_choice is {"),
        (
            {"tool_choice": "required", "tools": [SET], "schema": LEVEL},
            OptionError,
            "leaves no answer that could have a form",
        ),
        (
            {"strict": True, "tools": [{"name": "f", "parameters": {"not": {}}}]},
            SchemaError,
            "tool f cannot be enforced",
        ),
        ({"tools": [len]}, OptionError, "function len cannot be a tool: argument obj cannot be"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_before_any_work(
    options: dict[str, Any], error: type[Exception], says: str, saying: Saying
) -> None:
    llm = saying("")
    with pytest.raises(error, match=says) as caught:
        llm.stream("Hi", **options)
    assert "\n" not in str(caught.value)
    assert llm.model.caches == []  # type: ignore[attr-defined]


# --- thinking first ----------------------------------------------------------------------


def test_thinking_is_not_constrained(saying: Saying) -> None:
    llm = saying('<think>\nWhat is {"x"?\n</think>\n\n{"level":3} and more', schema=LEVEL)
    done = llm.generate("Hi", schema=LEVEL, temperature=0, max_tokens=100)
    assert done.thinking == 'What is {"x"?'
    assert (done.text, done.parsed) == ('{"level":3}', {"level": 3})
    assert done.finish_reason == "stop"


def test_a_budget_with_a_schema(saying: Saying) -> None:
    llm = saying("<think>\nI wonder and wonder and wonder", schema=LEVEL)
    done = llm.generate("Hi", schema=LEVEL, temperature=0, thinking_budget=10, max_tokens=200)
    assert done.thinking.startswith("I wonder\n\nConsidering")
    assert done.parsed["level"] in range(1, 10)


# --- tools -------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["llm", "coder"])
@pytest.mark.parametrize("seed", range(4))
def test_required_calls_and_only_those(which: str, seed: int, request: Any) -> None:
    llm: LLM = request.getfixturevalue(which)
    options = {"tools": [SET, GET], "tool_choice": "required", "thinking": False, "seed": seed}
    done = llm.generate("Hi", **options, **ANY)
    assert (done.text, done.warnings) == ("", ())
    assert done.finish_reason == "tool_calls"
    for call in done.tool_calls:
        check_call(call.name, call.arguments)


def test_a_single_call_where_only_one_may_be(saying: Saying) -> None:
    """By a grammar, and by ending the reply where there is none."""
    call = '<tool_call>\n{"name": "get_level", "arguments": {}}\n</tool_call>'
    options: dict[str, Any] = {"tools": [GET], "thinking": False, "temperature": 0}
    for more in ({}, {"tool_choice": "required"}, {"schema": LEVEL}):
        llm = saying(f"{call}\n{call}", **options)
        done = llm.generate("Hi", **options, **more, parallel_tool_calls=False)
        assert (len(done.tool_calls), done.finish_reason, done.text) == (1, "tool_calls", "")
    assert len(llm.generate("Hi", **options).tool_calls) == 2
    with pytest.raises(OptionError, match="parallel_tool_calls is 'no'"):
        llm.request("Hi", parallel_tool_calls="no")


def check_call(name: str, arguments: dict[str, Any]) -> None:
    if name == "set_level":
        assert arguments["level"] in range(1, 10)
        assert len(arguments) == 1
    else:
        assert (name, arguments) == ("get_level", {})


@pytest.mark.parametrize(
    "choice",
    ["get_level", {"type": "function", "function": {"name": "get_level"}}],
    ids=["name", "object"],
)
@pytest.mark.parametrize("which", ["llm", "coder"])
def test_one_named_tool_is_called_once(which: str, choice: Any, request: Any) -> None:
    llm: LLM = request.getfixturevalue(which)
    options = {"tools": [SET, GET], "tool_choice": choice, "thinking": False}
    done = llm.generate("Hi", **options, **ANY)
    assert [(call.name, call.arguments) for call in done.tool_calls] == [("get_level", {})]


def test_no_tools_when_none_is_the_choice(saying: Saying) -> None:
    llm = saying("")
    request = llm.request("Hi", tools=[SET], tool_choice="none")
    assert request.prompt_ids == llm.request("Hi").prompt_ids
    assert not request.parse_tools
    call = f'{OPEN}{{"name": "get_level", "arguments": {{}}}}{CLOSE}'
    done = saying(call).generate("Hi", tools=[GET], tool_choice="none", temperature=0)
    assert (done.text, done.tool_calls, done.finish_reason) == (call, (), "stop")


def said_call(level: str) -> str:
    return f'{OPEN}{{"name": "set_level", "arguments": {{"level": {level}}}}}{CLOSE}'


@pytest.mark.parametrize("where", ["tool", "request"])
def test_strict_holds_arguments_to_their_schema(where: str, saying: Saying) -> None:
    """The model wants 0; the text before the call is free."""
    tools = [{**SET, "strict": True} if where == "tool" else SET]
    options = {"tools": tools, "strict": True if where == "request" else None}
    llm = saying(f"Let me see [1, 2.\n{said_call('0')}", **options)
    done = llm.generate("Hi", **options, temperature=0, max_tokens=200)
    assert done.text.startswith("Let me see [1, 2.")
    assert done.tool_calls[0].arguments["level"] in range(1, 10)
    loose = saying(said_call("0"), tools=[SET]).generate("Hi", tools=[SET], temperature=0)
    assert loose.tool_calls[0].arguments == {"level": 0}


def test_tools_beside_a_schema(saying: Saying) -> None:
    """The answer is calls, or JSON of the schema: the model's choice."""
    options: dict[str, Any] = {"tools": [SET], "schema": Point}
    for text in (f"<think>\nhm\n</think>\n\n{said_call('4')}", said_call("4")):
        done = saying(text, **options).generate("Hi", **options, temperature=0, max_tokens=200)
        assert [call.arguments for call in done.tool_calls] == [{"level": 4}]
        assert (done.text, done.parsed) == ("", None)
    done = saying('{"x":4,"kind":"far"}', **options).generate("Hi", **options, temperature=0)
    assert done.parsed == Point(x=4, kind="far")
    assert done.tool_calls == ()


def test_a_budget_with_tools_with_a_schema(saying: Saying) -> None:
    options: dict[str, Any] = {"tools": [SET, GET], "schema": Point}
    for seed in range(4):
        llm = saying("<think>\nSo many ways", **options)
        done = llm.generate("Hi", **options, thinking_budget=6, seed=seed, max_tokens=300)
        assert done.usage.thinking_tokens > 6
        assert done.thinking.startswith("So m\n\nConsidering")
        assert done.parsed is not None or done.tool_calls or done.finish_reason == "length"
        assert done.warnings == ()


XML_PARAMETERS = {
    "type": "object",
    "properties": {
        "word": {"type": "string", "maxLength": 5},
        "code": {"type": "string", "pattern": "^[a-z]{2}$"},
        "way": {"enum": ["up", "down", 3]},
        "maybe": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"type": "null"}]},
        "list": {"type": "array", "items": {"$ref": "#/$defs/bit"}, "maxItems": 2},
    },
    "required": ["word", "code", "way", "list"],
    "$defs": {"bit": {"enum": [0, 1]}},
}


@pytest.mark.parametrize("seed", range(12))
def test_the_xml_form_keeps_to_the_schema(seed: int, coder: LLM) -> None:
    import jsonschema

    tools = [{"name": "f", "parameters": XML_PARAMETERS}]
    options = {"tools": tools, "tool_choice": "f", "strict": True, "thinking": False}
    done = coder.generate("Hi", **options, seed=seed, **ANY)
    assert done.finish_reason == "tool_calls"
    jsonschema.validate(done.tool_calls[0].arguments, XML_PARAMETERS)


def test_strict_calls_of_the_coder_form(coder: LLM, llm: LLM) -> None:
    """With and without the outer tag, which the model leaves away now and then."""
    options: dict[str, Any] = {"tools": [SET], "strict": True}
    body = "<function=set_level>\n<parameter=level>\n0\n</parameter>\n</function>"
    prompt = len(coder.request("Hi", **options).prompt_ids)
    for text in (f"{OPEN}{body}{CLOSE}", body):
        model: Any = FakeModel.saying([*coder.tokenizer.encode(text), EOS], prompt=prompt)
        done = LLM(model, coder.tokenizer, {}).generate("Hi", **options, temperature=0)
        assert done.tool_calls[0].arguments["level"] in range(1, 10)


# --- functions as tools ------------------------------------------------------------------


def test_a_function_is_a_tool(llm: LLM) -> None:
    def set_level(level: Literal[1, 2], loud: bool = False) -> None:
        """Set it."""

    done = llm.generate(
        "Hi", tools=[set_level], tool_choice="set_level", thinking=False, seed=2, **ANY
    )
    (call,) = done.tool_calls
    assert call.arguments["level"] in (1, 2)
    assert '"name": "set_level", "description": "Set it."' in llm.render("Hi", tools=[set_level])


# --- streams -----------------------------------------------------------------------------


def deltas(completion_events: Sequence[Any]) -> dict[int, str]:
    joined: dict[int, str] = {}
    for event in completion_events:
        if event.call is not None:
            joined[event.call.index] = joined.get(event.call.index, "") + event.call.arguments
    return joined


@pytest.mark.parametrize("which", ["llm", "coder"])
def test_arguments_stream_as_they_grow(which: str, request: Any) -> None:
    llm: LLM = request.getfixturevalue(which)
    tools = [{"name": "f", "parameters": XML_PARAMETERS}, SET]
    options = {"tools": tools, "tool_choice": "required", "thinking": False}
    streamed = 0
    for seed in range(6):
        events = list(llm.stream("Hi", **options, seed=seed, **ANY))
        done = events[-1].completion
        assert isinstance(done, Completion)
        joined = [json.loads(text) for text in deltas(events).values()]
        assert joined == [call.arguments for call in done.tool_calls]
        streamed += sum(event.call is not None for event in events)
    assert streamed > 30


def test_a_tool_that_is_not_strict_may_have_any_schema(llm: LLM, coder: LLM) -> None:
    """What cannot be enforced is not: the call still names the tool and passes an object."""
    odd = {"name": "odd", "parameters": {"type": "object", "properties": {"a": {"not": {}}}}}
    for model, max_tokens in ((llm, 600), (coder, 600)):
        options = {"tools": [odd], "tool_choice": "odd", "thinking": False}
        for seed in range(3):
            done = model.generate("Hi", **options, seed=seed, **{**ANY, "max_tokens": max_tokens})
            assert [call.name for call in done.tool_calls] == ["odd"] * len(done.tool_calls)
            assert done.tool_calls or done.finish_reason == "length"
