"""Tokens out of a model: sampling, the token loop, and the text they become.

Importing it loads a fast BLAS first, then mlx.
"""

from mlx_qwen3 import device

device.prepare()
