"""Where a server listens: a TCP port, or a Unix socket.

It is bound before anything is loaded: whoever asks for port 0 is told the port that is really
held, and a port that is taken is an error at once.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import shutil
import socket
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mlx_qwen3.errors import DeviceError

AUTO = "auto"
SOCKET_NAME = "socket"
LONGEST_PATH = 103  # bytes; macOS has room for 104 with the zero behind it, Linux for 108
_REASONS = {
    errno.EADDRINUSE: "is taken; choose another with --port (0: a free one)",
    errno.EACCES: "is not allowed to this user; choose a port from 1024 on",
    errno.EADDRNOTAVAIL: "is no address of this machine; see --host",
}


@dataclass(frozen=True)
class Listener:
    """A bound socket. path: of a Unix socket. folder: made for that socket, and goes with it."""

    socket: socket.socket
    url: str
    path: Path | None = None
    folder: Path | None = None

    @property
    def port(self) -> int | None:
        """The TCP port, None for a Unix socket."""
        return None if self.path else int(self.socket.getsockname()[1])

    def close(self) -> None:
        """Stop listening and leave nothing behind. May be called again."""
        self.socket.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def is_local(host: str) -> bool:
    """Whether only this machine reaches what is bound to this address or name."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(one[4][0]).split("%")[0]).is_loopback for one in found)


def listen_tcp(host: str, port: int) -> Listener:
    """Bind a TCP port; 0 is a free one. Raises DeviceError when that cannot be."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as exc:
        raise DeviceError(f"--host {host} is unknown here ({exc.strerror}); try 127.0.0.1") from exc
    family, kind, protocol, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    # asyncio sends at once (TCP_NODELAY) only on sockets that say that they are TCP.
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
        bound.listen()
    except OSError as exc:
        bound.close()
        reason = _REASONS.get(exc.errno or 0, f"cannot be used: {exc.strerror}")
        raise DeviceError(f"port {port} on {host} {reason}") from exc
    name = f"[{host}]" if family == socket.AF_INET6 and ":" in host else host
    return Listener(bound, f"http://{name}:{bound.getsockname()[1]}")


def listen_unix(path: str) -> Listener:
    """Bind a Unix socket that only this user may use; "auto": in a private folder, made for it.

    A socket left by a server that is gone is replaced. Raises DeviceError when a server lives
    there, something else lies there, or the path is too long.
    """
    if path != AUTO:
        return _bind_unix(Path(path).absolute(), None)
    folder = Path(tempfile.mkdtemp(prefix="mlx-qwen3-"))  # 0700: nobody else gets in
    try:
        return _bind_unix(folder / SOCKET_NAME, folder)
    except DeviceError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _bind_unix(path: Path, folder: Path | None) -> Listener:
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise DeviceError(
            f"{path} is too long for a socket; expected {LONGEST_PATH} bytes at most: "
            "name a shorter path, or use --port 0"
        )
    _clear(path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)  # nobody else may connect, from the moment it exists
    try:
        bound.bind(os.fspath(path))
        bound.listen()
    except OSError as exc:
        bound.close()
        raise DeviceError(f"{path} cannot be a socket: {exc.strerror}") from exc
    finally:
        os.umask(before)
    return Listener(bound, "http://localhost", path, folder)


def _clear(path: Path) -> None:
    """Remove a socket that nobody listens on any more."""
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise DeviceError(f"{path} exists and is no socket; name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(os.fspath(path)) == 0:
            raise DeviceError(f"another server listens on {path}; stop it, or name another path")
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
