"""The hot route, POST /get-online-features: bytes in, bytes out, with neither framework nor validation library between.

body -> request -> plan (compiled before) -> keys -> one read -> columns -> bytes
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from feature_store.errors import FeatureStoreError
from feature_store.expressions.visibility import Status
from feature_store.retrieval.online import OnlineFeatures, OnlinePlan, check_size
from feature_store.retrieval.response import OnlineResponse, Statuses
from feature_store.serving.answers import ARROW, JSON, JsonAnswers, arrow_stream, with_tiers
from feature_store.serving.current import Current
from feature_store.serving.exchange import (
    AccessLog,
    ClientGone,
    Headers,
    Receive,
    Scope,
    Send,
    json_object,
    read_body,
    respond,
    wrong_member,
)
from feature_store.serving.failures import describe, error_body
from feature_store.serving.gate import Gate
from feature_store.serving.metrics import Metrics
from feature_store.serving.reads import Reads

PATH = "/get-online-features"
_MOST_WRITERS = 2048


@dataclass(frozen=True, slots=True)
class Ask:
    """A request for online features, its shape checked: entity columns are lists, flags are flags."""

    features: str | list[str]
    entities: dict[str, list[Any]]
    full_feature_names: bool
    request_data: Mapping[str, Any] | None
    iso: bool
    tiers: bool = False


def read_ask(body: dict[str, Any]) -> Ask:
    """A request from its JSON; unknown members are ignored, `InvalidInputError` names the wrong one."""
    entities = body.get("entities")
    if type(entities) is not dict:
        raise wrong_member("entities", "an object of lists", entities)
    for name, values in entities.items():
        if type(values) is not list:
            raise wrong_member(f"entities: {name}", "a list", values)
    service, features = body.get("feature_service"), body.get("features")
    if service is not None:
        if type(service) is not str:
            raise wrong_member("feature_service", "the name of a service", service)
        features = service
    elif type(features) is not list or not features:
        raise wrong_member("features", "a list of references (or name a feature_service)", features)
    full, data, stamps = body.get("full_feature_names"), body.get("request_data"), body.get("timestamps")
    if full is not None and type(full) is not bool:
        raise wrong_member("full_feature_names", "true or false", full)
    if data is not None and type(data) is not dict:
        raise wrong_member("request_data", "an object", data)
    if stamps not in (None, "iso", "epoch"):
        raise wrong_member("timestamps", '"iso" or "epoch"', stamps)
    tiers = body.get("tiers")
    if tiers is not None and type(tiers) is not bool:
        raise wrong_member("tiers", "true or false", tiers)
    return Ask(features, entities, bool(full), data, stamps == "iso", bool(tiers))


class OnlineRoute:
    """Answers POST /get-online-features as a bare ASGI application."""

    def __init__(
        self, current: Current, reads: Reads, metrics: Metrics, log: AccessLog, most_bytes: int, gate: Gate | None
    ) -> None:
        self._current = current
        self._gate = gate
        self._reads = reads
        self._metrics = metrics
        self._log = log
        self._most_bytes = most_bytes
        self._most_entities: int = current.limits.max_entities
        self._writers: dict[tuple[OnlinePlan, bool], JsonAnswers] = {}
        self._writers_of: OnlineFeatures | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        headers = Headers(scope)
        status, media, extra, note = 200, JSON, (), ""
        try:
            content = await read_body(receive, headers.length, self._most_bytes)
            if self._gate:
                self._gate.check(scope)
            body = json_object(content)
            arrow = ARROW in headers.accept
            payload, note = await self._answer(read_ask(body), arrow)
            media = ARROW if arrow else JSON
        except ClientGone:
            return
        except FeatureStoreError as error:
            status, payload, extra = describe(error)  # type: ignore[assignment]
            note = f',"error":"{error.code}"'
        except Exception:
            status, payload = 500, error_body("INTERNAL", "the service failed", f"See its log: {headers.request_id}")
            self._log.event("error", "unexpected", request_id=headers.request_id, trace=traceback.format_exc())
        await respond(send, status, payload, media, headers.request_id, extra)
        seconds = time.perf_counter() - began
        self._metrics.request(PATH, status, seconds)
        self._log.request(headers.request_id, "POST", PATH, status, seconds, scope.get("client"), note)

    async def _answer(self, ask: Ask, arrow: bool) -> tuple[bytes, str]:
        """The body, and what the access log says of it."""
        online = self._current.online()
        plan = online.plan(ask.features, ask.full_feature_names)
        check_size(ask.entities, self._most_entities)
        prepared = plan.prepare(ask.entities, ask.request_data)
        now = time.time_ns() // 1000
        answers = await self._reads.read(online.store, prepared.requests)
        response = plan.finish(prepared, answers, now)
        payload = arrow_stream(response) if arrow else self._writer(online, plan, ask.iso).encode(response)
        if ask.tiers and not arrow:
            payload = with_tiers(payload, plan.tiers(prepared, answers))
        self._count(plan, response)
        return payload, f',"rows":{response.rows},"features":{len(plan.refs)}'

    def _writer(self, online: OnlineFeatures, plan: OnlinePlan, iso: bool) -> JsonAnswers:
        if online is not self._writers_of or len(self._writers) > _MOST_WRITERS:
            self._writers, self._writers_of = {}, online
        writer = self._writers.get((plan, iso))
        if writer is None:
            writer = self._writers[plan, iso] = JsonAnswers(plan, iso)
        return writer

    def _count(self, plan: OnlinePlan, response: OnlineResponse) -> None:
        """Statuses and newest event time by view, whose columns share their event times."""
        rows, metrics = response.rows, self._metrics
        metrics.served(rows)
        features = response.cells[len(response.cells) - len(plan.refs) :]
        for view, places in plan.places.items():
            cells = [features[place] for place in places]
            marks = [statuses for _, statuses, _ in cells]
            if uniform := marks.count(Status.PRESENT):
                metrics.statuses(view, Status.PRESENT, uniform * rows)
            if uniform < len(marks):
                self._count_mixed(view, marks, rows)
            times = cells[0][2]
            if times:
                metrics.newest(view, max(times))

    def _count_mixed(self, view: str, marks: list[Statuses], rows: int) -> None:
        """The columns whose rows are not all PRESENT; those that share a list are counted once."""
        columns: dict[int, int] = {}
        lists: dict[int, Statuses] = {}
        for statuses in marks:
            if statuses is not Status.PRESENT:
                columns[id(statuses)] = columns.get(id(statuses), 0) + 1
                lists[id(statuses)] = statuses
        for identity, statuses in lists.items():
            if isinstance(statuses, Status):
                self._metrics.statuses(view, statuses, rows * columns[identity])
            else:
                for status in Status:
                    if found := statuses.count(status):
                        self._metrics.statuses(view, status, found * columns[identity])
