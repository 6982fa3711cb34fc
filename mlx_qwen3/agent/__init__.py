"""Conversations that act: history, tools, MCP servers, and the loop between them."""
