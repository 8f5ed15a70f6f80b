"""Frontends: each turns a platform's events into the core's values and shows the answers."""
