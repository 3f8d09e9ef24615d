"""Streams: events of a topic into online windows, by a consumer group and by Flink, what that costs, and how soon it is
read.

`python -m benchmarks.streams TASK JSON` runs what loads or does nothing in a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import yaml
from confluent_kafka import Producer

from benchmarks import data, load, swallow
from benchmarks.processes import HERE, WorkerError, cpu_seconds, free_port, server
from benchmarks.report import Report, number, ratio
from benchmarks.serving import PATH, serve
from benchmarks.sizes import Size
from feature_store.registry.registry import Registry
from tests.jars import jars
from tests.servers import KafkaServer, RedisServer

ENGINES = {"kafka": "consumer group", "flink": "Flink"}
SHARE_OF_NO_STORE = 0.6
FRESH_RATE, FRESH_P50, FRESH_P99 = 2_000, 50, 200
RATES = (FRESH_RATE, 10_000)
KEYS = 10_000
MORE_KEYS = (100_000, 1_000_000)
_PROBES = 2_000_000_000
"""Users from here on are those whose events are looked for."""
_MINUTE = 60_000_000
_WAIT_S = 600.0

_DEFINITIONS = """
entity: {{name: user, join_key: user_id, type: INT64}}
---
source:
  name: clicks
  timestamp: at
  columns:
    - {{name: id, type: INT64}}
    - {{name: user_id, type: INT64}}
    - {{name: price, type: FLOAT64}}
    - {{name: kind, type: STRING}}
    - {{name: at, type: TIMESTAMP}}
  stream: {{engine: {engine}, kafka: {{topic: {topic}}}}}
---
feature_view:
  name: counts
  entities: [user]
  source: clicks
  aggregations:
    - {{name: clicks_1h, function: count, window: 1h}}
    - {{name: spend_1h, function: sum, column: price, window: 1h}}
"""


def measure(size: Size) -> Report:
    """Everything waits in the topic before a worker is started."""
    head = ["through", "keys", "events", "events/s", "worker CPU µs/event", "Redis CPU µs/event", "worker MiB",
            "Redis bytes/key"]  # fmt: skip
    report = Report("Streams: Kafka into Redis, a count and a sum over 1 h", head)
    with _bench(report, size) as bench:
        for engine in ENGINES:
            bench.throughput(engine)
        bench.keys()
        bench.outage()
    return report


def measure_freshness(size: Size) -> Report:
    """Events are produced at an even rate, and one after the other is looked for."""
    head = ["through", "keys", "events/s", "events", "worker CPU µs/event", "p50 ms", "p99 ms"]
    report = Report("Freshness: from produced to readable over HTTP", head)
    with _bench(report, size) as bench:
        for engine in ENGINES:
            bench.freshness(engine)
    return report


@contextlib.contextmanager
def _bench(report: Report, size: Size) -> Iterator[_Bench]:
    """Real servers; one worker, one partition."""
    shutil.rmtree(data.ROOT / "streams", ignore_errors=True)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), swallow.installed(data.ROOT / "plugins")])
    kafka, online = KafkaServer().start(), RedisServer().start()
    try:
        yield _Bench(report, kafka, online, size)
    finally:
        online.close()
        kafka.close()


@dataclass
class Work:
    """What a worker was seen to do between its first and its last events, and in all."""

    events: int
    rate: float
    cpu: float
    """Of the worker and all its processes, µs an event."""
    redis: float
    memory: float
    started: float
    """Seconds from its start to its first events."""
    caught_up: float


@dataclass
class _Sample:
    at: float
    events: int
    cpu: float
    redis: float


@dataclass
class _Bench:
    report: Report
    kafka: KafkaServer
    online: RedisServer
    size: Size

    def throughput(self, engine: str) -> None:
        """The same events into Redis and into nothing, and with Flink past a handler that does nothing, too."""
        topic, events = self._filled(KEYS, self.size.stream_events), self.size.stream_events
        name = ENGINES[engine]
        self.online.client().flushall()
        into = self._work(topic, engine, self.online.url, events)
        self._add(f"{name} into Redis", KEYS, into)
        nowhere = self._work(topic, engine, f"{swallow.SCHEME}://", events)
        self._add(f"{name}, a store that keeps nothing", KEYS, nowhere)
        figure = f"streams, {name}"
        cpu, rate = ratio(nowhere.cpu, into.cpu) or 0.0, into.rate / nowhere.rate
        labels = (
            f"{figure}: CPU, without a store over with Redis",
            f"{figure}: events/s, with Redis over without a store",
        )
        for label, times in zip(labels, (cpu, rate), strict=True):
            if engine == "flink":
                self.report.at_least(label, times, SHARE_OF_NO_STORE)
            else:
                self.report.state(label, number(times, "x"))
        if engine == "flink":
            nothing = self._nothing(topic, events)
            self._add(f"{name}, a handler that does nothing", KEYS, nothing)
            self.report.state(f"{figure}: CPU, doing nothing over with Redis", number(nothing.cpu / into.cpu, "x"))
            self.report.state(
                f"{figure}: events/s, with Redis over doing nothing", number(into.rate / nothing.rate, "x")
            )

    def outage(self) -> None:
        """What came in an outage is taken, as fast as it goes."""
        events = self.size.stream_outage
        topic = self._filled(KEYS, events, events * 1_000_000 // FRESH_RATE)
        for engine, name in ENGINES.items():
            self.online.client().flushall()
            work = self._work(topic, engine, self.online.url, events)
            self._add(f"{name} into Redis, after an outage", KEYS, work)
            label = f"streams, {name}: all of an outage of {events / FRESH_RATE / 60:.0f} minutes at {FRESH_RATE:,}/s"
            self.report.state(label, number(work.caught_up, "s"))

    def keys(self) -> None:
        """Costs and sizes as keys grow, through both; of each key one event at least."""
        for keys in (KEYS, *MORE_KEYS[: self.size.stream_growth]):
            events = max(keys, self.size.stream_events)
            topic = self._filled(keys, events)
            for engine, name in ENGINES.items():
                self.online.client().flushall()
                before = self._held()
                work = self._work(topic, engine, self.online.url, events)
                self._add(f"{name} into Redis, as keys grow", keys, work, (self._held() - before) / keys)

    def freshness(self, engine: str) -> None:
        """From produce to readable over HTTP, one event after the other looked for, under load."""
        name = ENGINES[engine]
        for rate in RATES:
            self.online.client().flushall()
            root, topic = self._repository(self.kafka.topic(), engine, self.online.url)
            with server(serve(root, port := free_port()), port), _worker(root) as process:
                found, used, events = self._probed(topic, port, rate, process)
            found.sort()
            p50, p99 = found[len(found) // 2], found[int(len(found) * 0.99)]
            self.report.add(name, *map(number, (KEYS, rate, events, used, p50, p99)))
            label = f"streams, {name}: produced to readable over HTTP at {rate:,} events/s"
            if rate == FRESH_RATE:
                self.report.at_most(f"{label}, p50", p50, FRESH_P50, "ms")
                self.report.at_most(f"{label}, p99", p99, FRESH_P99, "ms")
            else:
                self.report.state(f"{label}, p50 and p99", f"{number(p50)} and {number(p99, 'ms')}")

    def _probed(self, topic: str, port: int, rate: int, worker: psutil.Process) -> tuple[list[float], float, int]:
        """Milliseconds of each probe, CPU µs an event of the worker, events."""
        arguments = {"brokers": self.kafka.url, "topic": topic, "rate": rate}
        producer = self.kafka.producer(**{"linger.ms": 0})
        client = load.Client(port)
        until = time.monotonic() + _WAIT_S

        def probe(user: int) -> float:
            producer.produce(topic, _event(user, user, time.time_ns() // 1000), str(user))
            began = time.perf_counter()
            producer.flush()
            while not _counted(client, user):
                if time.monotonic() > until:
                    raise WorkerError(f"what was produced was not readable within {_WAIT_S:.0f} s")
                time.sleep(0.001)
            return 1000 * (time.perf_counter() - began)

        probe(_PROBES)
        with _process("load", arguments) as producing:
            chance, found = random.Random(1), list[float]()
            assert producing.stdout
            producing.stdout.readline()  # it has begun
            for n in range(50):
                probe(_PROBES + 1 + n)
            cpu, began = cpu_seconds(worker), time.monotonic()
            while (took := time.monotonic() - began) < self.size.stream_seconds:
                found.append(probe(_PROBES + 100 + len(found)))
                time.sleep(chance.random() * 0.02)  # so that probes do not fall into step with batches
            cpu = cpu_seconds(worker) - cpu
        return found, 1e6 * cpu / (rate * took), int(rate * took)

    def _add(self, what: str, keys: int, work: Work, bytes_a_key: float | None = None) -> None:
        sized = "" if bytes_a_key is None else number(bytes_a_key)
        cells = [number(work.rate), number(work.cpu), number(work.redis), number(work.memory), sized]
        self.report.add(what, number(keys), number(work.events), *cells)

    def _held(self) -> int:
        memory: Any = self.online.client().info("memory")
        return int(memory["used_memory"])

    def _filled(self, keys: int, events: int, span: int = _MINUTE) -> str:
        """A topic with events of the last minute or another span, up to a minute late, of every key about as many."""
        topic, chance = self.kafka.topic(), random.Random(1)
        users = [n % keys for n in range(events)]
        chance.shuffle(users)
        now = time.time_ns() // 1000
        producer = self.kafka.producer(**{"linger.ms": 50, "queue.buffering.max.messages": 1_000_000})
        for n, user in enumerate(users):
            waited = (span - _MINUTE) * (events - n) // events
            _produce(producer, topic, user, _event(n, user, now - waited - chance.randrange(_MINUTE)))
        producer.flush()
        return topic

    def _repository(self, topic: str, engine: str, online: str) -> tuple[Path, str]:
        root = data.ROOT / "streams" / f"{topic}_{engine}_{online.partition(':')[0]}"
        root.mkdir(parents=True)
        flink = {"master": "embedded", "conf": {"pipeline.jars": f"{jars('flink')}/*.jar"}}
        # Another project is another consumer group: nobody goes on where the one before ended.
        settings = {"project": root.name, "online_store": online, "kafka": {"brokers": self.kafka.url}}
        settings |= {"engines": {"flink": flink}} if engine == "flink" else {}
        (root / "feature_store.yaml").write_text(yaml.safe_dump(settings))
        (root / "definitions.yaml").write_text(_DEFINITIONS.format(engine=engine, topic=topic))
        _fs(root, "apply")
        return root, topic

    def _work(self, topic: str, engine: str, online: str, events: int) -> Work:
        root, _ = self._repository(topic, engine, online)
        registry = Registry(f"sqlite:///{root / 'data' / 'registry.db'}", root.name)
        with _worker(root) as process:
            return self._seen(process, events, lambda: sum(each.events for each in registry.streams.workers("clicks")))

    def _nothing(self, topic: str, events: int) -> Work:
        file = data.ROOT / "streams" / f"{topic}.taken"
        arguments = {"brokers": self.kafka.url, "topic": topic, "told": str(file)}
        with _process("nothing", arguments) as process:
            found = psutil.Process(process.pid)
            return self._seen(found, events, lambda: int((file.exists() and file.read_text()) or 0))

    def _seen(self, process: psutil.Process, events: int, done: Callable[[], int]) -> Work:
        """Looks at a worker until it has all events. Rates and costs are those between its first word of how many they
        are and its last one before all: what starts and waits is not in them."""
        began, server_process = time.monotonic(), psutil.Process(self.online.pid)
        samples: list[_Sample] = []
        while not samples or samples[-1].events < events:
            at = time.monotonic()
            if at - began > _WAIT_S or not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                raise WorkerError(f"a stream has not taken {events:,} events, but {samples[-1:]}")
            if (count := done()) > (samples[-1].events if samples else 0):
                samples.append(_Sample(at, count, cpu_seconds(process), cpu_seconds(server_process)))
            time.sleep(0.02)
        first, last = samples[0], samples[-2] if len(samples) > 2 else samples[-1]
        count, seconds = max(last.events - first.events, 1), max(last.at - first.at, 1e-9)
        family = [process, *process.children(recursive=True)]
        return Work(
            events=events,
            rate=count / seconds,
            cpu=1e6 * (last.cpu - first.cpu) / count,
            redis=1e6 * (last.redis - first.redis) / count,
            memory=sum(each.memory_info().rss for each in family) / 2**20,
            started=first.at - began,
            caught_up=samples[-1].at - began,
        )


def _fs(root: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "feature_store.cli", "-c", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise WorkerError(f"fs {' '.join(arguments)}: {done.stderr.strip()}")


@contextlib.contextmanager
def _worker(root: Path) -> Iterator[psutil.Process]:
    """A worker of the repository's stream, until it is told to end."""
    command = [sys.executable, "-m", "feature_store.cli", "-c", str(root), "stream", "start", "--foreground"]
    with (root / "worker.log").open("wb") as log, _ended(subprocess.Popen(command, stdout=log, stderr=log)) as process:
        yield psutil.Process(process.pid)


@contextlib.contextmanager
def _process(task: str, arguments: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "benchmarks.streams", task, json.dumps(arguments)]
    process = subprocess.Popen(command, cwd=HERE.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with _ended(process) as started:
        yield started


@contextlib.contextmanager
def _ended(process: subprocess.Popen[Any]) -> Iterator[Any]:
    try:
        yield process
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for child in psutil.wait_procs(children, timeout=10)[1]:
            child.kill()


def _counted(client: load.Client, user: int) -> bool:
    body = {"features": ["counts:clicks_1h"], "entities": {"user_id": [user]}}
    answer = json.loads(client.post(load.request(PATH, json.dumps(body))))
    place = answer["metadata"]["feature_names"].index("clicks_1h")
    return bool(answer["results"][place]["values"][0])


def _event(number_: int, user: int, at: int) -> bytes:
    time_ = datetime.fromtimestamp(at / 1e6, UTC).isoformat()
    return f'{{"id":{number_},"user_id":{user},"price":{number_ % 997 / 7:.6f},"kind":"click","at":"{time_}"}}'.encode()


def _produce(producer: Producer, topic: str, user: int, event: bytes) -> None:
    while True:
        try:
            producer.produce(topic, event, str(user))
            producer.poll(0)
            return
        except BufferError:
            producer.poll(0.1)


def put_load(brokers: str, topic: str, rate: int) -> None:
    """Events of random keys at a rate, evenly, until the process is ended."""
    producer = Producer({"bootstrap.servers": brokers, "enable.idempotence": True})
    chance, sent, began = random.Random(2), 0, time.monotonic()
    print("loading", flush=True)
    while True:
        due = int((time.monotonic() - began) * rate)
        for n in range(sent, due):
            user = chance.randrange(KEYS)
            _produce(producer, topic, user, _event(n, user, time.time_ns() // 1000))
        sent = due
        producer.poll(0)
        time.sleep(0.001)


def do_nothing(brokers: str, topic: str, told: str) -> None:
    """A job of Flink's whose handler does nothing, until the process is ended."""
    from feature_store.engines.flink import FlinkJobs, StreamJob

    conf = {"pipeline.jars": f"{jars('flink')}/*.jar", "execution.checkpointing.dir": Path(f"{told}.chk").as_uri()}
    job = StreamJob(
        name="nothing", topic=topic, brokers=brokers, group="nothing",
        handler="benchmarks.swallow:Nothing", argument=told,
    )  # fmt: skip
    with FlinkJobs("embedded", conf) as jobs:
        jobs.start(job)
        sys.stdin.read()


TASKS: dict[str, Callable[..., None]] = {"load": put_load, "nothing": do_nothing}


def main(arguments: Sequence[str]) -> None:
    """One task."""
    TASKS[arguments[0]](**json.loads(arguments[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
