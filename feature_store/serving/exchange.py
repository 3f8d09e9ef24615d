"""One HTTP exchange below the framework: headers, body, request id, answer, and a line in the access log."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import secrets
import sys
import time
from asyncio import AbstractEventLoop, TimerHandle, get_running_loop
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, BinaryIO

from feature_store.errors import InvalidInputError, TooLargeError
from feature_store.serving.failures import MalformedError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MOST_DRAINED = 64 * 2**20
_FLUSH_AFTER = 0.2
_FLUSH_AT = 256
_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_prefix = secrets.token_hex(6)
_numbers = itertools.count(1)


class ClientGone(Exception):  # noqa: N818 - not an error of ours: nobody is there to be told
    """The client closed the connection before its request was whole."""


def new_request_id() -> str:
    """An id that no other worker gives."""
    return f"{_prefix}-{os.getpid():x}-{next(_numbers):x}"


class Headers:
    """The headers that the service looks at; a request id of odd characters is replaced."""

    __slots__ = ("accept", "length", "request_id")

    def __init__(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        self.length = int(length) if length.isdigit() and len(length) < 19 else 0
        self.accept: bytes = headers.get(b"accept", b"")
        given: bytes | None = headers.get(b"x-request-id")
        usable = given is not None and _ID.fullmatch(given)
        self.request_id = given.decode("ascii") if usable and given else new_request_id()


async def read_body(receive: Receive, length: int, most: int) -> bytes:
    """The body; `TooLargeError` above `most` bytes, whether its length was announced or not.

    What is too large is read and thrown away, so that the client reads the answer instead of a broken connection.
    """
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGone
    body: bytes = message.get("body", b"")
    more = message.get("more_body", False)
    if not more and len(body) <= most:
        return body
    parts, size = [body], len(body)
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body, more = message.get("body", b""), message.get("more_body", False)
        size += len(body)
        if size <= most:
            parts.append(body)
        elif size > MOST_DRAINED:
            break
    if size > most or length > most:
        raise TooLargeError(
            f"the body is larger than {most / 2**20:g} MiB",
            hint="Send several requests, or raise limits: max_body_mb in feature_store.yaml",
        )
    return b"".join(parts)


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body; `MalformedError` if it is not JSON, or not an object."""
    import orjson

    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedError(f"the body is not JSON: {error}", hint="Send a JSON object, encoded as UTF-8") from None
    if not isinstance(value, dict):
        raise MalformedError(f"the body is a JSON {_json_kind(value)}, not an object", hint="Send {...}")
    return value


def wrong_member(name: str, want: str, value: Any, hint: str | None = None) -> InvalidInputError:
    """The error about a member of a request that is missing (`value` is None), or not what is wanted."""
    if value is None:
        return InvalidInputError(f'the request lacks "{name}"', hint=hint or f"It is {want}")
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:76]}..."
    return InvalidInputError(f'"{name}" is {want}, not {shown}', hint=hint)


def _json_kind(value: Any) -> str:
    names = {list: "array", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")


async def respond(
    send: Send,
    status: int,
    body: bytes,
    media: bytes,
    request_id: str,
    extra: Iterable[tuple[bytes, bytes]] = (),
) -> None:
    """Send a whole answer."""
    headers = [
        (b"content-type", media),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", request_id.encode("ascii")),
        *extra,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class AccessLog:
    """A JSON object a line and request. Lines are written together, a fifth of a second late at most.

    Without `requests` only other events are written."""

    def __init__(self, stream: BinaryIO | None = None, requests: bool = True) -> None:
        self._requests = requests
        self._stream = sys.stdout.buffer if stream is None else stream
        self._lines: list[str] = []
        self._timer: TimerHandle | None = None
        self._second, self._stamp = 0, ""

    def request(
        self, request_id: str, method: str, path: str, status: int, seconds: float, client: Any, extra: str = ""
    ) -> None:
        """One exchange. `path` and `extra` (more members, starting with a comma) are JSON already, inside quotes."""
        if not self._requests:
            return
        now = time.time()
        if int(now) != self._second:
            self._second = int(now)
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        self._add(
            f'{{"time":"{self._stamp}.{int(now % 1 * 1000):03d}Z","level":"info","request_id":"{request_id}",'
            f'"method":"{method}","path":"{path}","status":{status},"ms":{seconds * 1000:.3f},'
            f'"client":"{client[0] if client else ""}"{extra}}}\n'
        )

    def event(self, level: str, message: str, **members: Any) -> None:
        """Something other than a request, written at once."""
        import orjson

        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        record = {"time": stamp, "level": level, "message": message, **members}
        self._lines.append(orjson.dumps(record, default=str).decode() + "\n")
        self.flush()

    def flush(self) -> None:
        """Write the lines that wait."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, self._lines = self._lines, []
        with contextlib.suppress(OSError, ValueError):
            self._stream.write("".join(lines).encode())
            self._stream.flush()

    def _add(self, line: str) -> None:
        self._lines.append(line)
        if len(self._lines) >= _FLUSH_AT:
            self.flush()
        elif self._timer is None:
            loop: AbstractEventLoop = get_running_loop()
            self._timer = loop.call_later(_FLUSH_AFTER, self.flush)
