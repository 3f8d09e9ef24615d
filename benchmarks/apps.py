"""Two servers to compare with: a bare ASGI application that answers bytes it was given, and a naive service."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import redis.asyncio
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Floor:
    """Answers POST /NAME with the content of the file NAME of a folder: what a server costs that does nothing."""

    def __init__(self, folder: str) -> None:
        self._bodies = {f"/{path.name}": path.read_bytes() for path in Path(folder).iterdir()}

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        more = True
        while more:
            more = (await receive()).get("more_body", False)
        body = self._bodies[scope["path"]]
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Ask(BaseModel):
    """A request to the naive service."""

    features: list[str]
    entities: dict[str, list[int]]


def naive(port: int) -> FastAPI:
    """What one writes in an hour: a Redis hash a user, a field a feature, FastAPI's JSON."""
    app = FastAPI()
    client = redis.asyncio.Redis(port=port, db=2)

    @app.post("/get-online-features")
    async def get_online_features(ask: Ask) -> dict[str, Any]:
        names = [reference.partition(":")[2] for reference in ask.features]
        pipeline = client.pipeline(transaction=False)
        for user in ask.entities["user_id"]:
            pipeline.hmget(f"naive:{user}", names)
        rows = [
            [_value(name, value) for name, value in zip(names, row, strict=True)] for row in await pipeline.execute()
        ]
        results = [{"values": ask.entities["user_id"], "statuses": ["PRESENT"] * len(rows)}]
        for column in zip(*rows, strict=True):
            statuses = ["NOT_FOUND" if value is None else "PRESENT" for value in column]
            results.append({"values": list(column), "statuses": statuses})
        return {"results": results, "metadata": {"feature_names": ["user_id", *names]}}

    return app


def _value(name: str, value: bytes | None) -> Any:
    if value is None:
        return None
    kind = name.partition("_")[2][0]
    return int(value) if kind == "i" else float(value) if kind == "f" else value.decode()


if __name__ == "__main__":
    kind, port, argument = sys.argv[1:]
    application: Any = Floor(argument) if kind == "floor" else naive(int(argument))
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    uvicorn.run(application, port=int(port), access_log=False, log_level="warning", lifespan="off")
