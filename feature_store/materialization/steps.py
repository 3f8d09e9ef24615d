"""A materialization run as data: the steps that bring a view's online values up to an instant. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from zlib import crc32

from feature_store.definitions.catalog import BoundView
from feature_store.definitions.tables import is_snapshot
from feature_store.errors import InvalidInputError
from feature_store.expressions.instants import DAY, to_iso
from feature_store.expressions.relations import LatestRow, ScheduledQuery, Windows
from feature_store.expressions.schedules import boundaries, boundary
from feature_store.registry.records import Chunk

MOST_CHUNKS = 16
MOST_SNAPSHOTS = 5_000
SHORTEST_CHUNK = 30 * DAY
_BEFORE_ALL = -(2**62)


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
    if isinstance(bound.relation, LatestRow):
        return tuple(LatestStep(since, until) for since, until in chunks(start, end))
    return tuple(part for step in whole_between(bound, start, end, past) for part in parts(step))


def whole_between(bound: BoundView, start: int, end: int, past: Past | None = None) -> tuple[Step, ...]:
    """The same of windows and queries, before they are parted: one step a length of tiles."""
    relation = bound.relation
    if is_snapshot(bound):
        return _snapshots(relation, start, end)
    assert isinstance(relation, Windows)
    adjoins = past is not None and not past.lost and past.through is not None and start <= past.through
    return tuple(_tile_step(relation, level, start if adjoins else None, end) for level in relation.levels)


def steps_until(
    bound: BoundView, end: int, past: Past, inputs: Mapping[str, str], earliest: int | None = None
) -> tuple[Step, ...]:
    """The steps of an incremental run: what is new since the last one by time, and by changed inputs.

    `earliest` is the first event time there is; where it is not known, latest rows are loaded at once the first time.
    """
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
        steps: tuple[Step, ...] = tuple(_latest_steps(since, end, earliest))
        return steps if since is None or not changed else (*steps, LatestStep(None, end, changed))
    assert isinstance(relation, Windows)
    steps = tuple(part for level in relation.levels for part in parts(_tile_step(relation, level, since, end)))
    if since is None or not changed:
        return steps
    return (*steps, *(_tile_step(relation, level, None, end, changed) for level in relation.levels))


def _latest_steps(since: int | None, end: int, earliest: int | None) -> Iterator[LatestStep]:
    first = earliest if since is None else since
    inner = edges(first, end, DAY, SHORTEST_CHUNK, MOST_CHUNKS)[1:-1] if first is not None and first < end else []
    begin = since
    for edge in inner:
        yield LatestStep(begin, edge - 1)
        begin = edge
    yield LatestStep(begin, end)


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


def parts(step: Step, shortest: int = SHORTEST_CHUNK, most: int = MOST_CHUNKS) -> Iterator[Step]:
    """A step in pieces by time where it is one of tiles: each tile belongs to one of them. What changed inputs touch is
    few keys, which are looked for in all rows: that is done once."""
    if not isinstance(step, TileStep) or step.touched is not None or step.start is None or step.start >= step.until:
        yield step
        return
    for start, until in pairwise(edges(step.start, step.until, step.level, shortest, most)):
        yield replace(step, start=start, until=until)


def edges(start: int, end: int, unit: int, shortest: int, most: int) -> list[int]:
    """`start`, then the multiples of a length that lie between, then `end`: at most `most` pieces or so, of whole units
    and, where these are shorter, of `shortest`. They stay where they are when the end moves, so that a run that goes on
    up to a later now finds what was done before."""
    length = unit * -(-shortest // unit)
    while (end - start) // length >= most:
        length *= 2
    if end - start < 2 * length:
        return [start, end]
    first = (start // length + 1) * length
    return [start, *range(first, end, length), end]


def chunk_of(step: Step) -> Chunk:
    """What identifies a step among those over the same inputs. A snapshot that is kept is not yet one that is
    published, too; keys that inputs touch depend on what was read before, and so on which inputs those are."""
    match step:
        case LatestStep(start, until, None):
            return (0, _BEFORE_ALL if start is None else start, until)
        case TileStep(level, start, until, _, None):
            return (level, _BEFORE_ALL if start is None else start, until)
        case SnapshotStep(at, publish):
            return (-1, at, at + publish)
        case LatestStep(_, until, touched):
            return (-2, _digest(touched), until)
        case TileStep(level, _, until, _, touched):
            return (-2 - level, _digest(touched), until)


def _digest(names: frozenset[str] | None) -> int:
    return crc32("\0".join(sorted(names or ())).encode())
