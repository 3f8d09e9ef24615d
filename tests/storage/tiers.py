"""Tiered stores under test: a way to the fast tier that can be cut, and waiting for copies to be used."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from feature_store.storage.online import Answers, OnlineStore, Table
from feature_store.storage.tiered import TieredOnlineStore


class Gate:
    """A port that leads to another one until it is shut: then connections break, and none is taken."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._listener: socket.socket | None = None
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.open()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def open(self) -> None:
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def shut(self) -> None:
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        with self._lock:
            ends, self._open = self._open, []
        for end in ends:
            _end(end)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                return
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=_pass_on, args=(source, sink), daemon=True).start()
            if self._listener is not listener:  # shut meanwhile
                _end(near)
                _end(far)


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    _end(source)
    _end(sink)


def _end(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def wait_until_open(store: OnlineStore) -> None:
    """Until copies of all tables that were created are used."""
    assert isinstance(store, TieredOnlineStore)
    wait_for(lambda: store.fast_tier == "ok")


def behind(store: TieredOnlineStore, *requests: tuple[Table, Sequence[tuple[int, ...]]]) -> list[Mapping[str, int]]:
    """Who answers a read besides the fast tier."""
    answers = store.read(requests)
    assert isinstance(answers, Answers)
    return list(answers.behind)


def has_copies(store: TieredOnlineStore, table: Table, keys: Sequence[tuple[int, ...]]) -> bool:
    """Whether a read of keys finds copies of all."""
    return behind(store, (table, keys)) == []
