"""The settings of a feature repository: where things run and rest, from feature_store.yaml and the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from feature_store.errors import Location, SettingsError, nearest

FILE_NAME = "feature_store.yaml"
_VARIABLE = re.compile(r"\$\$\{|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<default>:-[^}]*)?\}|(?P<wrong>\$\{[^}]*\}?)")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_SQLITE = re.compile(r"(?P<scheme>sqlite(?:\+\w+)?:///)(?P<file>[^?/][^?]*)(?P<query>\?.*)?")
_SPARK_MASTER = re.compile(r"local\[|spark://|yarn$|k8s://")
_BROKER = re.compile(r"([A-Z_]+://)?([^\s,:\[\]/]+|\[[0-9A-Fa-f:.]+\]):(?P<port>\d{1,5})")
_PROJECT = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")

_EXAMPLES = {
    "registry": "sqlite:///data/registry.db",
    "offline_store": "data/offline",
    "online_store": "redis://localhost:6379/0",
}

_KeyPath = tuple[str | int, ...]


def _project(value: str) -> str:
    if not _PROJECT.fullmatch(value):
        raise ValueError(
            f'"{value}" is not a project name: letters, digits, "_" and "-", a letter first, at most 63 characters'
        )
    return value


def _timezone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f'"{value}" is not a time zone; write for example UTC or Asia/Shanghai') from None
    return value


def _brokers(value: str) -> str:
    brokers = [broker.strip() for broker in value.split(",")]
    for broker in brokers:
        match = _BROKER.fullmatch(broker)
        if not match or not 0 < int(match["port"]) < 65_536:
            raise ValueError(f'"{broker}" is not a broker; write host:port, with commas between several')
    return ",".join(brokers)


Brokers = Annotated[str, AfterValidator(_brokers)]
"""Where to find a Kafka cluster: `host:port`, or several with commas between them."""


class Limits(BaseModel):
    """What one request, or one process, may take at most."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_entities: int = Field(default=10_000, ge=1)
    """Entity rows in one online request."""
    max_body_mb: float = Field(default=8, gt=0)
    """MiB of one HTTP request's body."""
    requests_per_s: float | None = Field(default=None, gt=0)
    """Requests of each of `clients` that names no rate of its own, or of all where there are no clients, that a worker
    of the HTTP service answers in a second; None: all."""
    memory: str | None = Field(default=None, pattern=r"^\d+(\.\d+)?\s*(KB|MB|GB|TB|KiB|MiB|GiB|TiB)$")
    """What the local engine may use, for example 4GB; the rest spills to disk. None: the engine's own default."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of the local engine; None: one a core."""


READ: Final = "read"
WRITE: Final = "write"


class Client(BaseModel):
    """Who asks the HTTP service: the token that its requests carry, what it may do (write: push and materialize), and
    how often a second."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: str = Field(min_length=16, repr=False)
    may: tuple[Literal["read", "write"], ...] = Field(default=(READ,), min_length=1)
    requests_per_s: float | None = Field(default=None, gt=0)


class EnginePlace(BaseModel):
    """Where an engine runs. For Spark: a master (local[2], spark://host:7077, yarn, k8s://...), and Spark's conf. For
    Flink: embedded, or the REST address of a cluster, and Flink's conf."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    master: str
    conf: dict[str, str | bool | int | float] = {}
    connect_timeout: float = Field(default=5, gt=0)
    """Seconds until a master that does not answer is given up."""

    @property
    def is_embedded(self) -> bool:
        return self.master in ("local", "embedded")

    @property
    def is_spark(self) -> bool:
        return _SPARK_MASTER.match(self.master) is not None

    @property
    def conf_texts(self) -> dict[str, str]:
        """The conf as Spark and Flink spell values."""
        return _texts(self.conf)


def _texts(conf: Mapping[str, str | bool | int | float]) -> dict[str, str]:
    """Options as Java and C programs read them: true, not True."""
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in conf.items()}


_OURS = {
    "bootstrap.servers": "Write it as brokers",
    "group.id": "The group of a stream is named by its project and source",
    "enable.auto.commit": "Offsets are committed after what they stand for is written",
    "enable.auto.offset.store": "Offsets are committed after what they stand for is written",
    "auto.offset.reset": "Say it when the stream starts for the first time",
}


def _kafka_conf(conf: dict[str, str | bool | int | float]) -> dict[str, str | bool | int | float]:
    for name in conf:
        if name in _OURS:
            raise ValueError(f'"{name}" is not to be set here. {_OURS[name]}')
    return conf


class KafkaPlace(BaseModel):
    """Where Kafka is: brokers, with librdkafka's options for them (security.protocol, sasl.username, ...), and the
    address of a schema registry."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    brokers: Brokers | None = None
    schema_registry: str | None = Field(default=None, pattern=r"^https?://[^/\s]")
    conf: Annotated[dict[str, str | bool | int | float], AfterValidator(_kafka_conf)] = {}

    @property
    def conf_texts(self) -> dict[str, str]:
        """The conf as librdkafka spells values."""
        return _texts(self.conf)


def _distinct(clients: dict[str, Client]) -> dict[str, Client]:
    tokens: dict[str, str] = {}
    for name, client in clients.items():
        if (other := tokens.setdefault(client.token, name)) != name:
            raise ValueError(f'clients "{other}" and "{name}" have the same token')
    return clients


_TEXT, _MAPPING = "text", "mapping"
_Place = Annotated[
    Annotated[str, Tag(_TEXT)] | Annotated[EnginePlace, Tag(_MAPPING)],
    Discriminator(lambda value: _MAPPING if isinstance(value, (dict, EnginePlace)) else _TEXT),
]
"""A master alone, or with a conf."""


class Settings(BaseModel):
    """What feature_store.yaml says, variables expanded and paths made absolute."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    project: Annotated[str, AfterValidator(_project)]
    registry: str = "sqlite:///data/registry.db"
    offline_store: str = "data/offline"
    online_store: str = "sqlite:///data/online.db"
    engine: str = "local"
    engines: dict[str, _Place] = {}
    kafka: KafkaPlace = KafkaPlace()
    aliases: dict[str, str] = {}
    timezone: Annotated[str, AfterValidator(_timezone)] = "UTC"
    limits: Limits = Limits()
    clients: Annotated[dict[str, Client], AfterValidator(_distinct)] = {}

    def engine_place(self, name: str) -> EnginePlace:
        """Where the engine of a name runs; one that is not among `engines` is embedded."""
        place = "local" if name == "local" else self.engines.get(name, "local")
        return EnginePlace(master=place) if isinstance(place, str) else place

    def kafka_place(self, source: str, brokers: str | None) -> KafkaPlace:
        """Where the topic of a source is: at its own brokers, if it names any. `SettingsError` if nobody does."""
        if not (brokers or self.kafka.brokers):
            raise SettingsError(
                f'source "{source}" reads Kafka, and nothing says where that is',
                hint="Write kafka: {brokers: host:port} in feature_store.yaml, or brokers: in the source's kafka:",
            )
        return self.kafka.model_copy(update={"brokers": brokers}) if brokers else self.kafka


def load_settings(path: Path | str, root: Path | None = None) -> Settings:
    """Read a settings file; relative paths in it are relative to `root`, by default the file's own folder.

    `SettingsError` with file and line for anything wrong in it.
    """
    file = Path(path)
    text = _read(file)
    node = _compose(text, file)
    if not isinstance(node, yaml.MappingNode):
        raise SettingsError(
            "the settings are not a mapping", location=Location(str(file), 1), hint="Write project: NAME"
        )
    lines: dict[_KeyPath, int] = {}
    for key, line in _lines(node, ()):
        if key in lines:
            raise SettingsError(f'the setting "{key[-1]}" is there twice', location=Location(str(file), line))
        lines[key] = line
    values = _expand(yaml.SafeLoader(text).construct_document(node), (), lines, file)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise _settings_error(error, lines, file) from None
    return _resolved(settings, (root or file.parent).absolute())


def resolve_uri(uri: str, root: Path) -> str:
    """A URI with relative SQLite files made absolute: relative to `root`. Anything else stays as it is.

    >>> resolve_uri("sqlite:///data/online.db", Path("/repo"))
    'sqlite:////repo/data/online.db'
    """
    if uri.startswith("tiered:"):
        parts = uri.removeprefix("tiered:").split("|")
        return "tiered:" + "|".join(resolve_uri(part, root) for part in parts)
    sqlite = _SQLITE.fullmatch(uri)
    if sqlite and sqlite["file"] != ":memory:":
        return f"{sqlite['scheme']}{root.absolute() / sqlite['file']}{sqlite['query'] or ''}"
    return uri


def resolve_location(location: str, root: Path) -> str:
    """A URI as `resolve_uri` leaves it, or a path made absolute: relative to `root`."""
    return resolve_uri(location, root) if _URI.match(location) else str(root.absolute() / Path(location).expanduser())


def _resolved(settings: Settings, root: Path) -> Settings:
    places = {
        "registry": resolve_uri(settings.registry, root),
        "offline_store": resolve_location(settings.offline_store, root),
        "online_store": resolve_uri(settings.online_store, root),
        "aliases": {name: resolve_uri(uri, root) for name, uri in settings.aliases.items()},
    }
    return settings.model_copy(update=places)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SettingsError(
            f"there is no {file}", hint="Run fs init DIR to make a repository, or name one with -c DIR"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read the settings: {error}", location=Location(str(file))) from None


def _compose(text: str, file: Path) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise SettingsError(f"this is not YAML: {error.problem}", location=Location(str(file), line)) from None
    except yaml.YAMLError as error:
        raise SettingsError(f"this is not YAML: {error}", location=Location(str(file))) from None


def _lines(node: yaml.Node, path: _KeyPath) -> Iterator[tuple[_KeyPath, int]]:
    """The line of each key and item, by its path."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*path, str(key.value))
            yield inner, key.start_mark.line + 1
            yield from _lines(value, inner)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*path, index), value.start_mark.line + 1
            yield from _lines(value, (*path, index))


def _expand(value: Any, path: _KeyPath, lines: Mapping[_KeyPath, int], file: Path) -> Any:
    """The value with ${VAR} and ${VAR:-default} filled in from the environment; $${ stands for a literal ${."""
    if isinstance(value, dict):
        return {key: _expand(inner, (*path, str(key)), lines, file) for key, inner in value.items()}
    if isinstance(value, list):
        return [_expand(inner, (*path, index), lines, file) for index, inner in enumerate(value)]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        if match[0] == "$${":
            return "${"
        location = Location(str(file), lines.get(path, 0))
        if match["wrong"]:
            raise SettingsError(
                f'"{match["wrong"]}" is not a variable', location=location, hint="Write ${VAR} or ${VAR:-default}"
            )
        default = match["default"]
        found = os.environ.get(match["name"])
        if default is not None:
            return found or default[2:]
        if found is None:
            hint = f"Set it, or write ${{{match['name']}:-default}}"
            raise SettingsError(f"the environment has no variable {match['name']}", location=location, hint=hint)
        return found

    return _VARIABLE.sub(fill, value)


def _settings_error(error: ValidationError, lines: Mapping[_KeyPath, int], file: Path) -> SettingsError:
    """The first thing wrong, with the nearest key or what the key takes."""
    first = error.errors(include_url=False)[0]
    path = tuple(part for n, part in enumerate(first["loc"]) if (n, part) not in ((2, _TEXT), (2, _MAPPING)))
    name = ".".join(str(part) for part in path)
    inner: dict[Any, type[BaseModel]] = {"limits": Limits, "engines": EnginePlace, "kafka": KafkaPlace}
    known = inner.get(path[0] if path else None, Settings).model_fields
    line = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), 0)
    location = Location(str(file), line)
    if first["type"] == "extra_forbidden":
        hint = nearest(str(path[-1]), known) or f"Keys are {', '.join(known)}"
        return SettingsError(f'there is no setting "{name}"', location=location, hint=hint)
    if first["type"] == "missing":
        return SettingsError(f'the setting "{name}" is missing', location=location, hint=f"Add {name}: to the file")
    if first["type"] == "string_type" and name in _EXAMPLES:
        return SettingsError(
            f"{name} is one text, not {first['input']!r}",
            location=location,
            hint=f"Write for example {name}: {_EXAMPLES[name]}",
        )
    what = first["msg"].removeprefix("Value error, ")
    got = "" if first["type"] == "value_error" else f", not {first['input']!r}"
    return SettingsError(f"{name}: {what}{got}", location=location)
