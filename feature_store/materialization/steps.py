"""A materialization run as data: the steps that bring a view's online values up to an instant. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from feature_store.definitions.catalog import BoundView
from feature_store.definitions.tables import is_snapshot
from feature_store.errors import InvalidInputError
from feature_store.expressions.instants import DAY, to_iso
from feature_store.expressions.relations import LatestRow, ScheduledQuery, Windows
from feature_store.expressions.schedules import boundaries, boundary

MOST_CHUNKS = 16
MOST_SNAPSHOTS = 5_000
SHORTEST_CHUNK = 30 * DAY


@dataclass(frozen=True, slots=True)
class LatestStep:
    """Write the latest row of each key with start <= event time <= until; `touched` inputs limit the keys."""

    start: int | None
    until: int
    touched: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class TileStep:
    """Write the tiles of one length that end after `start`, over events before `until`."""

    level: int
    start: int | None
    until: int
    keep_from: int
    touched: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class SnapshotStep:
    """Take the snapshot of a boundary: keep it offline (queries), and publish it online if it is the newest."""

    at: int
    publish: bool


Step = LatestStep | TileStep | SnapshotStep


@dataclass(frozen=True, slots=True)
class Past:
    """What earlier runs of a view did: everything up to `through` is online, read from `inputs` (fingerprints);
    `snapshots` are the boundaries kept offline, `published` is the one that is served. Where the store `lost` what was
    written, nothing of it is online."""

    through: int | None = None
    inputs: Mapping[str, str] | None = None
    snapshots: frozenset[int] = frozenset()
    published: int | None = None
    lost: bool = False

    def lacks(self, boundary: int) -> bool:
        """Whether the snapshot of a boundary, or a newer one, has yet to be published."""
        return self.lost or self.published is None or self.published < boundary


def changed_inputs(before: Mapping[str, str], now: Mapping[str, str]) -> frozenset[str]:
    """The inputs there are that are new, or are no longer what they were."""
    return frozenset(name for name, fingerprint in now.items() if before.get(name) != fingerprint)


def steps_between(bound: BoundView, start: int, end: int, past: Past | None = None) -> tuple[Step, ...]:
    """The steps of an explicit run over [start, end], whatever was done before.

    Windows that end in the range reach back beyond its start: their tiles from there are written, too, unless an
    earlier run wrote them.
    """
    relation = bound.relation
    if isinstance(relation, LatestRow):
        return tuple(LatestStep(since, until) for since, until in chunks(start, end))
    if is_snapshot(bound):
        return _snapshots(relation, start, end)
    assert isinstance(relation, Windows)
    adjoins = past is not None and not past.lost and past.through is not None and start <= past.through
    return tuple(_tile_step(relation, level, start if adjoins else None, end) for level in relation.levels)


def steps_until(bound: BoundView, end: int, past: Past, inputs: Mapping[str, str]) -> tuple[Step, ...]:
    """The steps of an incremental run: what is new since the last one by time, and by changed inputs."""
    relation = bound.relation
    changed = changed_inputs(past.inputs or {}, inputs)
    if is_snapshot(bound):
        vanished = (past.inputs or {}).keys() - inputs.keys()
        return _new_snapshots(bound, end, past, bool(changed or vanished))
    since = None if past.lost else past.through
    if since is not None and since >= end and not changed:
        return ()
    if isinstance(relation, LatestRow):
        # Rows older than the ttl are loaded, too: a key that has only such a row is OUTSIDE_MAX_AGE, not NOT_FOUND.
        steps: tuple[Step, ...] = (LatestStep(since, end),)
        return steps if since is None or not changed else (*steps, LatestStep(None, end, changed))
    assert isinstance(relation, Windows)
    steps = tuple(_tile_step(relation, level, since, end) for level in relation.levels)
    if since is None or not changed:
        return steps
    return (*steps, *(_tile_step(relation, level, None, end, changed) for level in relation.levels))


def _tile_step(
    relation: Windows, level: int, start: int | None, end: int, touched: frozenset[str] | None = None
) -> TileStep:
    """Tiles that no window ending at `end` or later can reach are neither computed nor kept."""
    longest = max(window.length for window in relation.at_level(level))
    oldest = (end - longest) // level * level
    return TileStep(level, oldest if start is None else max(start, oldest), end, oldest, touched)


def _snapshots(relation: LatestRow | Windows | ScheduledQuery, start: int, end: int) -> tuple[Step, ...]:
    assert not isinstance(relation, LatestRow) and relation.schedule is not None
    newest = newest_boundary(relation, end)
    if isinstance(relation, Windows):
        return (SnapshotStep(newest, publish=True),)
    if relation.schedule.every == "daily" and (end - start) // DAY > MOST_SNAPSHOTS:
        raise _too_many(start, end, (end - start) // DAY)
    valid = [at + relation.delay for at in boundaries(relation.schedule, start - relation.delay, end - relation.delay)]
    if len(valid) > MOST_SNAPSHOTS:
        raise _too_many(start, end, len(valid))
    return tuple(SnapshotStep(at, publish=at == newest) for at in dict.fromkeys([*valid, newest]))


def _too_many(start: int, end: int, count: int) -> InvalidInputError:
    return InvalidInputError(
        f"from {to_iso(start)} to {to_iso(end)} there are {count:,} snapshots to compute",
        hint=f"Materialize at most {MOST_SNAPSHOTS:,} at once",
    )


def _new_snapshots(bound: BoundView, end: int, past: Past, changed: bool) -> tuple[Step, ...]:
    relation = bound.relation
    assert not isinstance(relation, LatestRow) and relation.schedule is not None
    newest = newest_boundary(relation, end)
    if isinstance(relation, Windows):
        return (SnapshotStep(newest, publish=True),) if changed or past.lacks(newest) else ()
    since = newest - 1 if past.through is None else past.through
    return tuple(
        step
        for step in _snapshots(relation, since, end)
        if isinstance(step, SnapshotStep) and (step.at not in past.snapshots or (step.publish and past.lacks(step.at)))
    )


def newest_boundary(relation: Windows | ScheduledQuery, at: int) -> int:
    """The start of validity of the snapshot that counts at an instant."""
    assert relation.schedule is not None
    delay = relation.delay if isinstance(relation, ScheduledQuery) else 0
    return boundary(relation.schedule, at - delay) + delay


def chunks(start: int, end: int) -> list[tuple[int, int]]:
    """[start, end] in pieces of at least 30 days, at most 16 of them, so that a killed run resumes near its end."""
    length = max(SHORTEST_CHUNK, -(-(end - start) // MOST_CHUNKS))
    edges = [*range(start, end, length), end] if end > start else [start, end]
    return list(pairwise(edges))
