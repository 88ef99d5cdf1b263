"""Saving a network with all that it takes to sample from it again.

A checkpoint is one safetensors file: the weights, the noise scales, and as JSON the process, how
the network is called, what it predicts, the sampler with its settings, and how the network is made.
Reading one executes nothing of it.
"""

from fastscore.checkpoint._checkpoint import Checkpoint
from fastscore.checkpoint._loading import load_checkpoint
from fastscore.checkpoint._saving import save_checkpoint

__all__ = ["Checkpoint", "load_checkpoint", "save_checkpoint"]
