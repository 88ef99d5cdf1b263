"""``python -m fastscore``."""

import sys

from fastscore.cli import main

sys.exit(main())
