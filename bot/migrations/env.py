"""Runs the migrations on the connection that `bot.store` hands over."""

from typing import Any, Literal

from alembic import context

from bot.store import UtcDateTime, metadata


def _plain(kind: str, item: Any, _context: Any) -> str | Literal[False]:
    """Write our column type as what it is in the database, so that an old step never needs our code."""
    return "sa.DateTime()" if kind == "type" and isinstance(item, UtcDateTime) else False


connection = context.config.attributes.get("connection")
if connection is None:
    raise RuntimeError(
        "Migrations run when Chinwag starts; to write a new one: python -m bot.migrations 'what it does'"
    )
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True, render_item=_plain)
with context.begin_transaction():
    context.run_migrations()
