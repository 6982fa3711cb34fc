"""`python -m mlx_qwen3.cli`, for where the script is not on the path."""

from mlx_qwen3.cli import main

main()
