"""`python -m feature_store.cli`: the command `fs` of this interpreter."""

from __future__ import annotations

from feature_store.cli import main

main()
