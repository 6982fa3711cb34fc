"""HTTP on the wire: uvicorn's, with an end to its patience for requests that never come."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def patient_protocol(seconds: float) -> type[H11Protocol]:
    """A protocol that hangs up when a request's headers take longer than this.

    uvicorn itself waits forever, for connections that say nothing and for those that say a
    letter a minute; each costs a file descriptor, of which a Mac's process has 256.
    """

    class Patient(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._expect_headers()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._expect_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget_deadline()
            super().connection_lost(exc)

        def _expect_headers(self) -> None:
            """Let the clock run while headers are due, from their first byte on."""
            if self.conn.their_state is not h11.IDLE:
                self._forget_deadline()
            elif self._deadline is None and self.timeout_keep_alive_task is None:
                self._deadline = self.loop.call_later(seconds, self._hang_up)

        def _forget_deadline(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _hang_up(self) -> None:
            if not self.transport.is_closing():
                self.transport.close()

    return Patient
