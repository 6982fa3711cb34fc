"""What is asked of an answer: a schema, a regex or a grammar; which tools, and how strictly."""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from mlx_qwen3.errors import OptionError, SchemaError
from mlx_qwen3.generation.constraints import (
    AnswerConstraint,
    Constraint,
    GrammarRule,
    TriggeredRule,
    Vocabulary,
    check_grammar,
    check_satisfiable,
)
from mlx_qwen3.generation.grammars import (
    WHITESPACE,
    answer_grammar,
    call_rules,
    call_triggers,
    calls_grammar,
    json_part,
    lark_part,
    regex_part,
)
from mlx_qwen3.generation.recursion import is_finite
from mlx_qwen3.text.folder import one_line
from mlx_qwen3.text.template import CallForm

_WAYS = ("none", "auto", "required")


@dataclass(frozen=True)
class AnswerOptions:
    """The form an answer must have; None: any.

    schema: a JSON schema (a mapping, or its JSON text), or a pydantic model class. regex: matches
    the whole answer. grammar: Lark, as llguidance reads it. One of the three.
    whitespace: of JSON: "compact", "spaced" (after commas and colons) or "free".
    tool_choice: "auto", "none", "required" (at least one call), or the one tool to call, by name
    or in OpenAI's form. strict: hold every tool's arguments to its schema; a tool may also say
    so itself ("strict": true). parallel_tool_calls: False ends a reply with its first call.
    """

    schema: Any = None
    regex: str | None = None
    grammar: str | None = None
    whitespace: str = "compact"
    tool_choice: Any = "auto"
    strict: bool = False
    parallel_tool_calls: bool = True

    @classmethod
    def take(cls, options: MutableMapping[str, Any]) -> AnswerOptions:
        """Take these options out of others; one that is None counts as not given.

        Raises OptionError.
        """
        given = {entry.name: options.pop(entry.name, None) for entry in fields(cls)}
        return cls(**{name: value for name, value in given.items() if value is not None})

    def __post_init__(self) -> None:
        asked = [name for name in ("schema", "regex", "grammar") if getattr(self, name) is not None]
        if len(asked) > 1:
            raise OptionError(f"{' and '.join(asked)} are given; an answer has one form, pick one")
        for name in ("regex", "grammar"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                raise OptionError(f"{name} is {value!r}; expected a text")
        if self.whitespace not in WHITESPACE:
            raise OptionError(
                f"whitespace is {self.whitespace!r}; expected one of {', '.join(WHITESPACE)}"
            )
        for name in ("strict", "parallel_tool_calls"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise OptionError(f"{name} is {value!r}; expected True or False")

    @property
    def formed(self) -> bool:
        """Whether an answer must have a form, so that any tag in it is part of the text."""
        return any(one is not None for one in (self.schema, self.regex, self.grammar))

    @property
    def chosen(self) -> str:
        """tool_choice as "none", "auto", "required" or a tool's name. Raises OptionError."""
        choice: Any = self.tool_choice
        if isinstance(choice, Mapping):
            function = choice.get("function", choice)
            choice = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(choice, str) or not choice:
            raise OptionError(
                f"tool_choice is {self.tool_choice!r}; expected none, auto, required or a tool"
            )
        return choice

    def constraint(
        self,
        tools: Sequence[Mapping[str, Any]],
        form: CallForm,
        vocabulary: Vocabulary,
        *,
        in_thinking: bool = False,
        may_think: bool = False,
    ) -> ConstraintPlan | None:
        """How to hold an answer to all this; None where anything goes.

        tools: those on offer, in OpenAI's form. form: how this model writes calls. in_thinking,
        may_think: the prompt ends inside a thought, the model may open one.
        Raises SchemaError for what cannot be enforced or satisfied, OptionError.
        """
        functions = _functions(tools)
        choice = self._check_choice([function["name"] for function in functions])
        grammar, triggers, several = "", {}, self.parallel_tool_calls
        if choice not in _WAYS:
            functions = [one for one in functions if one["name"] == choice]
        if choice not in ("none", "auto"):
            many = several and choice == "required"
            rules = call_rules(functions, form, strict=self.strict, many=many)
            grammar = calls_grammar(rules)
        elif self.formed:
            rules = call_rules(functions, form, strict=self.strict, many=several)
            grammar = self._answer(vocabulary, rules if functions else "")
        elif any(self.strict or function.get("strict") for function in functions):
            triggers = call_triggers(functions, form, strict=self.strict)
        if not grammar and not triggers:
            return None
        return ConstraintPlan(vocabulary, grammar, triggers, in_thinking, may_think)

    def parse(self, text: str) -> Any:
        """The object an answer under a schema is, of the pydantic class where it was one.

        Raises ValueError (json's, pydantic's) when it is none, as an answer cut short.
        """
        if self.schema is None:
            return None
        if hasattr(self.schema, "model_validate_json"):
            return self.schema.model_validate_json(text)
        return json.loads(text)

    def _answer(self, vocabulary: Vocabulary, calls: str) -> str:
        """The grammar of an answer of this form, or of calls."""
        name, part = self._part()
        own = answer_grammar(part)
        check_grammar(own, name)
        check_satisfiable(vocabulary, own, name)
        return answer_grammar(part, calls)

    def _part(self) -> tuple[str, dict[str, Any]]:
        if self.regex is not None:
            return "regex", regex_part(self.regex)
        if self.grammar is not None:
            return "grammar", lark_part(self.grammar)
        schema = _schema(self.schema)
        if not is_finite(schema, schema):
            raise SchemaError(
                "schema cannot be satisfied: it requires itself without end; make a property "
                "optional, or allow null"
            )
        return "schema", json_part(schema, self.whitespace)

    def _check_choice(self, names: Sequence[str]) -> str:
        choice = self.chosen
        if choice == "required" and not names:
            raise OptionError("tool_choice is required, but there are no tools; pass some")
        if choice not in (*_WAYS, *names):
            offered = ", ".join(names) or "none"
            raise OptionError(f"tool_choice names {choice!r}; the tools on offer are: {offered}")
        if choice not in ("none", "auto") and self.formed:
            raise OptionError(
                f"tool_choice {choice} leaves no answer that could have a form; drop either"
            )
        return choice


@dataclass(frozen=True)
class ConstraintPlan:
    """A constraint that was checked, and can be started once for every reply."""

    vocabulary: Vocabulary
    grammar: str = ""
    triggers: Mapping[str, str] = field(default_factory=dict)
    in_thinking: bool = False
    may_think: bool = False

    def start(self) -> Constraint:
        """A constraint at the beginning of a reply."""
        rule = (
            GrammarRule(self.vocabulary, self.grammar)
            if self.grammar
            else TriggeredRule(self.vocabulary, self.triggers)
        )
        return AnswerConstraint(
            self.vocabulary, rule, in_thinking=self.in_thinking, may_think=self.may_think
        )


def _functions(tools: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The function objects of tools in OpenAI's form, those that can be called by name."""
    functions = [tool.get("function") for tool in tools]
    return [one for one in functions if isinstance(one, Mapping) and one.get("name")]


def _schema(schema: Any) -> Mapping[str, Any]:
    """A schema as a mapping, however it was given. Raises SchemaError."""
    if hasattr(schema, "model_json_schema"):
        schema = schema.model_json_schema()
    try:
        plain = json.loads(schema) if isinstance(schema, str) else json.loads(json.dumps(schema))
    except (ValueError, TypeError) as exc:
        raise SchemaError(f"schema is not JSON: {one_line(exc)}") from exc
    if not isinstance(plain, Mapping):
        raise SchemaError(
            f"schema is a {type(plain).__name__}; expected a JSON schema object or pydantic class"
        )
    return plain
