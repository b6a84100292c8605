"""The score explorer: a page, served on this machine only, that shows a store's misjudged prompts; and its report."""

from __future__ import annotations

from seamcurate.explore.report import report
from seamcurate.explore.session import Session
from seamcurate.store.store import Store

__all__ = ["Session", "report", "serve"]


def serve(store: Store, port: int = 0, open_browser: bool = False, other: Store | None = None) -> None:
    """Serve the explorer of a store on this machine until interrupted; see `seamcurate.explore.server.serve`.

    Raises:
        StoreError: There is no store, or the page was not built.
    """
    from seamcurate.explore import server

    server.serve(store, port, open_browser, other)
