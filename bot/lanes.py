"""Lines of people waiting: one per conversation, each served one at a time and in order."""

import asyncio
import heapq
from weakref import WeakValueDictionary


class Lanes:
    """All lanes. While `held`, turns may join but none is called.

    A lane lives as long as somebody is in it, or is about to join it.
    """

    def __init__(self, *, held: bool) -> None:
        self.held = held
        self._lanes: WeakValueDictionary[str, Lane] = WeakValueDictionary()

    def lane(self, key: str) -> "Lane":
        """The lane of a conversation."""
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(self)
        return lane

    def release(self) -> None:
        """Call the first turn of every lane, and from now on whoever is first."""
        self.held = False
        for lane in list(self._lanes.values()):
            lane.call_next()


class Lane:
    """One conversation's line. `joining` is held by whoever is about to join, so that order is kept."""

    def __init__(self, lanes: Lanes) -> None:
        self.joining = asyncio.Lock()
        self._lanes = lanes
        self._waiting: list[Ticket] = []
        self._serving: Ticket | None = None

    def join(self, order: tuple[int, str]) -> "Ticket":
        """Wait in line by `order`, which need not be the order of joining."""
        ticket = Ticket(self, order)
        heapq.heappush(self._waiting, ticket)
        self.call_next()
        return ticket

    def leave(self, ticket: "Ticket") -> None:
        """Let the next one in, if it was this ticket's turn."""
        if self._serving is ticket:
            self._serving = None
        self.call_next()

    def call_next(self) -> None:
        if self._lanes.held or self._serving is not None:
            return
        while self._waiting:
            first = heapq.heappop(self._waiting)
            if not first.called.done():
                self._serving = first
                first.called.set_result(None)
                return


class Ticket:
    """A place in a line. Await `called`; `leave` in every case."""

    def __init__(self, lane: Lane, order: tuple[int, str]) -> None:
        self.called = asyncio.get_running_loop().create_future()
        self._lane = lane
        self._order = order

    def __lt__(self, other: "Ticket") -> bool:
        return self._order < other._order

    def skip(self) -> bool:
        """Wait no longer, without being served; false when it was called already."""
        if self.called.done():
            return False
        self.called.set_result(None)
        return True

    def leave(self) -> None:
        """Be served no longer. Repeating it changes nothing."""
        self.called.cancel()
        self._lane.leave(self)
