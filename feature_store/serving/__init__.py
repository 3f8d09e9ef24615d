"""Features over HTTP. `run` is what `fs serve` calls; heavy imports wait until then."""

from __future__ import annotations

from pathlib import Path


def run(
    repo_path: str | Path = ".",
    settings_file: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int = 6566,
    workers: int = 1,
    access_log: bool = True,
) -> None:
    """Serve a repository until SIGINT or SIGTERM; requests in progress are answered first."""
    from feature_store.serving.server import serve

    serve(Path(repo_path), Path(settings_file) if settings_file else None, host, port, workers, access_log)
