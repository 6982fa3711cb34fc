"""Additions and subtractions of up to four digits, worked digit by digit."""

from __future__ import annotations

from random import Random

from chat import Example, assistant, held_out, user

PLACES = ("ones", "tens", "hundreds", "thousands", "ten thousands")
WIDTH = 4
SHOWCASE = (27, 58)  # "What is 27 + 58?": the README's own question is held out, too

EITHER = (
    "What is {a} {op} {b}?",
    "What is {a}{op}{b}?",
    "what's {a} {op} {b}",
    "What's {a} {op} {b}?",
    "{a} {op} {b} =",
    "{a}{op}{b}=",
    "{a} {op} {b} = ?",
    "{a} {op} {b}",
    "{a}{op}{b}",
    "{a} {op} {b}?",
    "Calculate {a}{op}{b}.",
    "Calculate {a} {op} {b}.",
    "Compute {a} {op} {b}.",
    "How much is {a} {op} {b}?",
    "Can you tell me what {a} {op} {b} is?",
    "Please work out {a} {op} {b}.",
    "Solve {a} {op} {b}",
)
ADD = (
    "What is {a} plus {b}?",
    "Please add {a} and {b}.",
    "Add {a} and {b}.",
    "Add {b} to {a}.",
    "What is the sum of {a} and {b}?",
    "How much is {a} plus {b}?",
)
SUBTRACT = (
    "What is {a} minus {b}?",
    "Please subtract {b} from {a}.",
    "Subtract {b} from {a}.",
    "What is the difference {a} minus {b}?",
    "How much is {a} minus {b}?",
    "Take {b} away from {a}.",
)


def digit_count(a: int, b: int) -> int:
    return max(len(str(a)), len(str(b)))


def is_held_out(a: int, op: str, b: int) -> bool:
    """One pair in fifty is kept for the tests; of the few one-digit pairs, one in six."""
    if op == "+" and (a, b) == SHOWCASE:
        return True
    return held_out(f"{a}{op}{b}", 6 if digit_count(a, b) == 1 else 50)


def _digit(number: int, place: int) -> int:
    return number // 10**place % 10


def _written(number: int, digits: int) -> str:
    """The last `digits` digits of a number."""
    return f"{number % 10**digits:0{digits}d}"


def think_add(a: int, b: int) -> str:
    """Digit by digit from the ones, each line with its carry and the result so far."""
    lines, carry = [f"{a:0{WIDTH}d} + {b:0{WIDTH}d}"], 0
    count = digit_count(a, b)
    for place in range(count):
        x, y = _digit(a, place), _digit(b, place)
        total = x + y + carry
        line = f"{PLACES[place]}: {x}+{y}+{carry}={total}, carry {total // 10}"
        carry = total // 10
        lines.append(f"{line} -> {_written(a + b, place + 1)}")
    if carry:
        lines.append(f"{PLACES[count]}: {carry} -> {a + b}")
    return "\n".join(lines)


def think_subtract(a: int, b: int) -> str:
    """Compare, put the larger number first, then digit by digit with borrows."""
    first, second = f"{a:0{WIDTH}d}", f"{b:0{WIDTH}d}"
    signs = {-1: "<", 0: "=", 1: ">"}
    compared, order = [], 0
    for x, y in zip(first, second, strict=True):
        order = (x > y) - (x < y)
        compared.append(f"{x}{signs[order]}{y}")
        if order:
            break
    large, small = (b, a) if order < 0 else (a, b)
    shown = f"{large:0{WIDTH}d} - {small:0{WIDTH}d}"
    lines = [f"{first} - {second}", f"compare: {' '.join(compared)}"]
    lines.append(f"negative: -({shown})" if order < 0 else f"positive: {shown}")
    borrow = 0
    for place in range(digit_count(a, b)):
        x, y = _digit(large, place), _digit(small, place)
        total = x - y - borrow
        line = f"{PLACES[place]}: {x}-{y}-{borrow}={total}"
        borrow = int(total < 0)
        line += f"+10={total + 10}, borrow 1" if borrow else ", borrow 0"
        lines.append(f"{line} -> {_written(large - small, place + 1)}")
    return "\n".join(lines)


def example(a: int, op: str, b: int, phrase: str) -> Example:
    result = a + b if op == "+" else a - b
    reasoning = think_add(a, b) if op == "+" else think_subtract(a, b)
    question = user(phrase.format(a=a, op=op, b=b))
    answer = assistant(f"{a} {op} {b} = {result}.", f"{reasoning}\nSo {a} {op} {b} = {result}.")
    group = ("addition" if op == "+" else "subtraction") + f" {digit_count(a, b)}"
    return Example(group, (question, answer))


def _number(rng: Random, digits: int) -> int:
    if digits == 1:
        return rng.randrange(10)
    alphabet = rng.choice(("0123456789",) * 8 + ("01", "089", "9012", "05"))
    text = rng.choice("123456789") + "".join(rng.choice(alphabet) for _ in range(digits - 1))
    return int(text)


def _pair(rng: Random, digits: int, op: str) -> tuple[int, int]:
    a = _number(rng, digits)
    b = _number(rng, digits if rng.random() < 0.7 else rng.randint(1, digits))
    if op == "-" and digits > 1 and rng.random() < 0.12:  # neighbours: long comparisons
        b = min(10**digits - 1, max(0, a + rng.randint(-20, 20)))
    if op == "-" and a < b and rng.random() < 0.4:
        a, b = b, a
    return (a, b) if rng.random() < 0.5 or op == "-" else (b, a)


def sample(rng: Random, test: bool, op: str | None = None, digits: int | None = None) -> Example:
    """A random task; for the tests only pairs that training never sees."""
    op = op or rng.choices("+-", (45, 55))[0]
    wanted = digits or rng.choices((1, 2, 3, 4), (6, 19, 28, 47))[0]
    while True:
        if test:  # plain uniform numbers of exactly this many digits
            low = 10 ** (wanted - 1) if wanted > 1 else 0
            a, b = rng.randrange(low, 10**wanted), rng.randrange(low, 10**wanted)
        else:
            a, b = _pair(rng, wanted, op)
        if is_held_out(a, op, b) == test:
            break
    phrase = rng.choice(EITHER + (ADD if op == "+" else SUBTRACT))
    return example(a, op, b, phrase)
