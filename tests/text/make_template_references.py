"""Render every case of template_cases.py with transformers; write template_references.json.

Needs transformers and the published Qwen3 tokenizer's template. From the repository root:

    python -m tests.text.make_template_references
"""

import json
from typing import Any

from tests.text.template_cases import CASES, REFERENCES, SPECIAL_TOKENS, Case, template_source


def reference_tokenizer(template: str | dict[str, str]) -> Any:
    """A transformers tokenizer that only has special tokens and this template."""
    import transformers
    from tokenizers import Tokenizer, models

    make: Any = transformers.PreTrainedTokenizerFast
    return make(tokenizer_object=Tokenizer(models.BPE()), chat_template=template, **SPECIAL_TOKENS)


def render(tokenizer: Any, case: Case) -> str | None:
    """What transformers renders; None when it refuses."""
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(
            case.messages,
            tools=case.tools,
            tokenize=False,
            add_generation_prompt=case.add_generation_prompt,
            **case.variables,
        )
    except (TemplateError, TypeError, ValueError):
        return None
    return text


def references() -> dict[str, str | None]:
    tokenizers: dict[str, Any] = {}
    found: dict[str, str | None] = {}
    for case in CASES:
        for template, key in case.renderings():
            if template not in tokenizers:
                source = template_source(template)
                assert source is not None, "the published Qwen3 tokenizer is not here"
                tokenizers[template] = reference_tokenizer(source)
            found[key] = render(tokenizers[template], case)
    return found


def main() -> None:
    found = references()
    REFERENCES.write_text(json.dumps(found, indent=1) + "\n", encoding="ascii")
    refused = [key for key, text in found.items() if text is None]
    print(f"{len(found)} renderings; transformers refuses {refused}")


if __name__ == "__main__":
    main()
