"""Runs the service: one process, or several that share a port and their metrics."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import uvicorn

from feature_store.errors import UsageError
from feature_store.serving.app import Service, create_app
from feature_store.serving.exchange import AccessLog
from feature_store.store import FeatureStore

_REPO, _SETTINGS = "FEATURE_STORE_SERVE_REPO", "FEATURE_STORE_SERVE_SETTINGS"
_METRICS, _LOG = "FEATURE_STORE_SERVE_METRICS", "FEATURE_STORE_SERVE_ACCESS_LOG"
_GRACE = 10
READ_TIMEOUT = 0.5
"""Seconds that a read of Redis may take."""
_GC_THRESHOLDS = (50_000, 20, 100)


def serve(
    repo_path: Path, settings_file: Path | None, host: str, port: int, workers: int, access_log: bool = True
) -> None:
    """Serve until SIGINT or SIGTERM. A wrong repository fails here, before any worker starts."""
    store = FeatureStore(repo_path, settings_file)
    store.online_store.close()  # unknown schemes and missing drivers; nothing connects yet
    _check_free(host, port)
    _end_quietly()
    with tempfile.TemporaryDirectory(prefix="feature-store-metrics-") as folder:
        os.environ |= {
            _REPO: str(repo_path.absolute()),
            _SETTINGS: str(settings_file.absolute()) if settings_file else "",
            _METRICS: folder,
            _LOG: "1" if access_log else "",
        }
        uvicorn.run(
            "feature_store.serving.server:worker",
            factory=True,
            host=host,
            port=port,
            workers=workers,
            access_log=False,
            log_level="warning",
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=_GRACE,
        )


def _check_free(host: str, port: int) -> None:
    """`UsageError` where the service cannot listen."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise UsageError(
                f"cannot listen at {host}:{port}: {error.strerror}", hint="Choose another with --host and --port"
            ) from None


def _end_quietly() -> None:
    """Let SIGTERM, which the server raises again once its requests are answered, end the process in good order."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))


def worker() -> Service:
    """The application of one worker process, which has the process to itself."""
    settings = os.environ[_SETTINGS]
    store = FeatureStore(os.environ[_REPO], settings or None)
    log = AccessLog(requests=bool(os.environ[_LOG]))
    reader = store.open_online_store(impatient)
    app = create_app(store, Path(os.environ[_METRICS]), log, reader)
    app.router.lifespan_context = _settled(app, app.router.lifespan_context)
    return app


def impatient(uri: str) -> str:
    """The URI of the online store as a worker reads it: a Redis that says no time limit gets a short one, because a
    read on the event loop holds up everybody for so long."""
    if uri.startswith("tiered:"):
        return "tiered:" + "|".join(map(impatient, uri.removeprefix("tiered:").split("|")))
    parts = urlsplit(uri)
    if parts.scheme.partition("+")[0] not in ("redis", "rediss") or "timeout=" in parts.query:
        return uri
    return urlunsplit(parts._replace(query="&".join(filter(None, (parts.query, f"timeout={READ_TIMEOUT}")))))


def _settled(app: Service, lifespan: Any) -> Any:
    """The lifespan of an application that owns its process: garbage collection made rare once everything is loaded.

    What exists after start-up lives on and need not be looked at again; answers are freed by reference counts, so
    collections are needed seldom, and are what makes slow requests slow.
    """

    @asynccontextmanager
    async def settled(asgi_app: Any) -> AsyncIterator[Any]:
        async with lifespan(asgi_app) as state:
            gc.collect()
            gc.freeze()
            gc.set_threshold(*_GC_THRESHOLDS)
            yield state
        # A run may be amidst a step, which the process waits for, but no connection.
        threading.Thread(target=_close, args=(app,)).start()

    return settled


def _close(app: Service) -> None:
    app.materializers.shutdown(wait=True)
    app.store.close()
