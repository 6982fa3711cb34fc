"""How a byte-level vocabulary spells bytes: one printable character each (GPT-2's table)."""

from functools import cache


def _letters() -> tuple[str, ...]:
    """GPT-2's bytes_to_unicode: printable Latin-1 is itself, the rest follow at 256."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable}
    table |= {byte: chr(256 + place) for place, byte in enumerate(others)}
    return tuple(table[byte] for byte in range(256))


LETTERS = _letters()
"""The character of each byte."""


@cache
def _byte_of_letter() -> dict[str, int]:
    return {letter: byte for byte, letter in enumerate(LETTERS)}


def spelled_bytes(token: str) -> bytes:
    """A token's bytes. One with any character outside the table (an added one) is itself."""
    table = _byte_of_letter()
    try:
        return bytes([table[character] for character in token])
    except KeyError:
        return token.encode("utf-8")
