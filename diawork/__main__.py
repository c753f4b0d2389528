"""``python -m diawork``: the command line."""

import sys

from diawork.cli.main import main

sys.exit(main())
