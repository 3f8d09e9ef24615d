"""From nothing to a served feature and a training set, with the public commands and HTTP only.

    python docs/examples/demo.py [--events 100000] [--folder demo] [--port 6566]

Makes the ads repository in the folder (new, empty, or left by an earlier demo), and shows each step: generate, apply,
materialize, serve, REST read, push, historical retrieval. Ends with exit code 0 if every step did what it says.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

FEATURES = [
    "user_age",
    "user_gender",
    "user_click_cnt_7d",
    "ad_industry",
    "ad_ctr_history",
    "context_hour",
    "context_os",
]
SERVICE = "ctr_v1"
MARK = ".made-by-demo"
console = Console(width=None if sys.stdout.isatty() else 110)


class Demo:
    """The repository that the demo makes, and the address it is served at."""

    def __init__(self, folder: Path, port: int, events: int) -> None:
        self.folder = folder
        self.port = port
        self.events = events
        scripts = str(Path(sys.executable).parent)
        self.environment = os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}

    def fs(self, *arguments: str) -> str:
        """Run a command of `fs` in the repository, show it, and return what it printed."""
        shown = " ".join(arguments)
        console.print(f"[bold cyan]$ fs {shown}[/]")
        started = time.perf_counter()
        where = None if arguments[0] == "init" else self.folder
        done = subprocess.run(["fs", *arguments], cwd=where, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            console.print(done.stdout + done.stderr, markup=False)
            raise SystemExit(f"fs {shown} failed with exit code {done.returncode}")
        console.print(f"[dim]{time.perf_counter() - started:.1f} s[/]")
        return done.stdout

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON answer of the service to a POST."""
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.loads(response.read() or b"null")

    @contextmanager
    def served(self) -> Iterator[None]:
        """`fs serve` beside us, from when it answers until we are done."""
        console.print(f"[bold cyan]$ fs serve --port {self.port} &[/]")
        log = self.folder / "data" / "server.log"
        with log.open("wb") as out:
            command = ["fs", "serve", "--port", str(self.port)]
            server = subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=out, stderr=out)
            try:
                self._wait_until_healthy(server, log)
                yield
            finally:
                server.terminate()
                server.wait(30)

    def _wait_until_healthy(self, server: subprocess.Popen[bytes], log: Path) -> None:
        until = time.monotonic() + 30
        while time.monotonic() < until and server.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        raise SystemExit(f"the service did not start:\n{log.read_text()}")


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    console.print(f"[bold]{title}[/]")
    table = Table(header_style="bold")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*("null" if value is None else _short(value) for value in row))
    console.print(table)


def _short(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def generate(demo: Demo) -> None:
    console.rule("1  generate")
    demo.fs("init", str(demo.folder), "--template", "ads", "--events", str(demo.events))
    (demo.folder / MARK).touch()
    tables = ("dim_user", "dim_ad", "dwd_ad_impression", "dwd_ad_click", "dwd_ad_conversion")
    rows = [(name, f"{_rows(demo.folder / 'data' / name):,}") for name in tables]
    show("a month of a made-up advertising platform", ["table", "rows"], rows)


def _rows(folder: Path) -> int:
    return sum(pq.ParquetFile(path).metadata.num_rows for path in folder.rglob("*.parquet"))


def apply(demo: Demo) -> None:
    console.rule("2  apply")
    console.print(demo.fs("apply"), markup=False)
    listed = json.loads(demo.fs("list", "--json"))
    show("the registry", ["kind", "name", "version"], [(r["kind"], r["name"], r["version"]) for r in listed])


def materialize(demo: Demo) -> None:
    console.rule("3  materialize")
    console.print(demo.fs("materialize-incremental", f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}"), markup=False)


def a_click(demo: Demo) -> dict[str, Any]:
    """A click of yesterday: somebody with a history."""
    yesterday = sorted((demo.folder / "data/dwd_ad_click").iterdir())[-2]
    rows: list[dict[str, Any]] = pq.ParquetFile(next(yesterday.glob("*.parquet"))).read().to_pylist()
    return rows[-1]


def read(demo: Demo, user: int, ad: int) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat()
    body = {
        "features": FEATURES,
        "entities": {"user_id": [user, 999_999_999], "ad_id": [ad, ad]},
        "request_data": {"request_time": [now, now], "os": ["iOS", "Android"]},
    }
    answer = demo.post("/get-online-features", body)
    names = answer["metadata"]["feature_names"]
    rows = [
        (
            name,
            *(
                f"{_short(v) if v is not None else 'null'}  {s}"
                for v, s in zip(r["values"], r["statuses"], strict=True)
            ),
        )
        for name, r in zip(names, answer["results"], strict=True)
    ]
    show("POST /get-online-features", ["", f"user {user}", "an unknown user"], rows)
    return {name: result["values"][0] for name, result in zip(names, answer["results"], strict=True)}


def clicks_of_the_hour(demo: Demo, user: int) -> int:
    body = {"features": ["user_clicks:user_click_cnt_1h"], "entities": {"user_id": [user]}}
    return int(demo.post("/get-online-features", body)["results"][1]["values"][0])


def push(demo: Demo, user: int, ad: int) -> None:
    before = clicks_of_the_hour(demo, user)
    now = [datetime.now(UTC).isoformat()]
    rows = {
        "impression_id": [2**40],
        "user_id": [user],
        "ad_id": [ad],
        "price": [0.5],
        "event_time": now,
        "ingested_at": now,
    }
    demo.post("/push", {"push_source_name": "dwd_ad_click", "df": rows, "to": "online_and_offline"})
    after = clicks_of_the_hour(demo, user)
    show("POST /push: one click", ["user_click_cnt_1h", ""], [("before", before), ("after", after)])
    if after != before + 1:
        raise SystemExit(f"the pushed click is not counted: {before}, then {after}")


def serve_and_read(demo: Demo) -> None:
    console.rule("4  serve")
    row = a_click(demo)
    with demo.served():
        console.rule("5  read over HTTP")
        values = read(demo, row["user_id"], row["ad_id"])
        missing = [
            name for name in ("user_age", "user_click_cnt_7d", "ad_industry", "context_hour") if values[name] is None
        ]
        if missing:
            raise SystemExit(f"no value online for {', '.join(missing)}")
        console.rule("6  push")
        push(demo, row["user_id"], row["ad_id"])


def train(demo: Demo) -> None:
    console.rule("7  historical retrieval")
    entities, out = "data/impressions_labelled.parquet", "data/training.parquet"
    demo.fs("get-historical-features", "--entities", entities, "--service", SERVICE, "-o", out)
    given = pq.read_table(demo.folder / entities)
    table = pq.read_table(demo.folder / out)
    shown = [
        "event_timestamp",
        "clicked",
        "user_age",
        "user_click_cnt_7d",
        "ad_industry",
        "ad_ctr_history",
        "context_hour",
    ]
    sample = table.slice(max(0, table.num_rows - 5)).select(shown).to_pylist()
    rows = [[f"{v:%m-%d %H:%M}" if isinstance(v, datetime) else v for v in row.values()] for row in sample]
    show(f"a training set: {table.num_rows:,} rows, {table.num_columns} columns", shown, rows)
    if table.num_rows != given.num_rows:
        raise SystemExit(f"{given.num_rows} entity rows became {table.num_rows}")


def main() -> int:
    parser = argparse.ArgumentParser(description="From nothing to a served feature and a training set.")
    parser.add_argument("--events", type=int, default=100_000, help="how many impressions to make (100000)")
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="where the repository goes (demo)")
    parser.add_argument("--port", type=int, default=0, help="where it is served (default: any free port)")
    given = parser.parse_args()
    folder = given.folder.absolute()
    if (folder / MARK).is_file():
        shutil.rmtree(folder)
    demo = Demo(folder, given.port or free_port(), given.events)
    for step in (generate, apply, materialize, serve_and_read, train):
        step(demo)
    console.rule("done")
    console.print(f"The repository is in {folder}: try fs -c {folder} list, or fs -c {folder} serve", markup=False)
    return 0


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
