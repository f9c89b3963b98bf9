"""The ``nodma`` command, also as ``python -m nodma``."""

from __future__ import annotations

import sys
from typing import Final

_INTERRUPTED: Final = 130


def main() -> None:
    """Run the command line. Ctrl-C ends it without a traceback even while it is being loaded."""
    try:
        from nodma.cli import main as run_command_line

        run_command_line()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
