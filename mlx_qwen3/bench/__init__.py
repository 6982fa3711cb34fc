"""How fast a model is here, how much memory it takes, and how that compares to mlx-lm.

Importing it loads a fast BLAS first, then mlx.
"""

from mlx_qwen3 import device

device.prepare()
