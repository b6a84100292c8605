"""Fuzz one target: `python fuzz/run.py sources|sql|replies|rewards --seconds 600`.

With atheris, inputs are led by the code they reach; without it they are random changes of the corpus. An input that breaks a
promise is written to fuzz/found, and the exit code is not 0: mend the cause, and move the input to the corpus.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))


def main() -> int:
    """Fuzz until the time is over or something is found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    corpus, found = HERE / "corpus" / asked.target, HERE / "found" / asked.target
    found.mkdir(parents=True, exist_ok=True)
    try:
        import atheris
    except ImportError:
        from mutation import mutations
        from targets import TARGETS

        seeds = [file.read_bytes() for file in sorted(corpus.iterdir())]
        end = time.monotonic() + asked.seconds
        for count, data in enumerate(mutations(seeds, asked.seed)):
            if time.monotonic() > end:
                print(f"{asked.target}: {count:,} random changes of {len(seeds)} inputs, nothing found")
                return 0
            try:
                TARGETS[asked.target](data)
            except Exception:
                file = found / hashlib.sha256(data).hexdigest()[:16]
                file.write_bytes(data)
                print(f"{asked.target}: {file} breaks a promise", file=sys.stderr)
                raise
    with atheris.instrument_imports(include=["seamcurate", "json", "csv"]):
        from targets import TARGETS
    grown = HERE / "found" / f"{asked.target}-corpus"
    grown.mkdir(exist_ok=True)
    options = [f"-max_total_time={asked.seconds}", "-max_len=4096", "-timeout=20", "-rss_limit_mb=4096"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={found}/", str(grown), str(corpus)], TARGETS[asked.target])
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
