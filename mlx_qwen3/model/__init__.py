"""token_ids + cache -> logits. Importing it loads a fast BLAS first, then mlx."""

from mlx_qwen3 import device

device.prepare()
