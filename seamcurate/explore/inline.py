"""The explorer inside a notebook's cell: a frame around its page, which a server in this process answers."""

from __future__ import annotations

from html import escape

from seamcurate.store.store import Store


class Explorer:
    """Serve the explorer of a store from a thread of this process, and show it as a frame in a notebook's cell.

    The server listens on this machine only and ends with the process, or by `stop`. The address holds the token that it
    asks for: a notebook that is saved keeps the address, which is worth nothing once the kernel ended.

    Raises:
        StoreError: There is no store, or the page was not built.
    """

    def __init__(self, store: Store, height: int = 800) -> None:
        from seamcurate.explore import server

        self._server, self._height = server.start(store), height

    @property
    def address(self) -> str:
        """Return the page's address, with its token."""
        return self._server.address

    def stop(self) -> None:
        """End the server."""
        self._server.stop()

    def __repr__(self) -> str:
        return f"the explorer is at {self.address}"

    def _repr_html_(self) -> str:
        frame = f'<iframe src="{escape(self.address)}" width="100%" height="{self._height}" style="border:0"></iframe>'
        return (
            f"{frame}<p>An empty frame? Then the kernel is on another machine, or the notebook's page may show no frames: "
            f'<a href="{escape(self.address)}" target="_blank" rel="noopener">open the page itself</a>.</p>'
        )
