"""Every error that Chinwag raises on purpose.

    ChinwagError
    |-- SettingsError              a setting is missing, unknown or wrong
    |-- MissingExtra               an optional package is not installed
    |-- DataFolderError            the data folder cannot be used
    |   |-- DataFolderBusy         another process owns it
    |   |-- StoreDamaged           a database file is not readable
    |   `-- StorageFull            no space left
    |-- CommandError               a command was given wrongly
    |-- TurnStopped                the person stopped the turn
    |-- TooManyMessages            one person asks faster than is allowed  (retryable)
    |-- ModelError
    |   |-- ModelUnreachable       nobody answers               (retryable)
    |   |-- ModelOverloaded        busy, or out of budget       (retryable)
    |   |-- ModelTimedOut          no sign of life in time      (retryable)
    |   |-- ModelBroke             the answer was cut or garbled (retryable)
    |   |-- ModelRefusedKey        the key is wrong or missing
    |   |-- ModelUnknown           no such model or deployment
    |   |-- PromptTooLong          the request exceeds the window
    |   |-- ModelRefusedRequest    the server calls the request invalid
    |   `-- WeightsError           the embedded model's file is missing, damaged or cannot run here
    |-- KnowledgeError
    |   |-- SourceError            this document cannot be learned
    |   |   |-- SourceNotFound     no such file, page or learned source
    |   |   |-- SourceEmpty        no text in it
    |   |   |-- SourceLocked       it wants a password
    |   |   |-- SourceTooLarge     over the size or time limit
    |   |   |-- SourceTypeUnknown  a kind of file we cannot read
    |   |   |-- SourceDamaged      the file is broken
    |   |   |-- SourceUnreachable  the address does not answer  (retryable)
    |   |   `-- AddressRefused     a private or forbidden address
    |   |-- KnowledgeUnavailable   the index is away            (retryable)
    |   `-- EncoderChanged         the index was made with another encoder
    `-- DeliveryFailed             the platform did not take the answer (retryable)

The text of an error is one line for the person who sees it: what happened, and what to do next.
"""

from typing import ClassVar


class ChinwagError(Exception):
    """The root. `retryable` says whether the same call may succeed later."""

    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class SettingsError(ChinwagError):
    """A setting is missing, unknown or wrong."""


class MissingExtra(ChinwagError):
    """An optional package is not installed."""

    @classmethod
    def named(cls, extra: str, what: str) -> "MissingExtra":
        return cls(f"{what} needs an optional part of Chinwag. Install it with: pip install 'chinwag[{extra}]'")


class DataFolderError(ChinwagError):
    """The data folder cannot be used."""


class DataFolderBusy(DataFolderError):
    """Another process owns the data folder."""


class StoreDamaged(DataFolderError):
    """A database file is not readable."""


class StorageFull(DataFolderError):
    """No space is left for the data folder."""

    retryable = True


class CommandError(ChinwagError):
    """A command was given wrongly; the text shows how to give it."""


class TurnStopped(ChinwagError):
    """The person stopped the turn."""


class TooManyMessages(ChinwagError):
    """One person asks faster than is allowed."""

    retryable = True


class ModelError(ChinwagError):
    """The model did not answer."""


class ModelUnreachable(ModelError):
    """Nobody answers at the model's address."""

    retryable = True


class ModelOverloaded(ModelError):
    """The server is busy, or a budget is spent; `retry_after_s` when it said how long."""

    retryable = True


class ModelTimedOut(ModelError):
    """The server gave no sign of life in time."""

    retryable = True


class ModelBroke(ModelError):
    """The answer was cut off, garbled, or empty."""

    retryable = True


class ModelRefusedKey(ModelError):
    """The key is wrong or missing."""


class ModelUnknown(ModelError):
    """The server has no model or deployment of that name."""


class PromptTooLong(ModelError):
    """The request does not fit the model's window."""


class ModelRefusedRequest(ModelError):
    """The server calls the request invalid."""


class WeightsError(ModelError):
    """The embedded model's file is missing, damaged, or cannot run on this machine."""


class KnowledgeError(ChinwagError):
    """Something about the knowledge went wrong."""


class SourceError(KnowledgeError):
    """This document cannot be learned."""


class SourceNotFound(SourceError):
    """No such file, page or learned source."""


class SourceEmpty(SourceError):
    """There is no text in it."""


class SourceLocked(SourceError):
    """It wants a password."""


class SourceTooLarge(SourceError):
    """It is over the size or time limit."""


class SourceTypeUnknown(SourceError):
    """A kind of file that we cannot read."""


class SourceDamaged(SourceError):
    """The file is broken."""


class SourceUnreachable(SourceError):
    """The address does not answer."""

    retryable = True


class AddressRefused(SourceError):
    """A private or forbidden address."""


class KnowledgeUnavailable(KnowledgeError):
    """The index is away; conversation goes on without it."""

    retryable = True


class EncoderChanged(KnowledgeError):
    """The index was made with another encoder, whose vectors do not mix with this one's."""


class DeliveryFailed(ChinwagError):
    """The platform did not take the answer."""

    retryable = True
