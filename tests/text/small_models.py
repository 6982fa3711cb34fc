"""What the small tokenizers are trained on, and how a SentencePiece one is made."""

import io
from typing import Any

CORPUS = [
    "The quick brown fox jumps over the lazy dog, again and again and again.",
    "def f(x):\n    return x + 1\n\n\nprint(f(41))",
    "你好，世界。今天天气很好。你好，朋友。",
    "Grüße aus Zürich! Ça va? Žluťoučký kůň.",
    "emoji 🎉🎉 👩‍👩‍👧 and numbers 0123456789",
] * 4


def sentence_piece_model(**options: object) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    settings: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": 420,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "minloglevel": 5,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, **{**settings, **options}
    )
    return model.getvalue()
