"""What sequences share: the prefixes they were read from, in memory and on disk.

Importing it loads a fast BLAS first, then mlx.
"""

from mlx_qwen3 import device

device.prepare()
