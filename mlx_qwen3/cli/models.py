"""`mlx-qwen3 models`: what is known, what is here, and what fits this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mlx_qwen3.device import Device
    from mlx_qwen3.hub import LocalModel
    from mlx_qwen3.releases import Source

# A model is said to fit when its weights and the keys and values of this many tokens do.
CONTEXT = 4096


@dataclass(frozen=True)
class Row:
    """One line of the table. Sizes in bytes; size is computed where the model is not here."""

    name: str
    kind: str
    repo: str
    official: bool
    parameters: int | None
    active_parameters: int | None
    size: int
    size_is_computed: bool
    folder: str | None
    complete: bool
    fits: str


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show known models, what is here, what fits."""
    from mlx_qwen3.cli.display import memory_text, print_json, print_table
    from mlx_qwen3.device import Device
    from mlx_qwen3.hub import list_demo, list_local

    device = Device.current()
    local = {model.repo: model for model in list_local()}
    rows = [*(_other_row(model, device) for model in list_demo()), *table(device, local)]
    if as_json:
        limit = {"backend": device.backend, "chip": device.chip, "bytes": device.memory_limit}
        return print_json({"limit": limit, "context": CONTEXT, "models": [asdict(r) for r in rows]})
    print_table(
        ("NAME", "WEIGHTS", "SIZE", "HERE", "FITS", "REPOSITORY"), [_cells(r) for r in rows]
    )
    print(
        f"\n~ is computed. FITS: with {CONTEXT:,} tokens in the "
        f"{memory_text(device.memory_limit)} of {device.chip}."
        "\nOther formats: add -8bit, -6bit, -bf16, -fp8, -awq or -gptq-int4 to a name."
        "\nDownload: mlx-qwen3 pull NAME"
    )
    return None


def table(device: Device, local: Mapping[str, LocalModel]) -> Iterator[Row]:
    """Every release in its default format, other formats that are here, then all else here."""
    from mlx_qwen3.releases import releases

    listed = set()
    for release in releases():
        for format_name, repo in release.repos.items():
            if format_name == release.default_format or repo in local:
                listed.add(repo)
                yield _known_row(release.source(format_name), local.get(repo), device)
    for repo, model in local.items():
        if repo not in listed:
            yield _other_row(model, device)


def _known_row(source: Source, local: LocalModel | None, device: Device) -> Row:
    release, architecture = source.release, source.release.architecture
    default = source.format_name == release.default_format
    here = local is not None and local.complete
    float_bytes = 4 if device.default_dtype() == "float32" else 2
    memory = source.memory(float_bytes) + architecture.kv_bytes(CONTEXT, 8 * float_bytes)
    return Row(
        name=release.name if default else f"{release.name}-{source.format_name}",
        kind=release.kind,
        repo=source.repo,
        official=source.official,
        parameters=architecture.parameters,
        active_parameters=architecture.active_parameters,
        size=local.size if local and here else source.size,
        size_is_computed=not here,
        folder=str(local.folder) if local else None,
        complete=here,
        fits=device.fits(memory).fits,
    )


def _other_row(model: LocalModel, device: Device) -> Row:
    """A model of no table: in the box, a fine-tune, or a conversion by someone else."""
    return Row(
        name=model.repo,
        kind="other",
        repo=model.repo,
        official=False,
        parameters=None,
        active_parameters=None,
        size=model.size,
        size_is_computed=False,
        folder=str(model.folder),
        complete=model.complete,
        fits=device.fits(model.size).fits,
    )


def _cells(row: Row) -> tuple[str, ...]:
    from mlx_qwen3.cli.display import size_text

    size = ("~" if row.size_is_computed else "") + size_text(row.size)
    here = "yes" if row.complete else "partly" if row.folder else ""
    weights = f"{row.parameters / 1e9:.1f}B" if row.parameters else ""
    return (row.name, weights, size, here, row.fits, row.repo)
