"""Lines of turns, as rules."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from bot.lanes import Lanes, Ticket

ORDERS = st.lists(st.integers(0, 1000), unique=True, max_size=12)


@given(orders=ORDERS, skipped=st.sets(st.integers(0, 11)))
def test_tickets_are_called_one_at_a_time_in_order(orders: list[int], skipped: set[int]) -> None:
    """Whatever the order of joining, tickets are called by their order; one that skips is never waited for."""

    async def serve() -> list[int]:
        lanes, served = Lanes(held=True), []
        tickets = {order: lanes.lane("a").join((order, "")) for order in orders}
        for n in skipped & set(range(len(orders))):
            assert tickets.pop(orders[n]).skip()
        lanes.release()
        while tickets:
            called = [order for order, ticket in tickets.items() if ticket.called.done()]
            assert len(called) == 1
            served.append(called[0])
            tickets.pop(called[0]).leave()
        return served

    kept = [order for n, order in enumerate(orders) if n not in skipped]
    assert asyncio.run(serve()) == sorted(kept)


@given(orders=ORDERS, gone=st.sets(st.integers(0, 11)))
def test_whoever_leaves_the_line_holds_up_nobody(orders: list[int], gone: set[int]) -> None:
    """A ticket that leaves while it waits, or twice, is passed over."""

    async def serve() -> list[int]:
        lanes, served = Lanes(held=False), []
        lane = lanes.lane("a")
        holder = lane.join((-1, ""))
        tickets = {order: lane.join((order, "")) for order in orders}
        for n in gone & set(range(len(orders))):
            left = tickets.pop(orders[n])
            left.leave()
            left.leave()
        holder.leave()
        for order, ticket in sorted(tickets.items()):
            assert ticket.called.done()
            served.append(order)
            ticket.leave()
        return served

    assert asyncio.run(serve()) == sorted(order for n, order in enumerate(orders) if n not in gone)


async def test_lanes_are_independent_and_forgotten() -> None:
    """Two lanes are served side by side, and a lane that all have left takes no memory."""
    lanes = Lanes(held=False)
    tickets: list[Ticket] = [lanes.lane(key).join((0, "")) for key in ("a", "b")]
    assert all(ticket.called.done() for ticket in tickets)
    assert len(lanes._lanes) == 2
    for ticket in tickets:
        ticket.leave()
    del ticket
    tickets.clear()

    assert len(lanes._lanes) == 0
