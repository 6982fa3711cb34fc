"""The stream parser: what is thinking, what is answer, what is a call, however it is cut."""

import random
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_qwen3.text import Piece, StreamParser, ToolCall
from tests.text.splits import repeatable, split


def run(parts: Iterable[str], **options: Any) -> list[Piece]:
    """All pieces, neighbours of one kind merged."""
    parser = StreamParser(**options)
    pieces = [piece for part in parts for piece in parser.feed(part)] + parser.finish()
    merged: list[Piece] = []
    for piece in pieces:
        if merged and merged[-1].kind == piece.kind != "tool_call":
            piece = Piece(piece.kind, merged.pop().text + piece.text)
        merged.append(piece)
    return merged


def parse(text: str, **options: Any) -> list[Piece]:
    """Parse at once and character by character; they must agree."""
    whole = run([text], **options)
    assert run(text, **options) == whole
    return whole


def brief(text: str, **options: Any) -> list[tuple[str, Any]]:
    """(kind, text), or (name, arguments) for a call that could be read."""
    return [
        (p.kind, p.text)
        if p.tool_call is None
        else (p.tool_call.name, p.tool_call.error or p.tool_call.arguments)
        for p in parse(text, **options)
    ]


# --- thinking


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("<think>\nHm.\n</think>\n\nYes", "Hm.", "Yes"),
        ("<think>Hm.</think>Yes", "Hm.", "Yes"),
        ("\n <think>\n\n\n a\n\nb \n\n</think>\n\n\n Yes\n", " a\n\nb ", " Yes\n"),
        ("<think>\n\n</think>\n\nYes", "", "Yes"),
        ("<think>\n\n\n\n", "", ""),
        ("<think>Hm.", "Hm.", ""),
        ("<think>Hm.\n", "Hm.", ""),
        ("<think>Hm.\n</thi", "Hm.\n</thi", ""),
        ("<think>a </ b <think> c </thin> d</think>e", "a </ b <think> c </thin> d", "e"),
        ("<think>a\n\n\n<b>\n</think>c", "a\n\n\n<b>", "c"),
        ("<think>a</think></think>b", "a", "b"),
        ("<think>a<tool_call>{}</tool_call></think>b", "a<tool_call>{}</tool_call>", "b"),
        ("Yes", "", "Yes"),
        ("\n\n Yes \n", "", "\n\n Yes \n"),
        ("Yes </think> no", "", "Yes  no"),
        ("</think>\n\nYes", "", "Yes"),
        ("Yes <think>no</think>", "", "Yes <think>no"),
        ("<thin", "", "<thin"),
        (" <thing>", "", " <thing>"),
        ("", "", ""),
        ("  ", "", "  "),
        ("a </thin", "", "a </thin"),
        ("a\n\n", "", "a\n\n"),
    ],
)
def test_thinking_and_answer(text: str, thinking: str, answer: str) -> None:
    expected = [("thinking", thinking), ("answer", answer)]
    assert brief(text) == [(kind, said) for kind, said in expected if said]


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("Hm.\n</think>\n\nYes", "Hm.", "Yes"),
        ("\nHm.", "Hm.", ""),
        ("<think>\nHm.\n</think>\nYes", "Hm.", "Yes"),
        ("\n<think>Hm.</think>Yes", "Hm.", "Yes"),
        ("</think>\n\nYes", "", "Yes"),
        (" \n</think>\n\nYes", "", "Yes"),
        ("<think", "<think", ""),
        ("<thinker>", "<thinker>", ""),
        ("a <think> b", "a <think> b", ""),
    ],
)
def test_the_prompt_opened_the_thinking(text: str, thinking: str, answer: str) -> None:
    expected = [("thinking", thinking), ("answer", answer)]
    wanted = [(kind, said) for kind, said in expected if said]
    assert brief(text, in_thinking=True) == wanted
    assert brief(text, in_thinking=True, expect_thinking=False) == wanted


def test_without_thinking_tags_are_text() -> None:
    text = "<think>a</think>\n\nb </think"
    assert brief(text, expect_thinking=False) == [("answer", text)]


def test_nothing_sure_is_held_back() -> None:
    parser = StreamParser()
    assert parser.feed("<think>\nSo ") == [Piece("thinking", "So ")]
    assert parser.feed("it is\n") == [Piece("thinking", "it is")]
    assert parser.feed("\n<") == []
    assert parser.feed("3") == [Piece("thinking", "\n\n<3")]
    assert parser.feed("</think>") == []
    assert parser.feed("\n\n") == []
    assert parser.feed("A 1 < ") == [Piece("answer", "A 1 <")]
    assert parser.feed("2") == [Piece("answer", " 2")]
    assert parser.finish() == []


def test_an_answer_streams_at_once_when_no_tool_can_come() -> None:
    parser = StreamParser(parse_tools=False)
    assert parser.feed("One ") == [Piece("answer", "One ")]
    assert parser.feed("<tool_call>") == [Piece("answer", "<tool_call>")]


# --- tool calls


def call(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


CLOCK = call('{"name": "clock", "arguments": {"zone": "Asia/Tokyo"}}')
TOKYO = ("clock", {"zone": "Asia/Tokyo"})


def test_a_call_carries_everything() -> None:
    expected = ToolCall("clock", {"zone": "Asia/Tokyo"}, CLOCK)
    assert parse(CLOCK) == [Piece("tool_call", CLOCK, expected)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"<think>\nHm\n</think>\n\n{CLOCK}", [("thinking", "Hm"), TOKYO]),
        (f"\n\n{CLOCK}\n\n", [TOKYO]),
        (
            f"Let me see.\n\n{CLOCK}\nDone \n",
            [("answer", "Let me see."), TOKYO, ("answer", "Done \n")],
        ),
        (f"{CLOCK}\n{CLOCK}{CLOCK}  \n {CLOCK}", [TOKYO] * 4),
        (f"a{CLOCK}b{CLOCK}c", [("answer", "a"), TOKYO, ("answer", "b"), TOKYO, ("answer", "c")]),
        (f"{CLOCK}</tool_call>\n</tool_call>\n", [TOKYO]),
        (f"{CLOCK}\n</tool", [TOKYO, ("answer", "</tool")]),
        ("a </tool_call> b", [("answer", "a </tool_call> b")]),
        ("a <tool_calls>", [("answer", "a <tool_calls>")]),
        ("a \n<tool_cal", [("answer", "a \n<tool_cal")]),
    ],
)
def test_calls_in_their_surroundings(text: str, expected: list[tuple[str, Any]]) -> None:
    assert brief(text) == expected


def test_calls_are_text_when_not_asked_for() -> None:
    assert brief(f"x\n{CLOCK}", parse_tools=False) == [("answer", f"x\n{CLOCK}")]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"name": "f", "arguments": {}}', {}),
        ('{"name": "f"}', {}),
        ('{"name": "f", "arguments": ""}', {}),
        ('{"name": "f", "arguments": "{\\"a\\": 1}"}', {"a": 1}),
        ('{"name": "f", "parameters": {"a": 1}}', {"a": 1}),
        ('{"arguments": {"a": [1, {"b": null}]}, "name": "f"}', {"a": [1, {"b": None}]}),
        ('{"name": "f", "arguments": {"re": "^\\\\d+\\"$"}}', {"re": '^\\d+"$'}),
        ('{"name": "f", "arguments": {"a": "\\ud83d\\ude00 é 你"}}', {"a": "😀 é 你"}),
        ('{"name": "f", "arguments": {"a": "</tool_call>"}}', {"a": "</tool_call>"}),
        ('{"name": "f", "arguments": {"a": "\\"</tool_call>\\\\"}}', {"a": '"</tool_call>\\'}),
        ('{"name": "f", "arguments": {"a": "<tool_call>\\n<function=x>"}}', None),
        # repaired
        ('{"name": "f", "arguments": {"a": "one\n\ttwo"}}', {"a": "one\n\ttwo"}),
        ('{"name": "f", "arguments": {"re": "\\d+\\.\\w\\b"}}', {"re": r"\d+\.\w\b"}),
        ('{"name": "f", "arguments": {"re": "\\d\\\\s\\"\\n"}}', {"re": '\\d\\s"\n'}),
        ('{"name": "f", "arguments": {"re": "\\u12\\d"}}', {"re": r"\u12\d"}),
        ('{"name": "f", "arguments": {"a": 1}', {"a": 1}),
        ('{"name": "f", "arguments": {"a": [1, "}"', {"a": [1, "}"]}),
        ('{"name": "f", "arguments": {"a": 1}}}', {"a": 1}),
    ],
)
def test_json_calls_that_can_be_read(body: str, expected: dict[str, Any] | None) -> None:
    expected = {"a": "<tool_call>\n<function=x>"} if expected is None else expected
    assert brief(call(body) + "\nafter") == [("f", expected), ("answer", "after")]


@pytest.mark.parametrize(
    ("body", "name", "error"),
    [
        ("", "", "not valid JSON"),
        ("hello", "", "not valid JSON"),
        ("[]", "", "is a JSON list, expected an object"),
        ('"f"', "", "is a JSON str"),
        ('{"arguments": {}}', "", "has no name"),
        ('{"name": 5, "arguments": {}}', "", "has no name"),
        ('{"name": "f", "arguments": [1]}', "f", "arguments of type list"),
        ('{"name": "f", "arguments": "x"}', "f", "not valid JSON"),
        ('{"name": "f", "arguments": {"a": NaN}}', "f", "NaN is not JSON"),
        ('{"name": "f", "arguments": {"a": "\\ud83d"}}', "f", "half of a surrogate"),
        ('{"name": "f", "arguments": {"a": 1]}', "f", "not valid JSON"),
        ('{"name": "f", "arguments": {"a": "x" "b"}}', "f", "not valid JSON"),
        ('{"name": "f", "arguments": {"a": "say "hi" now"}}', "f", "not valid JSON"),
        ('{"name": "f"} and more', "f", "not valid JSON"),
        ('{"name": "f", "arguments": ' + "[" * 20_000, "f", ""),
        ('{"name": "f", "arguments": {"a": ' + "1" * 5000 + "}}", "f", ""),
    ],
)
def test_calls_that_make_no_sense_are_still_calls(body: str, name: str, error: str) -> None:
    piece, after = run([call(body) + "\nafter"])
    assert piece.tool_call is not None
    assert piece.tool_call.error is not None
    assert error in piece.tool_call.error
    assert "\n" not in piece.tool_call.error
    assert (piece.tool_call.name, piece.tool_call.arguments) == (name, {})
    assert piece.text == piece.tool_call.raw == call(body)
    assert after == Piece("answer", "after")


def test_an_open_quote_does_not_swallow_the_next_call() -> None:
    """Inside an open string </tool_call> ends nothing, so all that follows looked like a value."""
    broken = call('{"name": "f", "arguments": {"a": "x}}')
    for text in (f"{broken}\n{CLOCK}\nafter", f"{broken}\n{CLOCK}\n{CLOCK}", broken):
        pieces = parse(text)
        first = pieces[0].tool_call
        assert first is not None
        assert (first.raw, first.name) == (broken, "f")
        assert first.error is not None
        others = [piece.tool_call for piece in pieces[1:] if piece.tool_call]
        assert [c.error for c in others] == [None] * text.count("clock")


def test_an_open_quote_closed_by_the_answer() -> None:
    broken = call('{"name": "f", "arguments": {"a": "x}}')
    for rest in (f'"\n{CLOCK}', f'"</tool_call>\n{CLOCK}'):
        pieces = parse(f"{broken}\nIt is {rest}")
        assert pieces[0].text == broken
        assert pieces[1].text.startswith('It is "')
        assert pieces[2].text == CLOCK


def test_a_call_that_was_never_closed_ends_at_the_next() -> None:
    text = '<tool_call>\n{"name": "f", "arguments": {}}\n' + CLOCK
    assert brief(text) == [("f", {}), TOKYO]


@pytest.mark.parametrize("end", range(len("<tool_call>"), len(CLOCK)))
def test_a_call_cut_off_is_still_a_call(end: int) -> None:
    (piece,) = parse("Wait.\n" + CLOCK[:end])[1:]
    made = piece.tool_call
    assert made is not None
    assert piece.text == made.raw == CLOCK[:end]
    if end >= CLOCK.rindex("}") + 1:  # only the tag is missing
        assert (made.name, made.arguments, made.error) == (*TOKYO, None)
    else:
        assert made.error is not None
        assert "its end is missing" in made.error
        assert made.arguments == {}


# --- the Coder form

XML = """<function=write>
<parameter=path>
a.py
</parameter>
<parameter=text>
def f():
    return "</tool_call>" < 2

</parameter>
<parameter=count>
12
</parameter>
</function>"""
WRITTEN = {"path": "a.py", "text": 'def f():\n    return "</tool_call>" < 2\n', "count": 12}


@pytest.mark.parametrize(
    "text",
    [
        call(XML),
        f"<tool_call>{XML}</tool_call>",
        XML,
        f"<tool_call>\n{XML}",
        f"<tool_call>\n{XML}\n\n\n\n</tool_call>",
    ],
)
@pytest.mark.parametrize("after", ["", "\n\nafter", "<tool_call>"])
def test_the_xml_form(text: str, after: str) -> None:
    first, *rest = brief(f"Writing.\n\n{text}{after}")[1:]
    assert first == ("write", WRITTEN)
    assert len(rest) == (after != "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{XML}\n{XML}", [("write", WRITTEN)] * 2),
        (f"Two:\n{XML}\n{XML}", [("answer", "Two:"), *[("write", WRITTEN)] * 2]),
        (f"{call(XML)}\n{call(XML)}", [("write", WRITTEN)] * 2),
        (f"<tool_call>\n{XML}\n{XML}\n</tool_call>", [("write", WRITTEN)] * 2),
        (f"{call(XML)}\n{CLOCK}", [("write", WRITTEN), TOKYO]),
        ("<function=f></function>", [("f", {})]),
        (call("<function=f>\n</function>"), [("f", {})]),
        (call("<function=f>"), [("f", {})]),
        ("<function=f><parameter=a></parameter></function>", [("f", {"a": ""})]),
        ("<function=f><parameter=a>\n\n\n</parameter></function>", [("f", {"a": "\n"})]),
        (call("<function=f>\n<parameter=a>\n1\n</function>"), [("f", {"a": 1})]),
        (call("<function=f>\n<parameter=a>\n1\n</parameter>"), [("f", {"a": 1})]),
        (
            "<function=f>\n<parameter=a>\n1\n<parameter=b>\nx</function>\n</parameter>\n</function>",
            [("f", {"a": 1, "b": "x</function>"})],
        ),
        (
            call("<function=f>\n<parameter=a>\nx</parameter>y\n</parameter>\n</function>"),
            [("f", {"a": "x</parameter>y"})],
        ),
        ("Use <function=f> here", [("answer", "Use <function=f> here")]),
        ("Use\n<function=f x> here", [("answer", "Use\n<function=f x> here")]),
        ("Use\n <function=f", [("answer", "Use\n <function=f")]),
        (
            "Use <function=f>\n<function=g>\n</function>",
            [("answer", "Use <function=f>"), ("g", {})],
        ),
    ],
)
def test_xml_calls_in_their_surroundings(text: str, expected: list[tuple[str, Any]]) -> None:
    assert brief(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        XML[:-20],
        f"<tool_call>\n{XML[:-20]}",
        call("<function=>\n</function>"),
        call("<function=f>\nloose text\n</parameter>\n</function>"),
        "<tool_call>\n<func",
        "<tool_call>\n<function=f>\n<parameter=a>\nwrite </function> or </tool_call> to",
        "<tool_call>\n<function=f>\n<parameter=a>\nwrite </function> and",
    ],
)
def test_xml_calls_that_make_no_sense(text: str) -> None:
    first = parse(text)[0]
    assert first.tool_call is not None
    assert first.tool_call.error is not None
    assert first.tool_call.arguments == {}


def schema(**properties: Any) -> list[dict[str, Any]]:
    parameters = {"type": "object", "properties": properties}
    return [{"type": "function", "function": {"name": "f", "parameters": parameters}}]


@pytest.mark.parametrize(
    ("value", "declared", "expected"),
    [
        ("12", None, 12),
        ("12", {"type": "string"}, "12"),
        ("null", {"type": "string"}, "null"),
        ('{"a": 1}', {"type": "string"}, '{"a": 1}'),
        ('{"a": 1}', {"type": "object"}, {"a": 1}),
        ("[1]", {"type": "array"}, [1]),
        ("1.5", {"type": "number"}, 1.5),
        ("1", {"type": "number"}, 1),
        ("true", {"type": "boolean"}, True),
        ("True", {"type": "boolean"}, True),
        ("None", {"type": ["integer", "null"]}, None),
        ("12", {"type": ["string", "null"]}, "12"),
        ("null", {"type": ["string", "null"]}, None),
        ("12", {"anyOf": [{"type": "string"}, {"type": "null"}]}, "12"),
        ("12", {"anyOf": [{"type": "string"}, {"type": "integer"}]}, 12),
        ("12", {"enum": ["12", "13"]}, "12"),
        ("x", {"type": "integer"}, "x"),
        ("1.5", {"type": "integer"}, "1.5"),
        ("NaN", {"type": "number"}, "NaN"),
        ('"quoted"', None, '"quoted"'),
        ("007", None, "007"),
        ("12", "no schema", 12),
    ],
)
def test_values_take_their_type_from_the_schema(value: str, declared: Any, expected: Any) -> None:
    tools = schema(a=declared) if declared is not None else schema(b={"type": "string"})
    text = f"<function=f>\n<parameter=a>\n{value}\n</parameter>\n</function>"
    ((name, arguments),) = brief(text, tools=tools)
    assert (name, arguments) == ("f", {"a": expected})
    assert type(arguments["a"]) is type(expected)
    bare = [tools[0]["function"]]
    assert brief(text, tools=bare) == [("f", {"a": expected})]
    other = brief(text.replace("=f>", "=g>"), tools=tools)
    assert other == brief(text.replace("=f>", "=g>"))


@pytest.mark.parametrize("tools", [[{}], [{"function": 5}], [{"name": "f", "parameters": 5}], [5]])
def test_malformed_tools_do_not_stop_the_stream(tools: list[Any]) -> None:
    assert parse(XML.replace("write", "f"), tools=tools)[0].kind == "tool_call"


# --- any text, any split

FRAGMENTS = [
    *["<think>", "</think>", "<tool_call>", "</tool_call>", "<function=f>", "</function>"],
    *["<parameter=a>", "</parameter>", "\n", "\n\n", " ", '"', "\\", "{", "}", "<", "</", "x", "é"],
    *['{"name": "f", "arguments": {"a": "', '"}}', '{"name": "f"}', "<thin", "</tool_", "word "],
    *[CLOCK, XML, "<think>\nHm.\n</think>\n\n"],
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"in_thinking": True},
    {"expect_thinking": False},
    {"parse_tools": False},
    {"tools": schema(a={"type": "string"})},
]


@repeatable
@given(
    fragments=st.lists(st.sampled_from(FRAGMENTS), max_size=14),
    options=st.sampled_from(OPTIONS),
    seed=st.integers(0, 99),
)
def test_any_split_gives_the_same(fragments: list[str], options: dict[str, Any], seed: int) -> None:
    text = "".join(fragments)
    whole = parse(text, **options)
    assert run(split(text, random.Random(seed)), **options) == whole
    check_nothing_lost(text, whole)


def check_nothing_lost(text: str, pieces: list[Piece]) -> None:
    """All that is missing are think tags, stray ends and whitespace."""
    left = len(text) - sum(len(piece.text) for piece in pieces)
    removable = sum(text.count(tag) * len(tag) for tag in ("<think>", "</think>", "</tool_call>"))
    assert 0 <= left <= removable + sum(map(str.isspace, text))
    assert all(p.text for p in pieces)
    assert all((p.tool_call is not None) == (p.kind == "tool_call") for p in pieces)


def check_random_splits(rounds: int) -> None:
    rng = random.Random(11)
    for _ in range(rounds):
        text = "".join(rng.choices(FRAGMENTS, k=rng.randint(0, 14)))
        options = rng.choice(OPTIONS)
        assert run(split(text, rng), **options) == run([text], **options), (text, options)


def test_random_splits() -> None:
    check_random_splits(2_000)


@pytest.mark.slow
def test_a_hundred_thousand_random_splits() -> None:
    check_random_splits(100_000)


def test_long_calls_are_read_once() -> None:
    """Time grows with the length, not its square: 1 MB by fours takes seconds, not minutes."""
    text = call('{"name": "f", "arguments": {"a": "' + "x\\n" * 80_000 + '"}}')
    (piece,) = run(text[i : i + 4] for i in range(0, len(text), 4))
    assert piece.tool_call is not None
    assert piece.tool_call.arguments == {"a": "x\n" * 80_000}
