"""The HTTP service: Feast's feature-server protocol, with metrics and documentation.

`POST /get-online-features` is answered before the framework sees it (`serving.online`); every other route is FastAPI's.
Both share request ids, limits on bodies, the access log, metrics and the shape of errors.
"""

from __future__ import annotations

import asyncio
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from feature_store.errors import FeatureStoreError, StoreUnavailableError, TooLargeError
from feature_store.serving.current import Current
from feature_store.serving.exchange import (
    AccessLog,
    ClientGone,
    Headers,
    Message,
    Receive,
    Scope,
    Send,
    json_object,
    read_body,
)
from feature_store.serving.failures import describe, error_body
from feature_store.serving.gate import Gate
from feature_store.serving.metrics import CONTENT_TYPE, Metrics
from feature_store.serving.online import PATH, OnlineRoute
from feature_store.serving.reads import Reads
from feature_store.serving.requests import (
    FailureAnswer,
    IncrementalRequest,
    MaterializeRequest,
    OnlineAnswer,
    OnlineRequest,
    PushRequest,
    RowsAnswer,
    WriteRequest,
    read_model,
    read_time,
    typed_table,
)
from feature_store.serving.tiers import Tiers
from feature_store.storage.online import OnlineStore
from feature_store.types import TIMESTAMP, Column, Schema

if TYPE_CHECKING:
    from feature_store.store import FeatureStore

_ROUTES = frozenset(
    {"/push", "/write-to-online-store", "/materialize", "/materialize-incremental", "/health", "/metrics"}
)
_FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": FailureAnswer} for status in (400, 401, 403, 404, 409, 413, 422, 429, 503)
}


class Service(FastAPI):
    """The application, with what its routes share. One a worker."""

    def __init__(
        self, store: FeatureStore, metrics_folder: Path | None, log: AccessLog, reader: OnlineStore | None
    ) -> None:
        super().__init__(
            title="feature_store",
            description="Online features over HTTP, by Feast's protocol.",
            version="1",
            lifespan=_lifespan,
        )
        self.store = store
        self.log = log
        self.counters = Metrics(metrics_folder)
        self.reads = Reads(self.counters)
        self.tiers = Tiers(lambda: reader or store.online_store, self.counters, log)
        self.current = Current(store, self.counters, log, reader, self.tiers)
        clients, limits = store.settings.clients, store.settings.limits
        self.most_bytes = int(limits.max_body_mb * 2**20)
        self.gate = Gate(clients, limits.requests_per_s) if clients or limits.requests_per_s else None
        self.online_route = OnlineRoute(self.current, self.reads, self.counters, log, self.most_bytes, self.gate)
        # Long work does not take the threads that short writes need.
        self.writers = ThreadPoolExecutor(8, thread_name_prefix="write")
        self.materializers = ThreadPoolExecutor(2, thread_name_prefix="materialize")
        self.ending = threading.Event()

    def go_on(self, *_: object) -> None:
        """Asked between the steps of a run: `StoreUnavailableError` once the service ends."""
        if self.ending.is_set():
            raise StoreUnavailableError("the service ends", hint="Ask again: the run goes on where it was")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
        elif scope["path"] == PATH and scope["method"] == "POST":
            await self.online_route(scope, receive, send)
        else:
            await self._framed(scope, receive, send)

    async def _framed(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Any other route: FastAPI inside a request id, a log line and metrics."""
        began = time.perf_counter()
        headers = Headers(scope)
        scope["feature_store.headers"] = headers
        status = 500

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", headers.request_id.encode("ascii"))]
            await send(message)

        try:
            try:
                if self.gate:
                    self.gate.check(scope)
            except FeatureStoreError as error:
                await self._refused(error, headers, receive, tagged)
            else:
                await super().__call__(scope, receive, tagged)
        finally:
            seconds = time.perf_counter() - began
            path = scope["path"] if scope["path"] in _ROUTES else "other"
            self.counters.request(path, status, seconds)
            quoted = orjson.dumps(scope["path"].encode(errors="replace").decode())[1:-1].decode()
            self.log.request(headers.request_id, _method(scope), quoted, status, seconds, scope.get("client"))

    async def _refused(self, error: FeatureStoreError, headers: Headers, receive: Receive, send: Send) -> None:
        """The answer to a request that nobody looks at. Its body is read, so that the client reads the answer."""
        with suppress(ClientGone, TooLargeError):
            await read_body(receive, headers.length, self.most_bytes)
        answer = _described(error)
        await answer({"type": "http"}, receive, send)


def _method(scope: Scope) -> str:
    return "".join(filter(str.isalpha, scope["method"]))[:16]


def create_app(
    store: FeatureStore,
    metrics_folder: Path | None = None,
    log: AccessLog | None = None,
    reader: OnlineStore | None = None,
) -> Service:
    """The service over a store. It starts, and answers 503, also while the online store or registry is down.

    `metrics_folder` is shared by the workers of one service, so that each answers /metrics for all.
    `reader` is the online store as requests read it, by default the store's own.
    """
    app = Service(store, metrics_folder, log or AccessLog(), reader)
    app.add_exception_handler(FeatureStoreError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_failure)
    _add_reading(app)
    _add_writing(app)
    _add_materializing(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    assert isinstance(app, Service)
    await asyncio.get_running_loop().run_in_executor(None, app.current.start)
    try:
        yield
    finally:
        app.current.stop()
        app.reads.close()
        app.writers.shutdown(wait=True)
        app.ending.set()
        app.materializers.shutdown(wait=False, cancel_futures=True)
        app.counters.save()
        app.log.flush()


def _add_reading(app: Service) -> None:
    @app.post(
        PATH,
        summary="Features of entities as of now",
        response_model=OnlineAnswer,
        responses=_FAILURES,
        openapi_extra=_body(OnlineRequest),
    )
    async def get_online_features(request: Request) -> Response:
        """With `Accept: application/vnd.apache.arrow.stream` the answer is an Arrow stream."""
        raise AssertionError("the service answers this route before FastAPI sees it")

    @app.get("/health", summary="Whether this worker answers, and what it lacks")
    async def health() -> dict[str, Any]:
        state = {"status": "ok"} | app.tiers.look("unavailable" if app.reads.failed else "ok")
        return state | ({"registry": app.current.error} if app.current.error else {})

    @app.get("/metrics", summary="Prometheus metrics of all workers", response_class=Response)
    async def metrics() -> Response:
        app.tiers.look()
        return Response(app.counters.render(), headers={"content-type": CONTENT_TYPE})


def _add_writing(app: Service) -> None:
    @app.post(
        "/push",
        summary="Add rows to a source",
        response_model=RowsAnswer,
        responses=_FAILURES,
        openapi_extra=_body(PushRequest),
    )
    async def push(request: Request) -> Response:
        ask = read_model(PushRequest, await _json(app, request))
        return await _in_thread(app, app.writers, lambda: _push(app, ask))

    @app.post(
        "/write-to-online-store",
        summary="Write rows of a view over columns",
        response_model=RowsAnswer,
        responses=_FAILURES,
        openapi_extra=_body(WriteRequest),
    )
    async def write_to_online_store(request: Request) -> Response:
        ask = read_model(WriteRequest, await _json(app, request))
        return await _in_thread(app, app.writers, lambda: _write(app, ask))


def _push(app: Service, ask: PushRequest) -> int:
    rows = app.store.catalog.rows.get(ask.push_source_name)
    schema = rows.schema if rows else _view_schema(app, ask.push_source_name)
    return app.store.push(ask.push_source_name, typed_table(ask.df, schema), to=ask.to)


def _write(app: Service, ask: WriteRequest) -> int:
    table = typed_table(ask.df, _view_schema(app, ask.feature_view_name))
    return app.store.write_to_online_store(ask.feature_view_name, table)


def _view_schema(app: Service, name: str) -> Schema:
    """The columns that rows for a view may have, as far as they are known here; the store checks the rest."""
    view = app.store.catalog.views.get(name)
    if view is None:
        return Schema(())
    of_source = [column for rows in view.inputs for column in rows.schema]
    times = [Column("event_timestamp", TIMESTAMP), Column("created", TIMESTAMP)]
    columns = {column.name: column for column in [*times, *of_source, *view.features, *view.keys]}
    return Schema(tuple(columns.values()))


def _add_materializing(app: Service) -> None:
    @app.post(
        "/materialize",
        summary="Compute a span of time and write it online",
        response_model=RowsAnswer,
        responses=_FAILURES,
        openapi_extra=_body(MaterializeRequest),
    )
    async def materialize(request: Request) -> Response:
        ask = read_model(MaterializeRequest, await _json(app, request))
        if ask.disable_event_timestamp:
            start, end = read_time("start_ts", 0), read_time("end_ts", time.time())
        else:
            start, end = read_time("start_ts", ask.start_ts), read_time("end_ts", ask.end_ts)
        work = partial(app.store.materialize, start, end, ask.feature_views, app.go_on)
        return await _in_thread(app, app.materializers, work)

    @app.post(
        "/materialize-incremental",
        summary="Compute what is new and write it online",
        response_model=RowsAnswer,
        responses=_FAILURES,
        openapi_extra=_body(IncrementalRequest),
    )
    async def materialize_incremental(request: Request) -> Response:
        ask = read_model(IncrementalRequest, await _json(app, request))
        end = read_time("end_ts", ask.end_ts)
        work = partial(app.store.materialize_incremental, end, ask.feature_views, app.go_on)
        return await _in_thread(app, app.materializers, work)


async def _json(app: Service, request: Request) -> dict[str, Any]:
    headers: Headers = request.scope["feature_store.headers"]
    return json_object(await read_body(request.receive, headers.length, app.most_bytes))


async def _in_thread(app: Service, pool: ThreadPoolExecutor, work: Callable[[], int]) -> Response:
    """The answer to work that blocks: the number of rows it wrote."""
    rows = await asyncio.get_running_loop().run_in_executor(pool, work)
    return Response(orjson.dumps({"rows": rows}), media_type="application/json")


def _body(model: type[BaseModel]) -> dict[str, Any]:
    """A request body for OpenAPI."""
    schema = model.model_json_schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, FeatureStoreError)
    return _described(error)


def _described(error: FeatureStoreError) -> Response:
    status, body, extra = describe(error)
    headers = {name.decode(): value.decode() for name, value in extra}
    return Response(body, status, headers, media_type="application/json")


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "ROUTE_NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}.get(error.status_code, "BAD_REQUEST")
    body = error_body(code, str(error.detail), "See /docs" if code != "BAD_REQUEST" else None)
    return Response(body, error.status_code, dict(error.headers or {}), media_type="application/json")


async def _on_failure(request: Request, error: Exception) -> Response:
    assert isinstance(request.app, Service)
    request_id = request.scope["feature_store.headers"].request_id
    trace = "".join(traceback.format_exception(error))
    request.app.log.event("error", "unexpected", request_id=request_id, trace=trace)
    body = error_body("INTERNAL", "the service failed", f"See its log: {request_id}")
    return Response(body, 500, media_type="application/json")
