"""``python -m cutaway``: the command."""

import sys

from cutaway.cli import main

if __name__ == "__main__":
    sys.exit(main())
