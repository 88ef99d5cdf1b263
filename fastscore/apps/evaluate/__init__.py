"""The likelihood of a file of data under saved networks: ``fastscore evaluate``."""

from fastscore.apps.evaluate.command import add_evaluate, run_evaluate
from fastscore.apps.evaluate.numbers import Evaluation, Likelihoods, Task, evaluate

__all__ = ["Evaluation", "Likelihoods", "Task", "add_evaluate", "evaluate", "run_evaluate"]
