"""Further tools: some are asked for in their turn, some are only ever in the way."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from chat import held_out
from copying import coined
from schemas import Parameter, Style, restyle, schema
from task import Offer, Task, as_json
from words import ADJECTIVES, NAMES, NOUNS


def _simple(
    names: str,
    texts: tuple[str, ...],
    fields: tuple[str, ...],
    questions: tuple[str, ...],
    value: Callable[[Random], str],
    key: str,
    result: Callable[[Random], str],
    wants: str,
    answer: str,
) -> Callable[[Random, Style], Offer]:
    """A family of one-argument tools; {v} is the argument, {r} the result."""

    def make(rng: Random, style: Style) -> Offer:
        name, field = restyle(rng, rng.choice(names.split())), rng.choice(fields)

        def task(rng: Random, test: bool) -> Task:
            while True:
                argument, phrase = value(rng), rng.choice(questions)
                if held_out(f"{argument}|{phrase}", 10) == test:
                    break
            found = result(rng)
            response = found if rng.random() < 0.3 else as_json(rng, {field: argument, key: found})
            said = answer.format(v=argument, r=found)
            return Task(
                phrase.format(v=argument),
                wants.format(v=argument),
                {"name": name, "arguments": {field: argument}},
                response,
                f"The tool says {found}.",
                said,
            )

        tool = schema(style, name, rng.choice(texts), [(field, "What to look up", {})], [field])
        return Offer(tool, task)

    return make


stock = _simple(
    "get_stock_price stock_price stock_quote get_quote lookup_stock",
    ("Get the price of a stock", "Stock quote by ticker symbol", "Returns a share price."),
    ("symbol", "ticker", "stock"),
    ("What is the price of {v}?", "Stock price of {v}?", "How is {v} trading?", "quote {v}"),
    lambda r: "".join(r.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(r.randint(2, 4))),
    "price",
    lambda r: f"{r.randrange(1, 900)}.{r.randrange(100):02d}",
    "the price of {v}",
    "{v} is at {r}.",
)
read_file = _simple(
    "read_file open_file cat_file get_file load_file",
    ("Read a file", "Returns the contents of a text file", "Read a file from disk."),
    ("path", "file", "filename", "file_path"),
    ("Read {v}.", "What is in {v}?", "Show me the file {v}.", "Open {v}"),
    lambda r: r.choice(NOUNS) + "_" + coined(r, 1, 2) + r.choice((".txt", ".md", ".csv", ".py")),
    "content",
    lambda r: " ".join(r.choice(ADJECTIVES + NOUNS) for _ in range(r.randint(2, 6))),
    "the file {v}",
    "{v} says: {r}",
)
phone_book = _simple(
    "find_phone phone_book get_phone_number lookup_contact find_contact",
    ("Find a phone number", "Look up a contact", "Phone numbers by name."),
    ("name", "person", "contact"),
    ("What is the phone number of {v}?", "How can I call {v}?", "Phone number of {v}?"),
    lambda r: r.choice(NAMES) + (f" {coined(r).title()}" if r.random() < 0.6 else ""),
    "phone",
    lambda r: f"+{r.randrange(1, 99)} {r.randrange(10**5, 10**8)}",
    "the phone number of {v}",
    "The phone number of {v} is {r}.",
)
dictionary = _simple(
    "translate translate_word dictionary lookup_word define_word",
    ("Look up a word", "Translate a word into Latin", "Word lookup."),
    ("word", "text", "term"),
    ("Look up the word {v}.", "Translate the word {v}.", "Look up {v} in the dictionary."),
    lambda r: r.choice(NOUNS) if r.random() < 0.5 else coined(r),
    "result",
    lambda r: coined(r),
    "the word {v}",
    "{v}: {r}",
)


def _idle(names: str, text: str, *fields: Parameter) -> Callable[[Random, Style], Offer]:
    """A tool that is only ever in the way."""

    def make(rng: Random, style: Style) -> Offer:
        name = restyle(rng, rng.choice(names.split()))
        return Offer(schema(style, name, text, list(fields), [fields[0][0]]))

    return make


calculator = _idle(
    "calculator calculate eval_math add_numbers",
    "Evaluate an expression",
    ("expression", "The expression", {}),
)
email = _idle(
    "send_email send_mail email",
    "Send an email",
    ("to", "Recipient", {}),
    ("subject", "Subject line", {}),
    ("body", "Text of the email", {}),
)
timer = _idle(
    "set_timer start_timer alarm", "Set a timer", ("minutes", "Minutes", {"type": "integer"})
)
dice = _idle("roll_dice random_number", "Roll dice", ("sides", "Sides", {"type": "integer"}))
write_file = _idle(
    "write_file save_file create_file",
    "Write a text file",
    ("path", "Path", {}),
    ("content", "Contents", {}),
)
search_web = _idle("search web_search google", "Search the web", ("query", "The query", {}))
currency = _idle(
    "convert_currency exchange_rate",
    "Convert money",
    ("amount", "Amount", {"type": "number"}),
    ("from", "From", {}),
    ("to", "To", {}),
)

ASKED = (stock, read_file, phone_book, dictionary)
IN_THE_WAY = (*ASKED, calculator, email, timer, dice, write_file, search_web, currency)
