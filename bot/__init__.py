"""Chinwag's core: conversations, memory, the durable engine and the way in."""
