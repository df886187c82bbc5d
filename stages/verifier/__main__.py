"""`python -m stages.verifier --socket PATH` executes what a model wrote, for whoever may open that socket."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from gates.errors import SluiceError
from registry import output
from stages.verifier.server import serve


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m stages.verifier", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True, metavar="PATH", help="the Unix socket to listen on")
    try:
        asyncio.run(serve(parser.parse_args().socket))
    except SluiceError as error:
        output.hint(f"error: {error}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
