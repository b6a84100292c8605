"""Audits: what a reward pays for that it should not, on the user's own rows."""

from __future__ import annotations

from seamcurate.audit.audit import audit
from seamcurate.audit.result import FAILURES, Audit, Failure

__all__ = ["FAILURES", "Audit", "Failure", "audit"]
