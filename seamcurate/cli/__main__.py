"""`python -m seamcurate.cli`."""

from __future__ import annotations

from seamcurate.cli.app import main

if __name__ == "__main__":
    main()
