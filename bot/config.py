"""Every setting, read once: the environment, then `.env`, then `chinwag.toml`, then the default.

Unknown names are refused with the nearest known one, wherever they stand.
"""

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from dotenv import dotenv_values
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from bot.errors import SettingsError

PREFIXES = ("CHINWAG_", "DISCORD_", "SLACK_")
OPENAI_URL = "https://api.openai.com/v1"
OPENAI_MODEL = "gpt-5.4-mini"
PERSONA = (
    "You are Chinwag, a friendly and helpful member of this conversation. You answer in the language you are asked in, "
    "briefly and to the point, and you say so when you do not know something."
)


def _default_data_dir() -> Path:
    base = os.environ.get("XDG_DATA_HOME", "")
    return (Path(base) if base else Path.home() / ".local" / "share") / "chinwag"


class Table(BaseModel):
    """A table of chinwag.toml."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PersonaTable(Table):
    """[persona]: who the assistant is."""

    name: str = Field(
        default="Chinwag", description="The name it goes by; stripped when the model writes it before an answer."
    )
    prompt: str = Field(default=PERSONA, description="The standing instructions, first in every request.")


class AnswersTable(Table):
    """[answers]: how answers are made."""

    max_tokens: int = Field(
        default=1024, ge=16, description="Longest answer, in tokens; a quarter of the window at most."
    )
    temperature: float | None = Field(
        default=None,
        ge=0,
        le=2,
        description="Randomness; unset takes the model's own. 0 makes equal requests give equal answers.",
    )
    seed: int | None = Field(default=None, description="Seed sent to servers that take one.")
    footer: bool = Field(default=True, description='Show "12 of 40 messages, 3 sources" under an answer.')
    outside_knowledge: Literal["auto", "decline", "say"] = Field(
        default="auto",
        description="A question of fact that the learned sources do not cover: decline it, or answer and say so. "
        "auto: small models decline.",
    )


class KnowledgeTable(Table):
    """[knowledge]: what is learned, and how it is looked up."""

    store: Literal["qdrant", "memory", "off"] = Field(
        default="qdrant",
        description="qdrant: embedded, or a server by CHINWAG_QDRANT_URL. memory: gone at the end. off: none.",
    )
    passages: int = Field(default=6, ge=1, le=50, description="Most passages given to the model with a question.")
    max_file_mb: int = Field(default=50, ge=1, description="Largest file or page that is learned, in megabytes.")
    fetch_timeout_s: float = Field(default=20, gt=0, description="Seconds until a page counts as not answering.")
    allow_private_addresses: bool = Field(
        default=False,
        description="Let /learn fetch from private and loopback addresses. Leave it off where strangers can write.",
    )


class MemoryTable(Table):
    """[memory]: what is remembered."""

    turn_retention_days: float = Field(
        default=30, ge=7, description="Days that finished turns stay known, against redelivery."
    )


class BackendTable(Table):
    """[backends.NAME]: a model server to choose by CHINWAG_BACKEND=NAME."""

    kind: str = Field(description="The wire it speaks: openai, embedded or echo.")
    base_url: str = Field(default="", description="Its address.")
    api_key_env: str = Field(default="", description="The environment variable that holds its key.")
    model: str = Field(default="", description="The model's name there, or a path for embedded.")
    context_tokens: int | None = Field(
        default=None, ge=256, description="The window, where the server does not tell it."
    )
    timeout_s: float = Field(
        default=120, gt=0, description="Seconds without a sign of life until it counts as timed out."
    )
    extra: dict[str, Any] = Field(default_factory=dict, description="What only this kind knows.")


class Settings(BaseSettings):
    """Chinwag's settings. Secrets come from the environment or `.env` only."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore", frozen=True, populate_by_name=True)

    data_dir: Path = Field(
        default_factory=_default_data_dir,
        validation_alias="CHINWAG_DATA_DIR",
        description="Folder for everything that is kept: database, knowledge, engine, log.",
    )
    database_url: str = Field(
        default="",
        validation_alias="CHINWAG_DATABASE_URL",
        description="Database address; empty: a SQLite file in the data folder.",
    )
    qdrant_url: str = Field(
        default="",
        validation_alias="CHINWAG_QDRANT_URL",
        description="A Qdrant server; empty: Qdrant embedded in the data folder.",
    )
    qdrant_api_key: SecretStr = Field(
        default=SecretStr(""), validation_alias="CHINWAG_QDRANT_API_KEY", description="Key of the Qdrant server."
    )
    discord_token: SecretStr = Field(
        default=SecretStr(""), validation_alias="DISCORD_TOKEN", description="Discord bot token."
    )
    discord_api_url: str = Field(
        default="", validation_alias="CHINWAG_DISCORD_API_URL", description="Another address for Discord's REST API."
    )
    discord_gateway_url: str = Field(
        default="", validation_alias="CHINWAG_DISCORD_GATEWAY_URL", description="Another address for Discord's gateway."
    )
    slack_bot_token: SecretStr = Field(
        default=SecretStr(""), validation_alias="SLACK_BOT_TOKEN", description="Slack bot token."
    )
    slack_app_token: SecretStr = Field(
        default=SecretStr(""), validation_alias="SLACK_APP_TOKEN", description="Slack app-level token, for Socket Mode."
    )
    slack_signing_secret: SecretStr = Field(
        default=SecretStr(""),
        validation_alias="SLACK_SIGNING_SECRET",
        description="Slack signing secret, for HTTP mode.",
    )
    slack_mode: Literal["socket", "http"] = Field(
        default="socket", validation_alias="CHINWAG_SLACK_MODE", description="How Slack reaches us: socket or http."
    )
    slack_api_url: str = Field(
        default="", validation_alias="CHINWAG_SLACK_API_URL", description="Another address for Slack's API."
    )
    http_host: str = Field(
        default="127.0.0.1",
        validation_alias="CHINWAG_HTTP_HOST",
        description="Address that our own HTTP server listens on.",
    )
    http_port: int = Field(
        default=8080, ge=0, le=65535, validation_alias="CHINWAG_HTTP_PORT", description="Port of our own HTTP server."
    )
    rate_per_minute: int = Field(
        default=10,
        ge=0,
        validation_alias="CHINWAG_RATE_PER_MINUTE",
        description="Messages a minute and person; 0: no limit.",
    )
    backend: str = Field(
        default="",
        validation_alias="CHINWAG_BACKEND",
        description="embedded, openai, echo, or a name from chinwag.toml. Empty: openai when there is a key or "
        "an address for it, else embedded.",
    )
    base_url: str = Field(
        default="", validation_alias="CHINWAG_BASE_URL", description="Address of the model server, up to /v1."
    )
    api_key: SecretStr = Field(
        default=SecretStr(""),
        validation_alias=AliasChoices("CHINWAG_API_KEY", "OPENAI_API_KEY"),
        description="Key of the model server. OPENAI_API_KEY alone is enough for OpenAI.",
    )
    model: str = Field(
        default="",
        validation_alias="CHINWAG_MODEL",
        description="Model name; for embedded: empty, small, or the path of a .gguf file.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO",
        validation_alias="CHINWAG_LOG_LEVEL",
        description="How much goes to chinwag.log in the data folder.",
    )
    cache_dir: Path | None = Field(
        default=None,
        validation_alias="CHINWAG_CACHE_DIR",
        description="Folder for model files; empty: the user's cache folder.",
    )

    persona: PersonaTable = PersonaTable()
    answers: AnswersTable = AnswersTable()
    knowledge: KnowledgeTable = KnowledgeTable()
    memory: MemoryTable = MemoryTable()
    backends: dict[str, BackendTable] = Field(default_factory=dict)

    @field_validator("data_dir", "cache_dir")
    @classmethod
    def _expand(cls, value: Path | None) -> Path | None:
        return value.expanduser() if value else value

    @field_validator("cache_dir", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: Any) -> Any:
        return value or None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment over `.env` over `chinwag.toml`."""
        del file_secret_settings
        return (
            init_settings,
            env_settings,
            dotenv_settings,
            TomlConfigSettingsSource(settings_cls, Path("chinwag.toml")),
        )

    @property
    def backend_name(self) -> str:
        """The backend that answers, `openai` chosen by itself where a key or an address is set."""
        if self.backend:
            return self.backend
        return "openai" if self.api_key.get_secret_value() or self.base_url else "embedded"


TABLES: dict[str, type[Table]] = {
    "persona": PersonaTable,
    "answers": AnswersTable,
    "knowledge": KnowledgeTable,
    "memory": MemoryTable,
}


def load(**overrides: Any) -> Settings:
    """Read the settings. Raises `SettingsError` with one line for the first thing that is wrong."""
    try:
        _check_names()
        return Settings(**overrides)
    except ValidationError as error:
        raise SettingsError(_first(error)) from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"chinwag.toml cannot be read: {error}. See chinwag.example.toml.") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"A settings file is not UTF-8 text: {error}.") from error


def environment_names() -> dict[str, str]:
    """Every environment variable that is read, with its description."""
    names: dict[str, str] = {}
    for field in Settings.model_fields.values():
        alias = field.validation_alias
        choices = alias.choices if isinstance(alias, AliasChoices) else [alias] if alias else []
        names |= {str(name): field.description or "" for name in choices}
    return names


def _check_names() -> None:
    known = environment_names()
    in_file = dotenv_values(".env") if Path(".env").is_file() else {}
    _refuse_unknown((n for n in os.environ if n.startswith("CHINWAG_")), known, "the environment")
    _refuse_unknown((n for n in in_file if n.startswith(PREFIXES) or _nearest(n, known)), known, ".env")
    path = Path("chinwag.toml")
    if not path.is_file():
        return
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    _refuse_unknown(document, [*TABLES, "backends"], "chinwag.toml")
    for name, table in TABLES.items():
        _refuse_unknown(_table(document, name), table.model_fields, f"[{name}] of chinwag.toml")
    for name in _table(document, "backends"):
        entry = _table(_table(document, "backends"), name, f"backends.{name}")
        _refuse_unknown(entry, BackendTable.model_fields, f"[backends.{name}] of chinwag.toml")


def _table(document: Mapping[str, Any], name: str, shown: str = "") -> Mapping[str, Any]:
    table = document.get(name, {})
    if not isinstance(table, Mapping):
        raise SettingsError(f"{shown or name} in chinwag.toml must be a table: write [{shown or name}].")
    return table


def _refuse_unknown(names: Iterable[str], known: Iterable[str], where: str) -> None:
    known = list(known)
    for name in names:
        if name in known:
            continue
        near = _nearest(name, known)
        hint = f"Did you mean {near}?" if near else f"Known are: {', '.join(known)}."
        raise SettingsError(f"{name} in {where} is not a setting. {hint}")


def _nearest(name: str, known: Iterable[str]) -> str:
    return next(iter(difflib.get_close_matches(name, list(known), 1, 0.75)), "")


def _first(error: ValidationError) -> str:
    """One line for the first fault, without the value: it may be a secret."""
    fault = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(str(part) for part in fault["loc"])
    field = Settings.model_fields.get(where)
    shown = str(field.validation_alias) if field is not None and isinstance(field.validation_alias, str) else where
    return f"The setting {shown} is wrong: {fault['msg']}. See .env.example and chinwag.example.toml."
