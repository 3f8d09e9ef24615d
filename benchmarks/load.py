"""A small HTTP client that loads a server over one connection. `python -m benchmarks.load PORT PATH BODIES SECONDS`.

Prints JSON: requests, p50 and p99 in ms, bytes of the last answer. A file of bodies is a JSON list of requests.
"""

from __future__ import annotations

import gc
import json
import socket
import sys
import time
from pathlib import Path


class Client:
    """One connection that is kept alive; opened again where the server closes it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket = self._connected()

    def post(self, request: bytes) -> bytes:
        """The body of the answer; `RuntimeError` unless it is 200."""
        self._socket.sendall(request)
        data = b""
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._received()
        head = data[:end].lower()
        if b" 200 " not in head[:16]:
            raise RuntimeError(f"the server answered {data[:300]!r}")
        if b"chunked" in head:
            return self._chunks(data[end + 4 :])
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        parts, missing = [data[end + 4 :]], length - len(data) + end + 4
        while missing > 0:
            parts.append(self._received())
            missing -= len(parts[-1])
        if b"connection: close" in head:
            self._socket = self._connected()
        return b"".join(parts)

    def _chunks(self, data: bytes) -> bytes:
        while not data.endswith(b"0\r\n\r\n"):
            data += self._received()
        body = b""
        while data:
            size, _, data = data.partition(b"\r\n")
            body, data = body + data[: int(size, 16)], data[int(size, 16) + 2 :]
        return body

    def _received(self) -> bytes:
        data = self._socket.recv(1 << 20)
        if not data:
            raise RuntimeError("the server closed the connection")
        return data

    def _connected(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self._port), timeout=60)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


def request(path: str, body: str) -> bytes:
    """The bytes of one POST."""
    data = body.encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    return head.encode() + b"\r\n\r\n" + data


def main(port: int, path: str, bodies: Path, seconds: float) -> dict[str, float]:
    """Requests one after the other for some seconds."""
    requests = [request(path, json.dumps(body)) for body in json.loads(bodies.read_text())]
    client = Client(port)
    gc.disable()
    times: list[float] = []
    body = b""
    until = time.perf_counter() + seconds
    while (began := time.perf_counter()) < until:
        body = client.post(requests[len(times) % len(requests)])
        times.append(time.perf_counter() - began)
    times.sort()
    return {
        "requests": len(times),
        "p50": 1000 * times[len(times) // 2],
        "p99": 1000 * times[int(len(times) * 0.99)],
        "bytes": len(body),
    }


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), float(sys.argv[4]))))
