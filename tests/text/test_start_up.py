"""What importing the package costs."""

import subprocess
import sys

HEAVY = ("mlx", "numpy", "tokenizers", "sentencepiece", "jinja2", "transformers", "huggingface_hub")


def test_importing_text_loads_nothing_heavy() -> None:
    code = (
        "import sys, mlx_qwen3.text\n"
        "import mlx_qwen3.text.byte_level, mlx_qwen3.text.sentence_pieces\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names() -> None:
    import mlx_qwen3.text as text

    assert all(hasattr(text, name) for name in text.__all__)
    assert text.__all__ == sorted(text.__all__, key=lambda name: (name.islower(), name))
