"""One log line per unit of work, as JSON in the data folder; tracebacks go there and nowhere else."""

import logging
import logging.handlers
import re
import sys
from collections.abc import MutableMapping
from hashlib import blake2s
from pathlib import Path
from typing import Any

import structlog

SECRET = re.compile(
    r"(?i)(?:\b(?:bearer|bot)\s+[\w.\-]{12,}|\b(?:sk|hf|xox[a-z]|xapp)[-_][\w\-]{8,}|(?<=api[-_]key[=:])\s*[\w\-]{8,})"
)


def configure(folder: Path, *, level: str = "INFO", to_stderr: bool = False) -> None:
    """Send everything, other libraries' logs included, to `chinwag.log` in `folder` (5 files of 5 MB)."""
    handler: logging.Handler
    if to_stderr:
        handler = logging.StreamHandler(sys.stderr)
    else:
        handler = logging.handlers.RotatingFileHandler(
            folder / "chinwag.log", maxBytes=5_000_000, backupCount=4, delay=True, encoding="utf-8"
        )
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redact,
    ]
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(ensure_ascii=False),
            ],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.getLogger("dbos").setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def silence() -> None:
    """Until the data folder is known there is nowhere to log to, and the terminal is not the place."""
    structlog.configure(
        processors=[structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    logging.getLogger().addHandler(logging.NullHandler())


def redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Take anything that looks like a key or a token out of a log line."""
    for key, value in event.items():
        if isinstance(value, str) and SECRET.search(value):
            event[key] = SECRET.sub("[secret]", value)
    return event


def get(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a module."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def reference(event_id: str) -> str:
    """The short id under which a person and the log know the same turn; the same after a restart."""
    return blake2s(event_id.encode(), digest_size=4).hexdigest()
