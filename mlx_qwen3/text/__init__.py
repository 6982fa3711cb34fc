"""Text: chat template, tokenizer, parser of what the model writes. Knows nothing of MLX."""

from mlx_qwen3.text.parser import Piece, StreamParser, ToolCall
from mlx_qwen3.text.stops import StopStrings
from mlx_qwen3.text.template import ChatTemplate, thinking_state
from mlx_qwen3.text.tokenizer import Detokenizer, Tokenizer

__all__ = [
    "ChatTemplate",
    "Detokenizer",
    "Piece",
    "StopStrings",
    "StreamParser",
    "Tokenizer",
    "ToolCall",
    "thinking_state",
]
