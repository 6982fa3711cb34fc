"""Under which licence a checkpoint may be used, in the words of a model card's front matter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Keys of the front matter, and those of a GGUF file's metadata.
_KEYS = {
    "license": "general.license",
    "license_name": "general.license.name",
    "license_link": "general.license.link",
}
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*$", re.DOTALL | re.MULTILINE)
# Plain words only: what is copied into a card must not change its meaning.
_ENTRY = re.compile(
    r"^(license(?:_name|_link)?):[ \t]*[\"']?([\w./:@+-]+)[\"']?[ \t]*$", re.MULTILINE
)


def folder_licence(folder: Path) -> dict[str, str]:
    """What README.md says, or else a LICENSE file; empty where both are silent."""
    found = _FRONT_MATTER.match(_text(folder / "README.md"))
    said = dict(_ENTRY.findall(found[1])) if found else {}
    if "license" in said:
        return said
    text = next((_text(file) for file in sorted(folder.glob("LICENSE*"))), "")
    if "Apache License" in text and "Version 2.0" in text:
        return {"license": "apache-2.0"}
    return {"license": "other", "license_link": "LICENSE"} if text else {}


def gguf_licence(metadata: Mapping[str, Any]) -> dict[str, str]:
    """What the metadata say."""
    found = {word: str(metadata[key]) for word, key in _KEYS.items() if key in metadata}
    return {word: value for word, value in found.items() if _ENTRY.fullmatch(f"{word}: {value}")}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
