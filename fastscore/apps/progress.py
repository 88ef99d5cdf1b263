"""Progress bars of the commands, which can do without."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from fastscore._support.extras import require


def shows_progress(fn: str, asked: bool | None) -> bool:
    """Whether to show a bar. One that nobody asked for is shown where it can be, on a terminal.

    Raises:
        ImportError: it was asked for, and tqdm is missing.
    """
    if asked is False or (asked is None and not sys.stderr.isatty()):
        return False
    try:
        require(fn, "tqdm.auto", "tqdm", what="--progress")
    except ImportError:
        if asked:
            raise
        return False
    return True


class Bar:
    """The numbers below ``total``, with a progress bar or without."""

    def __init__(self, total: int, label: str, shown: bool) -> None:
        self.steps = range(total)
        self.bar = require(label, "tqdm.auto", "tqdm").tqdm(self.steps, label) if shown else None

    def __iter__(self) -> Iterator[int]:
        return iter(self.steps if self.bar is None else self.bar)

    def say(self, **values: str) -> None:
        """Show values beside the bar."""
        if self.bar is not None:
            self.bar.set_postfix(values)
