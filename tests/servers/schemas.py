"""A schema registry of its own."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class SchemaServer(ThreadingHTTPServer):
    """A schema registry, as far as it is read: `schemas` has its answers by their paths, `asked` what it was asked for.
    While it is `broken`, it answers that."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.schemas: dict[str, Any] = {}
        self.user = ""
        self.asked: list[str] = []
        self.broken: tuple[int, bytes] | None = None

    def start(self) -> SchemaServer:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def close(self) -> None:
        self.shutdown()
        self.server_close()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: SchemaServer

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        status, body = 200, self.server.schemas.get(self.path)
        if self.server.user and self.headers["Authorization"] != self.server.user:
            status, body = 401, {"error_code": 401, "message": "Unauthorized"}
        elif body is None:
            status, body = 404, {"error_code": 40403, "message": "Schema not found"}
        answer = json.dumps(body).encode()
        status, answer = self.server.broken or (status, answer)
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass
