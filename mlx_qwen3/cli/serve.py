"""`mlx-qwen3 serve`: models for apps, agents and browsers."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_qwen3.cli import options
from mlx_qwen3.errors import OptionError

if TYPE_CHECKING:
    from mlx_qwen3.server.listener import Listener
    from mlx_qwen3.server.run import WayOut
    from mlx_qwen3.server.settings import ServerSettings
    from mlx_qwen3.service import Service, ServiceSettings

KEY_VARIABLE = "MLX_QWEN3_API_KEY"
_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._:-]*)=(.+)")
_ENGINE = ("max_running", "max_waiting")  # of EngineSettings, under the same names
_SIZES = {"kv_memory": "--kv-memory", "memory_budget": "--memory-budget"}
_WILDCARDS = ("0.0.0.0", "::", "")


# Options are read from the context, all at once.
def serve(
    context: typer.Context,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="[NAME=]M",
            help="Short name, repo id or folder, under a name of its own or another (repeatable). "
            "The first is loaded at once, others when they are asked for.",
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS", help="Address to listen on; any but this machine's own takes a key."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="0: a free one.")] = 8080,
    unix_socket: Annotated[
        str | None,
        typer.Option(metavar="PATH", help='A Unix socket instead; "auto": in a private folder.'),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help=f"Asked of all; ps shows it, so better ${KEY_VARIABLE}."),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File with the key, and nothing else.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Web pages from elsewhere that may ask (repeatable)."),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Other names of this server, behind a proxy (repeatable)."
        ),
    ] = None,
    max_body: Annotated[
        str, typer.Option(metavar="SIZE", help="Largest body of a request.")
    ] = "32MiB",
    shutdown_seconds: Annotated[
        float,
        typer.Option(min=0, metavar="S", help="That running replies get to finish at the end."),
    ] = 30,
    max_running: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Replies made at once. [default: 16]")
    ] = None,
    max_waiting: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="That may wait; more get 429. [default: 256]"),
    ] = None,
    kv_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="For contexts of running replies. [default: what is left]"
        ),
    ] = None,
    memory_budget: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="For models; the least used goes. [default: this device's]"
        ),
    ] = None,
    idle_unload: Annotated[
        float | None,
        typer.Option(min=0.1, metavar="S", help="Unload models that nobody used for so long."),
    ] = None,
    dtype: options.Dtype = None,
    no_prefix_cache: options.NoPrefixCache = False,
    prefix_cache_size: options.PrefixCacheSize = None,
    log_level: Annotated[
        str, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")
    ] = "info",
    log_json: Annotated[bool, typer.Option("--log-json", help="Logs as JSON lines.")] = False,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Log what is asked and replied, too.")
    ] = False,
    ready_json: Annotated[
        bool,
        typer.Option(
            "--ready-json",
            help="For apps: make a key for this run where none is given, and print one JSON line "
            "on stdout when ready.",
        ),
    ] = False,
    parent_pid: Annotated[
        int | None, typer.Option(metavar="PID", help="End when this process has ended.")
    ] = None,
    exit_with_stdin: Annotated[
        bool, typer.Option("--exit-with-stdin", help="End when stdin ends.")
    ] = False,
) -> None:
    """Serve models over HTTP: the APIs of OpenAI and Anthropic, and a chat page at /.

    Ctrl-C lets running replies finish; a second one ends at once.
    """
    values = context.params
    settings = read_settings(values)  # what is wrong with the options is said before any work
    engine = read_service_settings(values)
    sources = read_models(model)
    from mlx_qwen3.server import logs
    from mlx_qwen3.server.run import WayOut

    logs.configure(sys.stderr, log_level, as_json=log_json)
    listener = _listen(values)
    try:
        way_out = WayOut(listener)
        _watch(values, way_out)
        _serve(sources, engine, settings, way_out, as_json=ready_json)
    finally:
        listener.close()


def _serve(
    sources: Mapping[str, str],
    engine: ServiceSettings,
    settings: ServerSettings,
    way_out: WayOut,
    *,
    as_json: bool,
) -> None:
    from mlx_qwen3.cli.signals import leave_on_signals
    from mlx_qwen3.cli.welcome import welcome

    with leave_on_signals():
        service = _service(sources, engine)
        from mlx_qwen3.server.app import create_app
        from mlx_qwen3.server.run import run
        from mlx_qwen3.server.sidecar import ready_line

        app = create_app(service, settings)

    def ready() -> None:
        listener = way_out.listener
        if as_json:
            print(ready_line(listener, settings.api_key, list(sources)), flush=True)
        else:
            welcome(listener, service.models(), settings)

    run(app, way_out, settings, ready)


def _service(sources: Mapping[str, str], settings: ServiceSettings) -> Service:
    """The service of these models, all of them on this machine by then."""
    folders = {name: str(options.fetch(source)) for name, source in sources.items()}
    from mlx_qwen3.service import Service

    return Service(folders, settings)


def read_service_settings(values: Mapping[str, Any]) -> ServiceSettings:
    """What the options say of models and of the engine. Raises BadParameter."""
    kept = options.prefix_cache(values["no_prefix_cache"], values["prefix_cache_size"])
    sizes = {
        name: None if values[name] is None else options.size_in_bytes(values[name], option)
        for name, option in _SIZES.items()
    }
    from mlx_qwen3.engine.settings import EngineSettings
    from mlx_qwen3.service import ServiceSettings

    given = {name: values[name] for name in _ENGINE if values[name] is not None}
    try:
        engine = EngineSettings(kv_bytes=sizes["kv_memory"], **given)
    except OptionError as exc:
        raise typer.BadParameter(str(exc)) from exc
    return ServiceSettings(
        engine=engine,
        model_memory=sizes["memory_budget"],
        idle_unload=values["idle_unload"],
        prefix_cache=kept,
        dtype=values["dtype"],
    )


def read_models(given: list[str] | None) -> dict[str, str]:
    """Name -> what to load. Raises BadParameter for a name that is given twice."""
    from mlx_qwen3.cli.terminal import note

    if not given:
        note(options.DEMO_NOTE)
    sources: dict[str, str] = {}
    for text in given or ["demo"]:
        named = _NAMED.fullmatch(text)
        name, source = named.groups() if named else (_name(text), text)
        if name in sources:
            raise typer.BadParameter(
                f"--model {text}: there is a model {name!r} already; name it: --model NAME={source}"
            )
        sources[name] = source
    return sources


def _name(source: str) -> str:
    """What clients call a model: as it was given, but for folders, whose place is private."""
    folder = Path(source).expanduser()
    return folder.resolve().name if folder.is_dir() else source


def read_settings(values: Mapping[str, Any]) -> ServerSettings:
    """The settings that the options amount to. Raises BadParameter."""
    from mlx_qwen3.server.body import Limits
    from mlx_qwen3.server.logs import LEVELS
    from mlx_qwen3.server.settings import LOCAL_NAMES, ServerSettings

    if values["log_level"] not in LEVELS:
        raise typer.BadParameter(
            f"--log-level {values['log_level']}: expected one of {', '.join(LEVELS)}"
        )
    host, names = values["host"], (*LOCAL_NAMES, *(values["allowed_host"] or ()))
    unix = values["unix_socket"] is not None
    try:
        return ServerSettings(
            api_key=_key(values),
            allowed_hosts=None if unix else (*names, host),
            any_address=host in _WILDCARDS,
            allow_origins=tuple(values["allow_origin"] or ()),
            limits=Limits(body_bytes=options.size_in_bytes(values["max_body"], "--max-body")),
            shutdown_seconds=values["shutdown_seconds"],
            log_prompts=values["log_prompts"],
        )
    except OptionError as exc:
        raise typer.BadParameter(str(exc)) from exc


def _key(values: Mapping[str, Any]) -> str | None:
    """The key that was given, or one for this run. Raises BadParameter where one is missing."""
    from mlx_qwen3.server.listener import is_local
    from mlx_qwen3.server.sidecar import one_time_key

    file, given = values["api_key_file"], values["api_key"]
    if file is not None and given is not None:
        raise typer.BadParameter("--api-key and --api-key-file: expected one of them")
    key = given if file is None else _read_key(file)
    key = os.environ.get(KEY_VARIABLE) if key is None else key
    if key is None and values["ready_json"]:
        return one_time_key()
    if key is None and values["unix_socket"] is None and not is_local(values["host"]):
        raise typer.BadParameter(
            f"--host {values['host']} lets other machines in, which takes a key: "
            f"--api-key-file FILE, or {KEY_VARIABLE}"
        )
    return key


def _read_key(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        reason = getattr(exc, "strerror", None) or "it is no text"
        raise typer.BadParameter(f"--api-key-file {file} cannot be read: {reason}") from exc


def _listen(values: Mapping[str, Any]) -> Listener:
    from mlx_qwen3.server.listener import listen_tcp, listen_unix

    if values["unix_socket"] is not None:
        return listen_unix(values["unix_socket"])
    return listen_tcp(values["host"], values["port"])


def _watch(values: Mapping[str, Any], way_out: WayOut) -> None:
    """End with the parent, or with stdin, where that is wanted."""
    from mlx_qwen3.server import sidecar

    if values["parent_pid"] is not None:
        try:
            sidecar.check_parent(values["parent_pid"])
        except OptionError as exc:
            raise typer.BadParameter(str(exc)) from exc
        sidecar.when_parent_ends(values["parent_pid"], way_out.orphaned)
    if values["exit_with_stdin"]:
        sidecar.when_stdin_ends(way_out.orphaned)
