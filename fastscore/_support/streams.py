"""The named streams of random numbers.

Noise is a pure function of (seed, stream, draw, flat element index). Two uses of noise
that must be independent of each other under one seed lie in different streams.
"""

from enum import IntEnum


class Stream(IntEnum):
    """The purpose that random numbers are drawn for: the last counter word of Philox.

    >>> import fastscore
    >>> key, stream = fastscore.random.key(0), fastscore.random.Stream
    >>> own = fastscore.random.normal(key, (1, 4))
    >>> bool((fastscore.random.normal(key, (1, 4), stream=stream.INIT) == own).any())
    False
    """

    USER = 0
    """Numbers that the caller draws for purposes of his own."""
    LANGEVIN = 1
    """The noise of Langevin and other sampling steps; the draw is the step number."""
    PERTURB = 2
    """The noise that perturbs data in denoising score matching."""
    PROJECTION = 3
    """The projection vectors of sliced score matching and of Hutchinson's trace estimator."""
    LABEL = 4
    """Noise-level labels, one for each sample."""
    INIT = 5
    """The initial state of a sampler."""
    TIME = 6
    """The times of a loss in continuous time."""
    DROP = 7
    """Which conditions are dropped in training."""
    DEQUANTIZE = 8
    """The noise that spreads discrete data over the boxes of their levels."""
    MEASURE = 9
    """The noise of measurements that a sampler projects its state to."""
