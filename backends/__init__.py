"""Model servers: each answers a request as a stream of typed pieces.

A backend is one module and one line in `BACKENDS`; nothing of it is imported before it is opened.
"""

from contextlib import AbstractAsyncContextManager

from bot.ports import BackendOptions, ModelBackend, OpenBackend


def _echo(options: BackendOptions) -> AbstractAsyncContextManager[ModelBackend]:
    from backends import echo

    return echo.open_backend(options)


def _openai(options: BackendOptions) -> AbstractAsyncContextManager[ModelBackend]:
    from backends import openai

    return openai.open_backend(options)


def _embedded(options: BackendOptions) -> AbstractAsyncContextManager[ModelBackend]:
    from backends import embedded

    return embedded.open_backend(options)


BACKENDS: dict[str, OpenBackend] = {"echo": _echo, "openai": _openai, "embedded": _embedded}
