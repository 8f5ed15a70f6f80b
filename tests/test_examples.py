"""The example settings files say what the program reads."""

import re
import tomllib
from pathlib import Path

import pytest

from bot.config import TABLES, BackendTable, Settings, environment_names, load
from bot.errors import SettingsError

ROOT = Path(__file__).parent.parent


def test_every_environment_variable_is_in_the_example() -> None:
    """`.env.example` names exactly what is read."""
    written = re.findall(r"^# ([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)

    assert sorted(written) == sorted(environment_names())


def test_the_toml_example_holds_the_defaults() -> None:
    """chinwag.example.toml names every field, and loading it changes nothing."""
    text = (ROOT / "chinwag.example.toml").read_text()
    document = tomllib.loads(text)

    for name, table in TABLES.items():
        assert table(**document[name]) == table()
        for field in table.model_fields:
            assert re.search(rf"^(# )?{field} =", text, re.MULTILINE), field
    for field in BackendTable.model_fields:
        assert re.search(rf"^# {field} = ", text, re.MULTILINE), field


@pytest.mark.parametrize(
    ("file", "text", "hint"),
    [
        (".env", "CHINWAG_MODLE=x\n", "CHINWAG_MODEL"),
        ("chinwag.toml", "[answers]\nmax_token = 5\n", "max_tokens"),
        ("chinwag.toml", "[answer]\n", "answers"),
        ("chinwag.toml", "[backends.gpu]\nkind = 'openai'\nbase_ulr = 'x'\n", "base_url"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, text: str, hint: str
) -> None:
    """A misspelt setting ends in one line that names the right one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / file).write_text(text)

    with pytest.raises(SettingsError, match=hint):
        load()


def test_an_unknown_variable_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So is one in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHINWAG_BACKENT", "echo")

    with pytest.raises(SettingsError, match="CHINWAG_BACKEND"):
        load()


def test_a_wrong_value_is_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line for a wrong value names the setting and not the value, which may be a secret."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHINWAG_HTTP_PORT", "hunter2")

    with pytest.raises(SettingsError, match="CHINWAG_HTTP_PORT") as caught:
        load()
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_alone_is_enough_for_openai(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OPENAI_API_KEY selects the openai backend; without any key the embedded model answers."""
    monkeypatch.chdir(tmp_path)
    for name in environment_names():
        monkeypatch.delenv(name, raising=False)
    assert load().backend_name == "embedded"

    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    settings: Settings = load()

    assert settings.backend_name == "openai"
    assert "sk-test" not in repr(settings)
