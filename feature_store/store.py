"""The waist of the house: a repository's definitions on one side, its stores and engines on the other.

Every operation is a few lines here and its meaning is elsewhere: planning in `definitions`, computing in
`materialization` and `retrieval`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from feature_store.definitions import (
    Definition,
    Entity,
    FeatureService,
    FeatureView,
    OnDemandFeatureView,
    Source,
)
from feature_store.definitions.bind import bind
from feature_store.definitions.catalog import BoundOnDemand, BoundView, Catalog, FeatureRef
from feature_store.definitions.difference import Node, Plan, Stored, bound_of, difference
from feature_store.definitions.directory import Directory
from feature_store.definitions.lineage import Edge, lineage
from feature_store.definitions.places import locate
from feature_store.definitions.serving import VersionKey, roles_after, served_after, serving_catalog
from feature_store.definitions.tables import epoch_table, push_log, snapshots_path, stream_log, tables_of
from feature_store.engines.engine import METASTORE_TABLES, Engine
from feature_store.errors import (
    DefinitionError,
    InvalidInputError,
    Location,
    NotFoundError,
    SettingsError,
    UsageError,
    nearest,
)
from feature_store.expressions.instants import instant, to_iso
from feature_store.expressions.relations import Rows, ScheduledQuery
from feature_store.materialization.backfill import Backfill
from feature_store.materialization.batch import Materializer, Report
from feature_store.materialization.boundary import Boundary, is_filled_by_stream, wait_for_workers
from feature_store.materialization.push import Destination, Pusher, receivers
from feature_store.materialization.rollout import KEPT_FOR, Rollout
from feature_store.materialization.sinks import Address
from feature_store.materialization.stream_log import SPAN, StreamLog
from feature_store.plugins import check_online_store, open_online_store
from feature_store.registry.records import Record, Role, State
from feature_store.registry.registry import Registry
from feature_store.repository import Repository
from feature_store.retrieval.assembly import HistoricalQuery
from feature_store.retrieval.historical import retrieve
from feature_store.retrieval.job import HistoricalJob, Selection
from feature_store.retrieval.online import OnlineFeatures
from feature_store.retrieval.response import OnlineResponse
from feature_store.settings import FILE_NAME, EnginePlace, Settings, resolve_uri
from feature_store.storage.online import OnlineStore, Table
from feature_store.storage.routed import RoutedOnlineStore
from feature_store.types import Column, Schema, Type

if TYPE_CHECKING:
    from feature_store.engines.kafka import Topic
    from feature_store.storage.hbase_snapshots import HBaseSnapshots
    from feature_store.storage.offline import OfflineStore

Features = str | FeatureService | Sequence[str | FeatureRef | Definition]
"""A service (by name or itself), or a list of references."""

KINDS: tuple[type[Definition], ...] = (Entity, Source, FeatureView, OnDemandFeatureView, FeatureService)
_SETTLED = {
    "keys": "key_types",
    "features": "feature_types",
    "columns": "column_types",
    "request": "request_types",
}
_BY_KIND = {kind.kind: kind for kind in KINDS}
_SELECT = re.compile(r"(\s|\(|--[^\n]*\n|/\*.*?\*/)*+(SELECT|WITH)[\s(*`'\"]", re.IGNORECASE | re.DOTALL)
_LOOK_AGAIN_AFTER = 2.0  # seconds until a process asks the registry whether somebody applied


class FeatureStore(Directory):
    """One feature repository: define, materialize, read.

    `repo_path` is the directory of feature_store.yaml; `fs_yaml_file` another settings file. Threads may share a
    store. Nothing is opened before it is needed.
    """

    def __init__(self, repo_path: str | Path = ".", fs_yaml_file: str | Path | None = None) -> None:
        self.repository = Repository(Path(repo_path), Path(fs_yaml_file) if fs_yaml_file else None)
        self._lock = RLock()
        self._state: State | None = None
        self._catalog: Catalog | None = None
        self._serving: Catalog | None = None
        self._earlier: dict[str, BoundView] = {}
        self._looked_at = 0.0
        self._online: OnlineFeatures | None = None
        self._engines: dict[str, Engine] = {}
        self._aliased: dict[str, str] = {}
        self._kept_elsewhere: dict[str, HBaseSnapshots] = {}
        self._placed: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<FeatureStore in {self.root}>"

    # What the store stands on

    @property
    def root(self) -> Path:
        return self.repository.root

    @property
    def settings(self) -> Settings:
        return self.repository.settings

    @property
    def project(self) -> str:
        return self.settings.project

    @cached_property
    def registry(self) -> Registry:
        return Registry(self.settings.registry, self.project)

    def upgrade_registry(self) -> int | None:
        """Bring the tables of an older release up to this one; the version they had, None if there is nothing to do.

        Releases older than this one cannot open the registry then. A registry in SQLite is upgraded when it is opened.
        """
        if "registry" not in self.__dict__:
            self.registry = Registry(self.settings.registry, self.project, upgrade=True)
        return self.registry.upgraded_from

    @cached_property
    def online_store(self) -> OnlineStore:
        return self.open_online_store()

    def open_online_store(self, adjust: Callable[[str], str] = str) -> OnlineStore:
        """The repo's online store and those that views name for themselves, as one; `adjust` may change a URI."""

        def opened(uri: str) -> OnlineStore:
            return open_online_store(adjust(uri), self.project, self.root)

        return RoutedOnlineStore(opened(self.settings.online_store), self._own_store, opened)

    def _own_store(self, table: str) -> str | None:
        """The URI of the store that a table rests in, None for the repo's. An earlier version stays where it was."""
        view, _, rest = table.partition(".")
        if self._placed:
            version = rest.partition("@")[0].partition(".")[0]
            uri = self._placed.get(f"{view}.{version}", self._aliased.get(view))
            return uri if uri != self.settings.online_store else None
        return self._aliased.get(view)

    @cached_property
    def offline_store(self) -> OfflineStore:
        from feature_store.storage.offline import OfflineStore  # Delta, which a command may not need

        location = f"{self.settings.offline_store.rstrip('/')}/{self.project}"
        return OfflineStore(location, self.root, self._snapshots_elsewhere)

    def _snapshots_elsewhere(self, table: str) -> HBaseSnapshots | None:
        """What keeps the snapshots of a view that names an HBase for them; `table` as `snapshots_path` names it."""
        if table not in self._kept_elsewhere:
            views = [*(self._catalog.views if self._catalog else {}).values(), *self._earlier.values()]
            for bound in views:
                if snapshots_path(bound) == table:
                    self._keep_elsewhere(table, bound.view, bound.keys, bound.features)
        return self._kept_elsewhere.get(table)

    def _close_elsewhere(self) -> None:
        while self._kept_elsewhere:
            self._kept_elsewhere.popitem()[1].close()

    def _keep_elsewhere(self, table: str, view: FeatureView, keys: Schema, values: Schema) -> None:
        uri = self.repository.resolve_alias(view.storage.offline) if view.storage and view.storage.offline else None
        if uri and uri.startswith("hbase:") and table not in self._kept_elsewhere:
            from feature_store.storage.hbase_snapshots import HBaseSnapshots  # a driver that few repos need

            self._kept_elsewhere[table] = HBaseSnapshots(uri, self.project, table, keys, values)

    @property
    def catalog(self) -> Catalog:
        """The applied definitions, bound; looked up anew within two seconds of somebody's apply."""
        self._look()
        assert self._catalog is not None
        return self._catalog

    @property
    def serving(self) -> Catalog:
        """What online reads go by: as `catalog`, but a view whose applied version is not complete yet as it was."""
        self._look()
        assert self._serving is not None
        return self._serving

    def _look(self) -> None:
        if self._catalog is None or time.monotonic() - self._looked_at > _LOOK_AGAIN_AFTER:
            self.refresh()

    def refresh(self) -> bool:
        """Look whether the registry moved on, and if so take the new definitions; whether it did."""
        return self._refresh()

    def _refresh(self, committed: tuple[int, Catalog] | None = None) -> bool:
        """`committed`: what the registry holds as of a serial, bound."""
        with self._lock:
            serial = self.registry.serial()
            self._looked_at = time.monotonic()
            if self._state is not None and self._state.serial == serial:
                return False
            state = self.registry.load()
            is_known = committed is not None and committed[0] == state.serial
            applied = committed[1] if committed and is_known else self._bind_state(state)
            earlier = self._bind_earlier(state, applied)
            aliased = self._own_stores(applied)
            self._earlier = {name: found.views[name] for name, found in earlier.items()}
            self._placed = {
                bound.table: self._own_stores(earlier[name]).get(name, self.settings.online_store)
                for name, bound in self._earlier.items()
            }
            self._close_elsewhere()
            self._catalog, self._serving, self._aliased = applied, serving_catalog(applied, earlier), aliased
            self._state = state
            self._online = None
            return True

    def _bind_state(self, state: State, timezone: str | None = None) -> Catalog:
        schemas = {record.name: _schema(record) for record in state.records if record.kind == Source.kind}
        return self._bind(_definitions(state), lambda rows: schemas[rows.name], timezone=timezone)

    def _bind_earlier(self, state: State, applied: Catalog) -> dict[str, Catalog]:
        """By view of which an earlier version is served, the definitions of its time."""
        found: dict[str, Catalog] = {}
        for served in state.versions:
            if served.role is Role.SERVED and served.view in applied.views:
                then = self._bind_state(self.registry.load(served.serial), served.timezone)
                if served.view in then.views and then.views[served.view].version == served.version:
                    found[served.view] = then
        return found

    def _own_stores(self, catalog: Catalog) -> dict[str, str]:
        """The URIs of the stores that views name for themselves, by view: an alias's, or an address."""
        found = {
            name: self.repository.resolve_alias(view.view.storage.online)
            for name, view in catalog.views.items()
            if view.view.storage and view.view.storage.online
        }
        return {name: uri for name, uri in found.items() if uri and uri != self.settings.online_store}

    def _bind(
        self, definitions: Sequence[Definition], schema_of: Any, locations: Any = None, timezone: str | None = None
    ) -> Catalog:
        return bind(
            self.project,
            definitions,
            root=self.root,
            offline=lambda table: self.offline_store.path(table),
            timezone=timezone or self.settings.timezone,
            schema_of=schema_of,
            locations=locations,
        )

    def _engine(self, name: str | None = None) -> Engine:
        """The engine of a name in the settings' `engines`; None is the repo's default."""
        name = name or self.settings.engine
        place = self.settings.engine_place(name)
        with self._lock:
            found = self._engines.get(place.master)
            if found is None:
                found = self._engines[place.master] = self._opened_engine(name, place)
            return found

    def _opened_engine(self, name: str, place: EnginePlace) -> Engine:
        if place.is_embedded:
            from feature_store.engines.local import LocalEngine

            limits = self.settings.limits
            return LocalEngine(memory_limit=limits.memory, threads=limits.threads)
        if not place.is_spark:
            raise SettingsError(
                f'engine "{name}" at "{place.master}" is not supported by this release',
                hint=f"Write engines: {{{name}: local}}, or a Spark master such as local[2] or spark://host:7077",
            )
        from feature_store.engines.spark import SparkEngine

        return SparkEngine(place.master, place.conf_texts, connect_timeout=place.connect_timeout)

    def _schema_of(self, rows: Rows) -> Schema:
        """What a source holds now. A metastore table is read by the engine that has the metastore."""
        on_spark = (name for name in self.settings.engines if self.settings.engine_place(name).is_spark)
        return self._engine(next(on_spark, None) if rows.table else None).schema(rows)

    # Define

    def plan(self, definitions: Iterable[Definition] | None = None) -> Plan:
        """What `apply` would change, and what that touches."""
        return self._plan(definitions)[0]

    def apply(
        self,
        definitions: Iterable[Definition] | Definition | None = None,
        allow_destructive: bool = False,
        partial: bool = True,
    ) -> Plan:
        """Make the registry and the stores what the repository says; the plan that was carried out.

        With `definitions`, these are added to (or replace) what is applied; with `partial=False` everything else goes.

        Raises:
            DefinitionError: a definition is wrong; nothing changed.
            DestructiveChangeError: stored values would go, and `allow_destructive` is not set.
            ConflictError: somebody applied at the same time; nothing changed.
        """
        if isinstance(definitions, Definition):
            definitions = [definitions]
        self.upgrade_registry()
        self._drop_retired()  # what an apply that was interrupted has left would come back with a view of its version
        plan, catalog = self._plan(definitions, partial)
        if not allow_destructive:
            plan.refuse_destructive()
        self._start_over(catalog)
        gone = [bound for name, bound in self.catalog.views.items() if name not in catalog.views]
        unread = [rows for name, rows in self.catalog.rows.items() if name not in catalog.rows]
        streamed = any(rows.streamed for rows in chain(unread, *(bound.inputs for bound in gone)))
        serial = plan.serial
        if not plan.is_empty:
            serial = self.registry.commit(plan.registry_changes(), plan.serial, versions=plan.versions)
        if streamed:
            wait_for_workers(self.registry.streams)
        for change in plan.destructive:
            if change.kind == Source.kind:
                self._drop_logs(change.name, catalog.rows.get(change.name))
        self._refresh((serial, catalog))
        online = [bound for bound in catalog.views.values() if bound.view.online]
        self.online_store.create(*(table for bound in online for table in tables_of(bound)))
        self._drop_retired()
        return plan

    def _start_over(self, catalog: Catalog) -> None:
        """Drop what is there of versions that streams are to fill as `catalog` says, and did once, but do not now: it
        lacks the events since then."""
        read = [name for name, source in self.catalog.sources.items() if source.stream and source.stream.kafka]
        filled = {bound.table for source in read for bound in self.receivers(source)}
        for bound in catalog.views.values():
            if bound.view.online and is_filled_by_stream(bound) and bound.table not in filled:
                history = self.registry.history(FeatureView.kind, bound.name)
                same = [record for record in history if record.bound.get("version") == bound.version]
                if same:
                    wait_for_workers(self.registry.streams, history[-1].created_at)
                    self._drop_tables(same[-1:])

    def _plan(self, definitions: Iterable[Definition] | None, partial: bool = False) -> tuple[Plan, Catalog]:
        locations: Mapping[tuple[str, str], Location] = {}
        warnings: Sequence[str] = ()
        if definitions is None:
            self.repository = Repository(self.root, self.repository.settings_file)
        with self._lock:
            self.refresh()
            state, before = self._state, self._catalog
        assert state is not None and before is not None
        if definitions is None:
            after: Sequence[Definition] = self.repository.definitions
            locations, warnings = self.repository.locations, self.repository.warnings
        else:
            after = _merged(_definitions(state), definitions) if partial else list(definitions)
        catalog = self._bind(after, self._schema_of, locations)
        for uri in (self.settings.online_store, *self._own_stores(catalog).values()):
            check_online_store(uri)
        for bound in catalog.views.values():
            self._check_engine(bound, locate(locations, bound.view, "engine"))
        for name, rows in catalog.rows.items():
            known = before.rows.get(name)
            if rows.streamed and (known is None or known.schema != rows.schema):
                StreamLog(self.offline_store, name).check(rows.schema)
        warnings = [*warnings, *_not_written(catalog), *self._not_kept(catalog, locations)]
        through = {(p.view, p.version): p.through for p in self.registry.all_progress()}
        live = self._filled_live(before, catalog, through)
        stored = self._stored(before, self._bind_earlier(state, before), through, live)
        plan = difference(before, catalog, stored=stored, serial=state.serial, warnings=warnings)
        complete = {key for key, at in through.items() if at is not None} | live
        zone, now = self.settings.timezone, time.time_ns() // 1000
        roles = roles_after(before, catalog, state, complete, zone, now)
        return replace(plan, versions=roles, serving=served_after(state, roles)), catalog

    def _check_engine(self, bound: BoundView, location: Location | None) -> None:
        """`DefinitionError` where the engine of a view cannot do what is asked of it."""
        name = bound.view.engine or self.settings.engine
        place = self.settings.engine_place(name)
        if not (place.is_embedded or place.is_spark):
            raise DefinitionError(
                f'{bound.view.title}: engine "{name}" at "{place.master}" computes no views from files and tables',
                hint="Write engine: spark or local; what reads a topic is in the source: stream: {engine: flink}",
                location=location,
            )
        table = next((rows for rows in bound.inputs if rows.table), None)
        if table and METASTORE_TABLES in self._engine(name).gaps:
            raise DefinitionError(
                f'{bound.view.title}: engine "{name}" cannot read source "{table.name}", '
                f"the metastore table {table.table}",
                hint="Write engine: spark, or give the source a path",
                location=location,
            )

    def _filled_live(
        self, before: Catalog, after: Catalog, through: Mapping[VersionKey, int | None]
    ) -> frozenset[VersionKey]:
        """The versions that `after` removes or replaces and that hold rows online without a run that ended: what was
        pushed or streamed to them, of which only the store knows."""
        kept = {(view.name, view.version) for view in after.views.values()}
        views = {(view.name, view.version): view for view in before.views.values() if view.view.online}
        asked = {key: view for key, view in views.items() if key not in kept and through.get(key) is None}
        return frozenset(key for key, view in asked.items() if self._has_rows(view))

    def _has_rows(self, bound: BoundView) -> bool:
        tables = (table for table in tables_of(bound) if table != epoch_table(bound))
        return any(batch.num_rows for table in tables for batch in self.online_store.scan(table))

    def _not_kept(self, catalog: Catalog, locations: Mapping[tuple[str, str], Location]) -> Iterator[str]:
        """Warnings of places that views name for offline rows, and at which nothing is kept."""
        for bound in catalog.views.values():
            uri = bound.view.storage and bound.view.storage.offline
            if not uri:
                continue
            what = f"{bound.view.title}: nothing is kept at {uri}, which storage: offline names"
            if not isinstance(bound.relation, ScheduledQuery):
                why = "only snapshots of sql are kept offline"
                hint = f"Remove it: pushed rows rest in offline_store of {FILE_NAME}"
            elif not (self.repository.resolve_alias(uri) or uri).startswith("hbase:"):
                why, hint = (
                    "a single view's snapshots go to HBase only",
                    f"Set offline_store in {FILE_NAME}, for all views",
                )
            else:
                continue
            place = locate(locations, bound.view, "storage", "offline")
            yield str(DefinitionError(f"{what}: {why}", hint=hint, location=place))

    def _stored(
        self,
        catalog: Catalog,
        earlier: Mapping[str, Catalog],
        through: Mapping[VersionKey, int | None],
        live: Collection[VersionKey],
    ) -> dict[Node, Stored]:
        """What holds data: views that are materialized or hold `live` rows, and sources with a push log."""
        stored: dict[Node, Stored] = {
            (FeatureView.kind, name): Stored(through=through.get((name, view.version)))
            for name, view in catalog.views.items()
            if (name, view.version) in through or (name, view.version) in live
        }
        for name, then in earlier.items():
            at = through.get((name, then.views[name].version))
            holds = bound_of(then, FeatureView.kind, name)
            stored[FeatureView.kind, name] = Stored(through=at, holds=holds)
        for name, source in catalog.sources.items():
            if source.stream and any(map(self.offline_store.exists, (push_log(name), stream_log(name)))):
                stored[Source.kind, name] = Stored()
        return stored

    # Materialize

    def materialize(
        self,
        start_date: Any,
        end_date: Any,
        feature_views: Sequence[str] | None = None,
        progress: Report | None = None,
    ) -> int:
        """Compute [start, end] and write it online; the number of rows written. Killed and run again, it goes on.

        An end after now is now: what has not happened yet would hide what has.
        """
        start, end = instant(start_date), _not_after_now(end_date)
        if start > end:
            raise InvalidInputError(f"the start {start_date} lies after the end {end_date}, or after now")
        materializer = self._materializer(progress)
        views = self._online_views(feature_views)
        return self._run(views, lambda view: materializer.between(view, self._engine(view.view.engine), start, end))

    def materialize_incremental(
        self, end_date: Any, feature_views: Sequence[str] | None = None, progress: Report | None = None
    ) -> int:
        """Compute what is new since the last run, late rows included, and write it online; the number of rows."""
        end = _not_after_now(end_date)
        materializer = self._materializer(progress)
        views = self._online_views(feature_views)
        return self._run(views, lambda view: materializer.until(view, self._engine(view.view.engine), end))

    def refill(self, feature_views: Sequence[str] | None = None) -> int:
        """Copy the rows of views, as they are served, from the slow tier of the online store to the fast one without
        waiting for them to be asked for; the number of keys. Nothing is computed. `StoreUnavailableError` where a tier
        fails, or the copies become void, before all are made."""
        store, names = self.online_store, [view.name for view in self._online_views(feature_views)]
        assert isinstance(store, RoutedOnlineStore)
        copied = [store.refill(table) for name in names for table in tables_of(self.serving.views[name])]
        if copied.count(None) == len(copied):
            raise UsageError("the online store has no tiers", hint="Write online_store: tiered:redis://…|hbase://…")
        return sum(filter(None, copied))

    def backfill(
        self,
        feature_view: str,
        start_date: Any,
        end_date: Any,
        parallel: int = 2,
        progress: Report | None = None,
        notice: Callable[[str], object] | None = None,
    ) -> int:
        """Compute [start, end] of the applied version of a view in chunks, `parallel` at a time, and write it online;
        the number of rows. If it then holds what the served version does, it is served from now on, in one step.

        Killed and run again, it goes on. `notice` takes what the user should know of, such as another backfill.
        """
        start, end = instant(start_date), _not_after_now(end_date)
        if start > end:
            raise InvalidInputError(f"the start {start_date} lies after the end {end_date}, or after now")
        (view,) = self._online_views([feature_view])
        if not view.view.online:
            raise InvalidInputError(f'feature view "{view.name}" is not kept online', hint="Set online: true")
        engine, report = self._engine(view.view.engine), progress or (lambda *_: None)
        backfill = Backfill(self._materializer(progress), self.registry, parallel, report, notice or (lambda _: None))
        rollout = self._rollout
        rollout.wait_for_pushes(view)
        rows = backfill.run(view, engine, start, end)
        if rollout.lacks(view):
            backfill.look_before(view, engine)
        rollout.promote(view)
        self.refresh()
        self._drop_retired()
        return rows

    def filling(self) -> dict[str, str]:
        """The views whose applied version is not served yet, each with what that version lacks."""
        self.refresh()
        found = {name: self._rollout.lacks(self.catalog.views[name]) for name in self._earlier}
        return {name: reason or "it is about to be served" for name, reason in found.items()}

    def _run(self, views: Iterable[BoundView], work: Callable[[BoundView], int]) -> int:
        """Do work for each view, for the version of it that is served and for the applied one."""
        rows = sum(self._rollout.run(view, work) for view in views)
        self.refresh()
        self._drop_retired()
        return rows

    def topic(self, source: str, name: str | None = None) -> Topic:
        """The topic that a source reads, or one of another name at the same brokers."""
        from feature_store.engines.kafka import Topic  # a driver that few repos need

        kafka = self.catalog.kafka(source)
        place = self.settings.kafka_place(source, kafka.brokers)
        assert place.brokers is not None
        return Topic(name or kafka.topic, place.brokers, place.conf_texts)

    def _drop_retired(self, kept_for: int = KEPT_FOR) -> None:
        """Drop the tables of versions that have not been served for so long (microseconds), and of removed views."""
        self._rollout.drop_retired(lambda record: self._drop_tables([record]), kept_for)

    @property
    def _rollout(self) -> Rollout:
        return Rollout(self.registry, self.catalog, self._earlier)

    def _materializer(self, progress: Report | None) -> Materializer:
        boundary = Boundary(self.registry.streams, self.offline_store, self._ranges, self._empty)
        return Materializer(self.online_store, self.offline_store, self.registry, boundary, self._address_of, progress)

    def _ranges(self, source: str) -> dict[int, tuple[int, int]]:
        topic = self.topic(source)
        base = StreamLog(self.offline_store, source).base(topic.identity) or 0
        return {base + partition: range_ for partition, range_ in topic.ranges().items()}

    def _empty(self, source: str, ranges: Mapping[int, tuple[int, int]]) -> set[int]:
        """Of ranges of offsets, by partition as the log numbers them, those of the topic now that hold no message."""
        topic = self.topic(source)
        base = StreamLog(self.offline_store, source).base(topic.identity) or 0
        here = {part - base: range_ for part, range_ in ranges.items() if base <= part < base + SPAN}
        return {base + part for part in here.keys() - topic.oldest(here).keys()}

    def _address_of(self, table: str) -> Address:
        uri = resolve_uri(self._own_store(table) or self.settings.online_store, self.root)
        return Address(uri, self.project, str(self.root))

    def _online_views(self, names: Sequence[str] | None) -> list[BoundView]:
        self.refresh()
        catalog = self.catalog
        if names is None:
            return [view for view in catalog.views.values() if view.view.online]
        found = [catalog.view(name) for name in names]
        for view in found:
            if isinstance(view, BoundOnDemand):
                raise NotFoundError(
                    f'"{view.name}" is an on-demand view: it is computed at request time', code="VIEW_NOT_FOUND"
                )
        return [view for view in found if isinstance(view, BoundView)]

    def push(self, push_source_name: str, df: Any, to: str = "online", *, allow_registry_cache: bool = True) -> int:
        """Add rows to a source (or to a view over columns): to "online", "offline" or "online_and_offline".

        The number of rows; when it returns they are stored. `InvalidInputError` if one does not fit: then none is.
        """
        if not allow_registry_cache:
            self.refresh()
        return self._pusher.push(push_source_name, df, Destination.of(to))

    def write_to_online_store(self, feature_view_name: str, df: Any, *, allow_registry_cache: bool = True) -> int:
        """Write rows of join keys, features and `event_timestamp` (and `created`) to a view over columns."""
        if not allow_registry_cache:
            self.refresh()
        return self._pusher.write(feature_view_name, df)

    def receivers(self, source: str) -> list[BoundView]:
        """The versions of views that keep rows of a source online, the applied ones and those that are served until
        these are complete; `NotFoundError` where there is no such source."""
        catalog = self.catalog
        catalog.definition(Source, source)
        columns = catalog.rows[source].schema.names
        return [bound for bound in receivers(catalog, self._earlier, source, columns) if bound.view.online]

    @property
    def _pusher(self) -> Pusher:
        catalog = self.catalog
        return Pusher(catalog, self.online_store, self.offline_store, self._earlier)

    # Read

    def get_historical_features(
        self,
        entity_df: Any,
        features: Features,
        full_feature_names: bool = False,
        *,
        as_known: bool = False,
        statuses: bool = False,
        engine: str | None = None,
    ) -> HistoricalJob:
        """The features of each row of `entity_df` as of its `event_timestamp`: rows out = rows in, in their order.

        `entity_df` is a DataFrame, an Arrow table, the path of a Parquet or CSV file, or a SELECT over the sources.
        With the Spark engine it may be a Spark DataFrame, too, and of any length: its rows stay in the cluster.
        """
        catalog = self.catalog
        query = HistoricalQuery(catalog.resolve(features), full_feature_names, as_known, statuses)
        if isinstance(entity_df, str) and _is_sql(entity_df):
            entity_df = Selection(entity_df, tuple(catalog.rows.values()))
        return retrieve(
            catalog, query, entity_df, lambda view: self._engine(engine), self.offline_store, self._kept_snapshots
        )

    def _kept_snapshots(self, bound: BoundView) -> Sequence[int]:
        progress = self.registry.progress(bound.name, bound.version)
        return progress.snapshots if progress else ()

    def get_online_features(
        self,
        features: Features,
        entity_rows: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]],
        full_feature_names: bool = False,
        *,
        request_data: Mapping[str, Sequence[Any]] | None = None,
    ) -> OnlineResponse:
        """The features of each entity as of now, in one round trip to the online store."""
        return self.online.get(features, entity_rows, full_feature_names, request_data)

    @property
    def online(self) -> OnlineFeatures:
        """The compiled plans of the definitions that are served, kept until the registry moves on."""
        catalog = self.serving
        online = self._online
        if online is None or online.catalog is not catalog:
            online = self._online = OnlineFeatures(catalog, self.online_store, self.settings.limits.max_entities)
        return online

    # Look around

    def list(self, kind: str | None = None) -> list[dict[str, Any]]:
        """What is applied: a dict each, with kind, name, version and the definition's own keys."""
        if kind is not None and kind not in _BY_KIND:
            raise NotFoundError(
                f'there is no kind "{kind}"', hint=nearest(kind, _BY_KIND) or f"Kinds: {', '.join(_BY_KIND)}"
            )
        state = self.registry.load()
        through = {(p.view, p.version): p.through for p in self.registry.all_progress()}
        return [
            _described(record) | _versions(record, state, through)
            for record in state.records
            if kind in (None, record.kind)
        ]

    def describe(self, name: str) -> dict[str, Any]:
        """One applied definition of any kind, with how far it is materialized; `NotFoundError` names the nearest."""
        found = {item["name"]: item for item in self.list()[::-1]}
        if name not in found:
            raise NotFoundError(f'nothing is called "{name}"', hint=nearest(name, found) or "See: fs list")
        return found[name]

    def lineage(self, name: str | None = None) -> tuple[Edge, ...]:
        """Edges by column, from source column to feature to service; of one definition or of all."""
        return lineage(self.catalog, name)

    def teardown(self) -> None:
        """Drop this project's tables, keys, offline tables and records, and nobody else's."""
        state = self.registry.load()
        views = {record.name for record in state.records if record.kind == FeatureView.kind}
        views |= {progress.view for progress in self.registry.all_progress()} | {each.view for each in state.versions}
        for view in views:
            self._drop_tables(self.registry.history(FeatureView.kind, view))
        for record in state.records:
            if record.kind == Source.kind:
                self._drop_logs(record.name, None)
        self.registry.drop()
        with self._lock:
            self._state = self._catalog = self._serving = None
            self._online = None

    def clear_online(self, feature_view: str) -> None:
        """Drop what the applied version of a view has online, as if the store had lost it."""
        (bound,) = self._online_views([feature_view])
        for table in tables_of(bound):
            self.online_store.drop(table)
        self.online_store.create(*tables_of(bound))

    def _drop_logs(self, source: str, rows: Rows | None) -> None:
        """Drop the pushed rows of a source that is gone (None), or has them in other types now; and what came to one
        that is gone by its stream."""
        if rows is None:
            self.offline_store.drop(stream_log(source))
        there = self.offline_store.schema(push_log(source))
        if there is not None and (rows is None or any(
            column.name in there.names and there.field(column.name).type != column.type.arrow for column in rows.schema
        )):  # fmt: skip
            self.offline_store.drop(push_log(source))

    def _drop_tables(self, versions: Iterable[Record]) -> None:
        """Drop the online tables and stored snapshots of a view's versions."""
        for record in versions:
            if record.kind == FeatureView.kind and not record.deleted:
                self._place(record)
            for name, items in record.bound.get("tables", []):
                self.online_store.drop(Table(name, Schema(()), Schema(()), items))
            if snapshots := record.bound.get("snapshots"):
                self.offline_store.drop(snapshots)
            if version := record.bound.get("version"):
                self.registry.forget_progress(record.name, version)

    def _place(self, record: Record) -> None:
        """Remember where the tables of a version are that is neither applied nor served."""
        view = FeatureView.model_validate(record.spec)
        if snapshots := record.bound.get("snapshots"):
            self._keep_elsewhere(snapshots, view, Schema(()), Schema(()))
        storage = view.storage
        uri = self.repository.resolve_alias(storage.online) if storage and storage.online else None
        self._placed.setdefault(f"{record.name}.{record.bound['version']}", uri or self.settings.online_store)

    def close(self) -> None:
        """Close what was opened."""
        for name in ("registry", "online_store"):
            if name in self.__dict__:
                self.__dict__.pop(name).close()
        self._close_elsewhere()
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()


def _is_sql(text: str) -> bool:
    """Whether it is a SELECT, after comments and parentheses, and not the path of a file."""
    return "\n" in text.strip() or _SELECT.match(text) is not None


def _not_after_now(end: Any) -> int:
    return min(instant(end), time.time_ns() // 1000)


def _not_written(catalog: Catalog) -> Iterator[str]:
    """Warnings of what services ask for that is not done yet."""
    for service in catalog.services.values():
        if service.logging is not None:
            yield f"{service.title}: logging is not written by this release"


def _definitions(state: State) -> list[Definition]:
    return [_BY_KIND[record.kind].model_validate(record.spec) for record in state.records]


def _merged(before: Iterable[Definition], changes: Iterable[Definition]) -> list[Definition]:
    """The definitions with some added or replaced."""
    merged = {(definition.kind, definition.name): definition for definition in before}
    return list((merged | {(definition.kind, definition.name): definition for definition in changes}).values())


def _schema(record: Record) -> Schema:
    """A source's schema, as it was at apply."""
    return Schema(tuple(Column(name, Type.parse(type_)) for name, type_ in record.bound["columns"]))


def _versions(record: Record, state: State, through: Mapping[tuple[str, str], int | None]) -> dict[str, Any]:
    """Of a view: the version that is applied and how far it is materialized; the one that is served; whether these
    are the same."""
    if record.kind != FeatureView.kind:
        return {}
    version = record.bound["version"]
    at = through.get((record.name, version))
    served = served_after(state, {}).get(record.name, version)
    return {
        "data_version": version,
        "materialized_through": None if at is None else to_iso(at),
        "served_version": served,
        "complete": served == version,
    }


def _described(record: Record) -> dict[str, Any]:
    return {
        "kind": record.kind,
        **record.spec,
        "version": record.version,
        "hash": record.hash[:12],
        "applied_at": to_iso(record.created_at),
        **{shown: dict(record.bound[key]) for key, shown in _SETTLED.items() if key in record.bound},
    }
