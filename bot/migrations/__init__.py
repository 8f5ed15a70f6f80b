"""The database's history; `python -m bot.migrations "what it does"` drafts the next step."""
