"""Stop strings that never leak: text goes out only once it cannot be part of a stop."""

from collections.abc import Sequence

from mlx_qwen3.errors import OptionError


class StopStrings:
    """Cuts a stream of text at the first stop string.

    The stop that is complete first wins (of two that end together, the longer one), which is
    the same however the text was split. stops: the strings, or one string; none at all is
    allowed and costs nothing.
    Raises OptionError for an empty string among them.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = (stops,) if isinstance(stops, str) else tuple(stops)
        if not all(isinstance(stop, str) and stop for stop in self._stops):
            raise OptionError(
                f"stop strings {list(self._stops)!r} hold an empty or non-text entry; leave it out"
            )
        self._held = ""
        self._hit: str | None = None

    def feed(self, text: str) -> tuple[str, str | None]:
        """Take more text. Returns (text that may be shown, the stop that was hit or None).

        After a hit everything that follows is dropped and the hit is returned again.
        """
        if not self._stops:
            return text, None
        if self._hit is not None:
            return "", self._hit
        self._held += text
        if (found := self._first()) is not None:
            start, self._hit = found
            return self._release(start), self._hit
        return self._release(len(self._held) - self._open()), None

    def finish(self) -> str:
        """The stream has ended: return what was held back (nothing after a hit)."""
        return "" if self._hit is not None else self._release(len(self._held))

    def _first(self) -> tuple[int, str] | None:
        places = [(self._held.find(stop), stop) for stop in self._stops]
        found = [(start + len(stop), start, stop) for start, stop in places if start >= 0]
        return min(found)[1:] if found else None

    def _open(self) -> int:
        """Length of the longest end of the held text with which some stop begins."""
        longest = min(max(map(len, self._stops)) - 1, len(self._held))
        ends = (self._held[-size:] for size in range(longest, 0, -1))
        return next((len(end) for end in ends if any(s.startswith(end) for s in self._stops)), 0)

    def _release(self, end: int) -> str:
        safe, self._held = self._held[:end], self._held[end:]
        return safe
