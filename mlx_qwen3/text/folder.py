"""The JSON files beside a tokenizer: which tokens are special, which chat templates there are.

Both `tokenizer` and `template` read them; nothing here knows how text becomes token ids.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_qwen3.errors import TokenizerError

# The names a template may use as variables; the same list as transformers'.
NAMED_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


@dataclass(frozen=True)
class AddedToken:
    """A token beside the base vocabulary, matched in the text before it is split."""

    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False

    @classmethod
    def from_value(cls, value: Any) -> "AddedToken":
        """From tokenizer_config.json's entry: a string, or an object with `content`."""
        if isinstance(value, str):
            return cls(value)
        fields = ("special", "lstrip", "rstrip", "single_word", "normalized")
        return cls(value["content"], **{name: bool(value.get(name, False)) for name in fields})


@dataclass(frozen=True)
class TokenizerSettings:
    """What tokenizer_config.json and its companions say.

    named: "eos_token" -> "<|im_end|>" and so on, only those that are set.
    special: texts of every token the files call special, the named ones included.
    added: id -> token, from added_tokens_decoder and added_tokens.json.
    options: the rest of tokenizer_config.json, as it is.
    """

    named: dict[str, str] = field(default_factory=dict)
    special: frozenset[str] = frozenset()
    added: dict[int, AddedToken] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_folder(cls, folder: Path) -> "TokenizerSettings":
        """Read a checkpoint folder; files that are not there count as empty.

        Raises TokenizerError when a file is there and cannot be used.
        """
        options = read_json(folder / "tokenizer_config.json")
        named_values = {**read_json(folder / "special_tokens_map.json"), **options}
        added_file = read_json(folder / "added_tokens.json")
        try:
            named = dict(_named_tokens(named_values))
            extra = _extra_special(named_values)
            added = {int(id_): AddedToken(text) for text, id_ in added_file.items()}
            for id_, value in (options.get("added_tokens_decoder") or {}).items():
                added[int(id_)] = AddedToken.from_value(value)
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise TokenizerError(
                f"{folder}: the special tokens in tokenizer_config.json, special_tokens_map.json "
                f"or added_tokens.json are malformed ({exc!r}); download those files again"
            ) from exc
        special = extra | set(named.values()) | {t.content for t in added.values() if t.special}
        return cls(named, frozenset(special), added, options)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} if there is no such file.

    Raises TokenizerError when the file is unreadable, not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as exc:
        raise TokenizerError(
            f"{path} is not readable JSON ({one_line(exc)}); download it again"
        ) from exc
    if not isinstance(value, dict):
        raise TokenizerError(
            f"{path} holds a {type(value).__name__}, expected a JSON object; download it again"
        )
    return value


def read_chat_templates(folder: Path, options: dict[str, Any] | None = None) -> dict[str, str]:
    """Every chat template of a checkpoint by name; the usual single one is "default".

    As transformers: chat_template.jinja and additional_chat_templates/*.jinja win over
    tokenizer_config.json's `chat_template` (a string, or a list of {name, template});
    chat_template.json is read when nothing else has one. {} where there is none.
    options: tokenizer_config.json when already read. Raises TokenizerError on malformed files.
    """
    if options is None:
        options = read_json(folder / "tokenizer_config.json")
    value = options.get("chat_template")
    if value is None:
        value = read_json(folder / "chat_template.json").get("chat_template")
    templates = _templates_from_value(value, folder)
    files = {"default": folder / "chat_template.jinja"}
    files |= {f.stem: f for f in sorted(folder.glob("additional_chat_templates/*.jinja"))}
    for name, path in files.items():
        if path.is_file():
            templates[name] = _read_text(path)
    return templates


def one_line(problem: object, limit: int = 300) -> str:
    """An exception's or text's words in one line of at most `limit` characters."""
    text = " ".join(str(problem).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def without_surrogates(text: str) -> str:
    """The text with surrogate pairs joined and lone halves as U+FFFD: always valid UTF-8."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _named_tokens(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name in NAMED_TOKENS:
        if values.get(name) is not None:
            yield name, AddedToken.from_value(values[name]).content


def _extra_special(values: dict[str, Any]) -> set[str]:
    found = {
        AddedToken.from_value(value).content
        for value in values.get("additional_special_tokens") or []
    }
    extra = values.get("extra_special_tokens") or []  # version 5 writes a list or an object
    entries = extra.values() if isinstance(extra, dict) else extra
    return found | {AddedToken.from_value(value).content for value in entries}


def _templates_from_value(value: Any, folder: Path) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    try:
        templates = {entry["name"]: entry["template"] for entry in value}
    except (TypeError, KeyError):
        templates = {}
    if not templates or not all(isinstance(t, str) for t in templates.values()):
        raise TokenizerError(
            f"{folder}: chat_template is neither a string nor a list of "
            "{name, template}; download tokenizer_config.json again"
        )
    return templates


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as exc:
        raise TokenizerError(f"{path} is unreadable ({one_line(exc)}); download it again") from exc
