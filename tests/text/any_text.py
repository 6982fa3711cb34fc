"""Texts that a tokenizer may meet: every script, emoji, controls, tokens written out, long runs."""

import random

from hypothesis import strategies as st

TAGS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>")
PIECES = (
    *TAGS,
    "<|im_",
    "</thi",
    "<<|im_end|>>",
    "I'm we'LL it's 'S",
    "don't",
    " the quick",
    "def f(x):\n\treturn x",
    "\r\n\r\n",
    " \n ",
    "\u3000",
    "\u00a0",
    "\u2028",
    "\x00\x1b[0m\x7f\x85",
    "\ufeff",
    "\ufffd",
    "👩‍👩‍👧‍👦",
    "🏳️‍🌈",
    "🇩🇪🇯🇵",
    "1️⃣",
    "e\u0301",
    "\u1e9b\u0323",  # its normal forms differ
    "\u0344\u0958",  # composed characters that normalization takes apart
    "각\u1100\u1161\u11a8",
    "ﷺ",
    "你好，世界。",
    "สวัสดีครับ",
    "Привет, мир",
    "שלום עולם",
    "नमस्ते दुनिया",
    "٠١٢٣ ½ Ⅷ ²",
    "𝒳𐍈\U0010ffff",
)
# First and last of blocks to draw characters from, ASCII and all of Unicode among them.
_BLOCKS = (
    (0x00, 0x7F),
    (0x20, 0x7E),
    (0x80, 0x24F),
    (0x300, 0x52F),
    (0x590, 0x109F),
    (0x1100, 0x1FFF),
    (0x2000, 0x2BFF),
    (0x3040, 0x9FFF),
    (0xAC00, 0xD7A3),
    (0xE000, 0xFFFF),
    (0x10000, 0x10FFFF),
    (0x1F300, 0x1FAFF),
)
_RUNS = (" ", "\n", "\t", "a", "A", "0", "-", "=", "你", "é", "\U0001f600", " \n", "ab")


def random_text(rng: random.Random) -> str:
    """One text of a few parts, seldom of a few hundred characters."""
    return "".join(_part(rng) for _ in range(rng.randint(0, 6)))


def _part(rng: random.Random) -> str:
    kind = rng.randrange(5)
    if kind == 0:
        return rng.choice(PIECES)
    if kind == 1:
        return rng.choice(_RUNS) * rng.randint(1, 60)
    if kind == 2:
        return "".join(rng.choice("0123456789.,") for _ in range(rng.randint(1, 40)))
    if kind == 3:  # bytes that may be no text
        return rng.randbytes(rng.randint(1, 12)).decode("utf-8", "replace")
    first, last = rng.choice(_BLOCKS)
    return "".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 12)))


texts = st.lists(
    st.one_of(
        st.sampled_from(PIECES),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
        st.text("0123456789 \n\t'sStTab", max_size=20),
        st.binary(max_size=12).map(lambda data: data.decode("utf-8", "replace")),
    ),
    max_size=8,
).map("".join)
"""Any text, by hypothesis."""
