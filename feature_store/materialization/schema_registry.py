"""A schema registry, read over HTTP: what Confluent's, Karapace and Apicurio answer alike."""

from __future__ import annotations

import base64
import json
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit, urlunsplit
from urllib.request import Request, urlopen

from feature_store.errors import NotFoundError, SourceError, StoreUnavailableError

_TIMEOUT = 10.0
_UNKNOWN = {40401, 40402, 40403}
"""What a registry says of a subject, a version, a schema that it does not have."""


class SchemaRegistry:
    """The Avro schemas of a registry by their ids. `url` may hold a user and a password."""

    def __init__(self, url: str, timeout: float = _TIMEOUT) -> None:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        self._url = urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))
        self._timeout = timeout
        self._headers = {"Accept": "application/vnd.schemaregistry.v1+json, application/json"}
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"

    def schema(self, id_: int) -> str:
        """The text of an Avro schema, with those that it refers to inside.

        Raises:
            NotFoundError: there is none of this id, or it is not Avro.
            SourceError: what is there is no schema registry, or it does not let us in.
            StoreUnavailableError: it does not answer; the same call may succeed later.
        """
        found = self._get(f"/schemas/ids/{id_}")
        kind = found.get("schemaType") or "AVRO"
        if kind != "AVRO":
            raise NotFoundError(f"schema {id_} is of the type {kind}, not AVRO")
        named: dict[str, Any] = {}
        self._collect(found, named)
        return json.dumps(_written_out(json.loads(found["schema"]), named)) if named else str(found["schema"])

    def _collect(self, found: Any, named: dict[str, Any]) -> None:
        """The schemas that one refers to, and those that they do, by the names that they define."""
        for reference in found.get("references") or ():
            if reference["name"] not in named:
                subject, version = quote(reference["subject"], safe=""), reference["version"]
                there = self._get(f"/subjects/{subject}/versions/{version}")
                named[reference["name"]] = json.loads(there["schema"])
                self._collect(there, named)

    def _get(self, path: str) -> Any:
        try:
            with urlopen(Request(self._url + path, headers=self._headers), timeout=self._timeout) as answer:
                body = answer.read()
        except HTTPError as error:
            raise self._refused(error, path) from None
        except (URLError, HTTPException, OSError) as error:
            reason = getattr(error, "reason", None) or error
            raise StoreUnavailableError(f"the schema registry at {self._url} does not answer: {reason}") from None
        found = _json(body)
        if not isinstance(found, dict) or "schema" not in found:
            raise self._no_registry(path)
        return found

    def _refused(self, error: HTTPError, path: str) -> Exception:
        with error:
            said = _json(error.read())
        if error.code == 404 and isinstance(said, dict) and said.get("error_code") in _UNKNOWN:
            return NotFoundError(f"the schema registry at {self._url} has no {path}")
        if error.code in (401, 403):
            return SourceError(
                f"the schema registry at {self._url} answers {error.code} {error.reason}",
                hint="Write the user and the password in feature_store.yaml: https://user:password@host",
            )
        if error.code == 429 or error.code >= 500:
            return StoreUnavailableError(f"the schema registry at {self._url} answers {error.code} {error.reason}")
        return self._no_registry(path, f": {error.code} {error.reason}")

    def _no_registry(self, path: str, said: str = "") -> SourceError:
        return SourceError(
            f"what is at {self._url} does not answer {path} as a schema registry does{said}",
            hint="Check kafka.schema_registry in feature_store.yaml",
        )


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


def _written_out(schema: Any, named: dict[str, Any], namespace: str = "") -> Any:
    """A schema with the `named` ones in place of the first use of their names; those are taken out of `named`."""
    if isinstance(schema, str):
        full = schema if "." in schema or schema in named else f"{namespace}.{schema}"
        # Where it is put is another namespace, perhaps: its own is said, if it is none.
        return _written_out({"namespace": "", **named.pop(full)}, named) if full in named else schema
    if isinstance(schema, list):
        return [_written_out(each, named, namespace) for each in schema]
    if not isinstance(schema, dict):
        return schema
    name = schema.get("name", "")
    namespace = name.rpartition(".")[0] if "." in name else schema.get("namespace", namespace)
    out = dict(schema)
    for key in ("type", "items", "values"):
        if key in out:
            out[key] = _written_out(out[key], named, namespace)
    if "fields" in out:
        out["fields"] = [{**each, "type": _written_out(each["type"], named, namespace)} for each in out["fields"]]
    return out
