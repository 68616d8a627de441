"""`python -m jtok`: the same as the `jtok` command."""

import sys

from jtok.cli import main

sys.exit(main())
