"""How many tokens a request has, guessed where no server counts them.

The guess goes by bytes: four ASCII characters a token, and three bytes of anything else, which is one CJK sign or one
and a half Cyrillic letters. It is corrected by the usage that the server reports.
"""

from bot.messages import ModelRequest

_PER_MESSAGE = 4
_PER_IMAGE = 800


def estimate(request: ModelRequest) -> int:
    """Tokens of the prompt, uncorrected."""
    text = "".join(message.content for message in request.messages)
    calls = sum(len(call.name) + len(call.arguments) for message in request.messages for call in message.tool_calls)
    tools = sum(len(tool.name) + len(tool.description) + len(str(tool.parameters)) for tool in request.tools)
    images = sum(len(message.images) for message in request.messages)
    fixed = _PER_MESSAGE * len(request.messages) + _PER_IMAGE * images + (calls + tools) // 4
    return text_tokens(text) + fixed


def text_tokens(text: str) -> int:
    """Tokens of a text, uncorrected; the same letters always give the same number."""
    total = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    plain = len(text) if total == len(text) else len(text.encode("ascii", "ignore"))
    return -(-plain // 4) + -(-(total - plain) // 3)


class Estimate:
    """An estimate that learns from what the server says it counted."""

    def __init__(self) -> None:
        self._factor = 1.0

    def of(self, request: ModelRequest) -> int:
        """Tokens of the prompt, corrected."""
        return round(estimate(request) * self._factor)

    def learn(self, request: ModelRequest, reported: int) -> None:
        """Move a third of the way to what was reported, within half and double."""
        guess = estimate(request)
        if reported > 0 and guess > 20:
            self._factor += (min(2.0, max(0.5, reported / guess)) - self._factor) / 3
