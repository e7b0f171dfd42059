"""``python -m bulk``: see `bulk.cli`."""

import sys

from bulk.cli import main

if __name__ == "__main__":
    sys.exit(main())
