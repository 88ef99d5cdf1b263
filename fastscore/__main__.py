"""``python -m fastscore``."""

import sys

from fastscore.apps.cli import main

sys.exit(main())
