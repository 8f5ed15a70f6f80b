"""The durable engine under SIGKILL."""

from pathlib import Path

import pytest

from tests.standins.killer import Killer
from tests.standins.recorder import Event, violations

KILLS = 30


@pytest.mark.timeout(180)
async def test_nothing_is_lost_doubled_or_out_of_order_through_thirty_kills(tmp_path: Path) -> None:
    """A bot that is killed at any moment, and sent everything twice, answers each message once and in order."""
    report = await Killer(tmp_path, seed=20261120).run(KILLS)

    assert report.violations == []
    assert report.kills == KILLS
    assert report.accepted > 100
    # The kills were in the thick of it:
    assert report.came_back > 20
    assert report.thought_again > 5
    assert report.delivered_again > 0


@pytest.mark.parametrize(
    ("journal", "complaint"),
    [
        (["sent 1 a", "sent 2 a"], None),
        (["sent 2 a", "sent 1 a"], "out of order"),
        (["sent 1 a", "sent 1 a", "sent 2 a"], "answered twice"),
        (["sent 1 a"], "accepted and lost"),
        (["think 1 x", "deliver 1 x", "think 1 y", "sent 1 a", "sent 2 a"], "thought again"),
        (["deliver 1 x", "deliver 1 y", "sent 1 a", "sent 2 a"], "two answers"),
    ],
)
def test_the_judge_finds_each_kind_of_violation(journal: list[str], complaint: str | None) -> None:
    """A journal that breaks a promise is found out, and a good one is not."""
    found = violations(journal, [Event("1", "a"), Event("2", "a")], {"1", "2"})

    assert [complaint in one for one in found] == [True] if complaint else found == []
