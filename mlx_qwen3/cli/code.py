"""Source code in colours that can be read on a light background and on a dark one."""

from __future__ import annotations

from rich.text import Text

# By pygments' token names; what is not here, or below something here, is plain.
_STYLES = {
    "Comment": "dim italic",
    "Keyword": "magenta",
    "Name.Function": "blue",
    "Name.Class": "blue",
    "Name.Decorator": "cyan",
    "Name.Builtin": "cyan",
    "Name.Tag": "blue",
    "Name.Attribute": "cyan",
    "Literal.String": "green",
    "Literal.Number": "cyan",
    "Operator.Word": "magenta",
    "Generic.Deleted": "red",
    "Generic.Inserted": "green",
}


def highlighted(code: str, language: str) -> Text:
    """Code with its styles; plain where the language is not known."""
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        lexer = get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return Text(code)
    text = Text()
    for token, part in lexer.get_tokens(code):
        text.append(part, _style(str(token).removeprefix("Token.")))
    return text


def _style(token: str) -> str:
    while token:
        if token in _STYLES:
            return _STYLES[token]
        token = token.rpartition(".")[0]
    return ""
