"""Chinwag's core: conversations, memory, the durable engine and the way in."""

VERSION = "0.1.0"
