"""When a view is due, as pure arithmetic."""

from __future__ import annotations

import pytest

from feature_store.expressions.instants import HOUR, MINUTE, SECOND, instant, to_iso
from feature_store.expressions.relations import Schedule
from feature_store.pipelines.due import Retries, Scheduled
from feature_store.registry.records import Runs

BERLIN = "Europe/Berlin"


def at(text: str) -> int:
    return instant(f"2026-{text}:00Z")


@pytest.mark.parametrize(
    ("schedule", "delay", "now", "due", "following"),
    [
        (Schedule("daily"), 0, "03-05T12:00", "03-05T00:00", "03-06T00:00"),
        (Schedule("daily"), 0, "03-05T00:00", "03-05T00:00", "03-06T00:00"),
        (Schedule("daily"), 2 * HOUR, "03-05T01:59", "03-04T02:00", "03-05T02:00"),
        (Schedule("daily"), 2 * HOUR, "03-05T02:00", "03-05T02:00", "03-06T02:00"),
        (Schedule("hourly"), 0, "03-05T12:59", "03-05T12:00", "03-05T13:00"),
        (Schedule("30 2 * * 1"), 0, "03-05T12:00", "03-02T02:30", "03-09T02:30"),
        # The day on which the clocks go forward has 23 hours there, and begins at 23:00 UTC; the next one at 22:00.
        (Schedule("daily", BERLIN), 0, "03-29T12:00", "03-28T23:00", "03-29T22:00"),
        (Schedule("daily", BERLIN), 0, "10-25T12:00", "10-24T22:00", "10-25T23:00"),
        (Schedule("30 2 * * *", BERLIN), 0, "03-29T00:59", "03-28T01:30", "03-29T01:00"),  # 02:30 is skipped: after it
        (Schedule("30 2 * * *", BERLIN), 0, "10-25T12:00", "10-25T00:30", "10-26T01:30"),  # comes twice: the first
        (Schedule("0 0 29 2 *"), 0, "03-05T12:00", None, None),
    ],
)  # fmt: skip
def test_boundaries_that_are_due(
    schedule: Schedule, delay: int, now: str, due: str | None, following: str | None
) -> None:
    item = Scheduled("view", schedule, delay)
    found, then = item.due(Runs("view"), at(now)), item.next(at(now))
    if due is None:
        assert (to_iso(found or 0), to_iso(then or 0)) == ("2024-02-29T00:00:00Z", "2028-02-29T00:00:00Z")
        return
    assert (found, then) == (at(due), at(following or ""))
    assert item.due(Runs("view", through=found), at(now)) is None
    assert item.due(Runs("view", through=(found or 0) - 1), at(now)) == found, "one run takes all that was missed"


def test_attempts_wait_twice_as_long_each_time_then_for_the_next_boundary() -> None:
    retries = Retries(attempts=4, wait=10 * SECOND)
    assert [retries.next(n, 0) for n in (1, 2, 3, 4)] == [10 * SECOND, 20 * SECOND, 40 * SECOND, None]
    assert Retries(100, 10 * MINUTE).next(50, 0) == HOUR, "not longer than an hour"
    failed = Runs("view", trying=5, began=6, ended=7, attempts=1, error="no", retry_at=100)
    assert not retries.allow(failed, 5, 99)
    assert retries.allow(failed, 5, 100)
    assert retries.allow(failed, 6, 99), "another boundary begins anew"
    given_up = Runs("view", trying=5, began=6, ended=7, attempts=4, error="no")
    assert not retries.allow(given_up, 5, 10**9)
    killed = Runs("view", trying=5, began=6, attempts=1)
    assert retries.allow(killed, 5, 7), "whose runner was killed needs no wait"
    assert not retries.allow(Runs("view", trying=5, began=6, attempts=4), 5, 7), "one that kills its runners is left"
