"""`python -m anysam` is the `anysam` command."""

import sys

from anysam.cli import main

if __name__ == "__main__":
    sys.exit(main())
