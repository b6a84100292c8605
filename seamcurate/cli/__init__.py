"""The command line: one verb per public function, and no logic of its own."""

from __future__ import annotations

from seamcurate.cli.app import app, main

__all__ = ["app", "main"]
