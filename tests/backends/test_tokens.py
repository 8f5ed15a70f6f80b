"""Guessing tokens."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.tokens import Estimate, estimate, text_tokens
from bot.messages import ChatMessage, Image, ModelRequest, ToolSpec


def asking(text: str) -> ModelRequest:
    return ModelRequest(messages=(ChatMessage(role="user", content=text),), max_tokens=1)


@given(st.text(), st.text())
def test_more_text_is_never_fewer_tokens(text: str, more: str) -> None:
    """Whatever the script, and for letters that cannot be encoded too."""
    assert text_tokens(text) <= text_tokens(text + more)


@pytest.mark.parametrize(
    ("text", "real"),
    [
        ("The quick brown fox jumps over the lazy dog, and then it takes a long nap in the sun.", 20),
        ("В лесу родилась ёлочка, в лесу она росла, зимой и летом стройная, зелёная была.", 30),
        ("今日は天気がいいから、散歩しましょう。", 12),
    ],
)
def test_the_guess_is_of_the_right_size(text: str, real: int) -> None:
    """Within a factor of two of what a tokenizer of our day counts, in three scripts."""
    assert real / 2 <= text_tokens(text) <= real * 2


def test_pictures_and_tools_count() -> None:
    """A prompt is more than its words."""
    picture = Image(media_type="image/png", data=b"")
    tool = ToolSpec(name="look", description="Looks something up.", parameters={})
    plain = asking("x")
    seen = ModelRequest(
        messages=(ChatMessage(role="user", content="x", images=(picture,)),), max_tokens=1, tools=(tool,)
    )

    assert estimate(seen) > estimate(plain) + 500


def test_one_strange_report_does_not_spoil_the_guess() -> None:
    """Learning is bounded, and short prompts teach nothing."""
    guess, request = Estimate(), asking("word " * 100)
    before = guess.of(request)
    guess.learn(request, 10**9)
    guess.learn(asking("hi"), 10**6)

    assert before < guess.of(request) <= 2 * before


def test_nothing_heavy_is_imported_before_a_backend_is_opened() -> None:
    """The registry names them all and imports none."""
    code = "import sys, backends; sys.exit(any(m in sys.modules for m in ('aiohttp', 'xllamacpp', 'huggingface_hub')))"
    root = Path(__file__).parents[2]

    assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=20, check=False).returncode == 0
