"""`python -m minimemo`."""

import sys

from minimemo.cli import main

sys.exit(main())
