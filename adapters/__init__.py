"""Frontends: each turns a platform's events into the core's values and shows the answers.

A frontend is one module or package and one line in `ADAPTERS`.
"""

from collections.abc import Callable

from bot.ports import ChatAdapter


def _console() -> ChatAdapter:
    from adapters.console import ConsoleAdapter

    return ConsoleAdapter()


ADAPTERS: dict[str, Callable[[], ChatAdapter]] = {"console": _console}
