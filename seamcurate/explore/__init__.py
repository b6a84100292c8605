"""The score explorer: a page on this machine's loopback that shows what is wrong with a store's prompts."""

from seamcurate.explore.server import application, serve
from seamcurate.explore.session import Session

__all__ = ["Session", "application", "serve"]
