"""What a docstring says about a function and its arguments: Google, NumPy or Sphinx style."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Description:
    """summary: the text before any section. arguments: name -> what it says, in one line."""

    summary: str = ""
    arguments: dict[str, str] = field(default_factory=dict)


def read_docstring(docstring: str | None) -> Description:
    """Read one, whatever its style; what follows no style is part of the summary."""
    text = inspect.cleandoc(docstring or "")
    for read in _STYLES:
        if (found := read(text)) is not None:
            return found
    return Description(_cut(text))


def _google(text: str) -> Description | None:
    """Args: and an indented line for each: name (type): what it is."""
    section = re.search(r"^(?:Args|Arguments|Parameters):[ \t]*\n((?:[ \t]+.*\n?|\n)+)", text, re.M)
    if section is None:
        return None
    body = inspect.cleandoc("\n" + section[1])
    entries = re.findall(
        r"^\*{0,2}(\w+)[ \t]*(?:\(.*?\))?:[ \t]*(.*(?:\n(?:[ \t]+.*|$))*)", body, re.M
    )
    return Description(_cut(text[: section.start()]), _joined(entries))


def _numpy(text: str) -> Description | None:
    """Parameters, a line of dashes, and for each: name : type, and an indented text."""
    section = re.search(r"^Parameters[ \t]*\n-{3,}[ \t]*\n((?:.*\n?)*)", text, re.M)
    if section is None:
        return None
    body = re.split(r"^[A-Z]\w*[ \t]*\n-{3,}", section[1], maxsplit=1, flags=re.M)[0]
    entries = re.findall(r"^\*{0,2}(\w+)[^\n]*\n((?:[ \t]+.*\n?|\n)*)", body, re.M)
    return Description(_cut(text[: section.start()]), _joined(entries))


def _sphinx(text: str) -> Description | None:
    """:param type name: what it is."""
    first = re.search(r"^:(?:param|type|return|rtype|raise)", text, re.M)
    if first is None:
        return None
    fields = re.split(r"^(?=:\w)", text[first.start() :], flags=re.M)
    found = (
        re.match(r":param[ \t]+(?:[^:\n]+[ \t])?\*{0,2}(\w+):\s*(.*)", f, re.S) for f in fields
    )
    return Description(_cut(text[: first.start()]), _joined([m.groups() for m in found if m]))


_STYLES: tuple[Callable[[str], Description | None], ...] = (_google, _numpy, _sphinx)
_OTHERS = "Returns?|Raises|Yields?|Examples?|Notes?|See Also|Attributes"
_SECTION = re.compile(rf"^(?:{_OTHERS})(?::[ \t]*$|[ \t]*\n-{{3,}}).*\Z", re.M | re.S)


def _cut(text: str) -> str:
    """The text before any other section, its paragraphs in one line each."""
    paragraphs = re.split(r"\n\s*\n", _SECTION.sub("", text).strip())
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _joined(entries: list[tuple[str, ...]]) -> dict[str, str]:
    return {name: " ".join(text.split()) for name, text in entries if text.strip()}
