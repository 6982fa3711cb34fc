"""An agent that acts through MCP servers, with every step it takes shown.

    python examples/mcp_agent.py [QUESTION] [SERVERS.json] [MODEL]

Without a list of servers it starts one that tells the time (pip install mcp-server-time).
"""

import json
import sys

from mlx_qwen3 import Conversation, load

TIME = {"mcpServers": {"time": {"command": sys.executable, "args": ["-m", "mcp_server_time"]}}}


def main(
    question: str = "What time is it in Tokyo?", servers: str = "", model: str = "demo"
) -> None:
    """Ask, and show thoughts, calls and results on the way to the answer."""
    with Conversation(load(model), mcp=servers or TIME, temperature=0.0) as chat:
        for server in chat.servers.connections if chat.servers else ():
            print(f"{server.spec.name}: {server.problem or server.state}", file=sys.stderr)
        for event in chat.stream(question):
            if event.kind == "tool_result":
                print(f"<- {' '.join(event.text.split())}", file=sys.stderr)
            elif event.tool_call is not None:
                arguments = json.dumps(event.tool_call.arguments, ensure_ascii=False)
                print(f"-> {event.tool_call.name} {arguments}", file=sys.stderr)
            elif event.kind == "answer":
                print(event.text, end="", flush=True)
        print()


if __name__ == "__main__":
    main(*sys.argv[1:])
