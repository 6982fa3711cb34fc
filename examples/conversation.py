"""A conversation that remembers, streams, can be saved, and calls a Python function of yours.

python examples/conversation.py [MODEL]
"""

import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from mlx_qwen3 import Conversation, Tool, load
from mlx_qwen3.agent.tools import Outcome

SCHEMA = {
    "name": "get_current_time",
    "description": "Get current time in a specific timezone",
    "parameters": {
        "type": "object",
        "properties": {
            "timezone": {"type": "string", "description": "IANA timezone name, e.g. Asia/Tokyo"}
        },
        "required": ["timezone"],
    },
}


def get_current_time(arguments: Mapping[str, Any]) -> Outcome:
    """The time in a zone, as the model gets to read it."""
    now = datetime.now(ZoneInfo(arguments["timezone"]))
    return Outcome(f'{{"datetime": "{now.isoformat(timespec="seconds")}"}}')


def main(model: str = "demo") -> None:
    """Two turns: one streamed, one whole."""
    clock = Tool("get_current_time", SCHEMA, get_current_time)
    chat = Conversation(load(model), tools=[clock], temperature=0.0, max_tokens=500)
    for event in chat.stream("What is 27 + 58?"):
        if event.kind == "answer":
            print(event.text, end="", flush=True)
    print()
    done = chat.send("What time is it in Tokyo?")
    print(done.text)
    print(f"{len(chat.messages)} messages, {chat.token_count()} tokens")


if __name__ == "__main__":
    main(*sys.argv[1:])
