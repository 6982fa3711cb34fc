"""conversion.json: what a conversion was asked for and what it did, beside the weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_qwen3_convert.origin import Origin

RECORD = "conversion.json"


@dataclass(frozen=True)
class Record:
    """request: a digest of what was asked, which the next run is compared with.

    facts: source, recipe, bits per weight, and the fate of every tensor.
    """

    request: str
    facts: Mapping[str, Any]

    @classmethod
    def of(cls, origin: Origin, asked: object, facts: Mapping[str, Any]) -> Record:
        """asked: all that decides the outcome beside the source."""
        source = {"source": origin.name, "revision": origin.revision}
        return cls(request_digest(origin.name, asked), {**source, **facts})

    def write(self, folder: Path) -> None:
        """Into a model's folder."""
        text = json.dumps({**self.facts, "request": self.request}, indent=1, ensure_ascii=False)
        (folder / RECORD).write_text(text + "\n", encoding="utf-8")


def request_digest(source: str, asked: object) -> str:
    """Of a source by name and of the options; not the options themselves, which may hold paths."""
    return hashlib.sha256(repr((source, asked)).encode()).hexdigest()[:32]


def read_facts(folder: Path) -> dict[str, Any]:
    """What a folder's record says; empty where there is none that can be read."""
    try:
        return dict(json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}
