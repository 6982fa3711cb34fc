"""`mlx-qwen3 pull`: download a model, or bring it up to date."""

from typing import Annotated

import typer


def pull(
    name: Annotated[
        str, typer.Argument(help="A short name (0.6b, 8b-fp8), or a repository: owner/name.")
    ],
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit; the default is main.")
    ] = None,
) -> None:
    """Download a model and print its folder."""
    from mlx_qwen3 import hub
    from mlx_qwen3.cli.display import download_bar

    with download_bar(name) as progress:
        folder = hub.resolve(name, revision=revision, update=True, progress=progress)
    print(folder)
