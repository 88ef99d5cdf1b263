"""The types that a user's type checker sees."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A line that ends in "# error: CODE" is refused with that code, all others pass.
SCRIPT = """
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import fastscore

model = fastscore.nn.ScoreMLP(2)
sigmas = fastscore.geometric_sigmas(1.0, 0.1, 4)
assert_type(sigmas, Tensor)

# Samplers: a trajectory makes it a pair.
assert_type(fastscore.annealed_langevin(model, sigmas, num_samples=3), Tensor)
assert_type(fastscore.annealed_langevin(model, [1.0, 0.1], shape=(3, 2), seed=1), Tensor)
assert_type(
    fastscore.annealed_langevin(model, sigmas, num_samples=3, trajectory=[0, 3]),
    tuple[Tensor, Tensor],
)
options: dict[str, Any] = {"steps_per_sigma": 2}
fastscore.annealed_langevin(model, sigmas, num_samples=3, **options)
fastscore.annealed_langevin(model, sigmas, num_samples=3, step_sise=0.1)  # error: call-overload
fastscore.annealed_langevin(model, sigmas, num_samples="three")  # error: call-overload
assert_type(fastscore.consistent_annealed_langevin(model, sigmas, eta=0.3, num_samples=3), Tensor)
assert_type(fastscore.langevin(lambda x: -x, torch.zeros(3, 2), steps=2, step_size=0.1), Tensor)

# Checkpoints sample as samplers do.
checkpoint = fastscore.load_checkpoint("net.safetensors", model=model)
assert_type(checkpoint, fastscore.Checkpoint)
assert_type(checkpoint.model, nn.Module)
assert_type(checkpoint.sample(3, seed=1), Tensor)
assert_type(checkpoint.sample(3, trajectory=[0, 3]), tuple[Tensor, Tensor])
fastscore.Checkpoint(fastscore.nn.EMA(model), [1.0, 0.1], {"steps_per_sigma": 3})
fastscore.Checkpoint(lambda x: x, sigmas)  # error: arg-type
fastscore.save_checkpoint("net.safetensors", model)  # error: arg-type
fastscore.save_grid("a.png", torch.zeros(3, 8, 8), value_range=(0, 1))

# Derivatives: a standard error makes it a pair.
x = torch.zeros(3, 2)
assert_type(fastscore.divergence(model, x, 0.5), Tensor)
assert_type(fastscore.divergence(model, x, 0.5, return_stderr=False), Tensor)
assert_type(
    fastscore.divergence(model, x, 0.5, projections=4, return_stderr=True), tuple[Tensor, Tensor]
)
fastscore.divergence(model, x, 0.5, returns_stderr=True)  # error: call-overload

# Likelihoods
levels = fastscore.dequantize(torch.zeros(3, 2, dtype=torch.uint8), 17, seed=1)
assert_type(levels, Tensor)
fastscore.dequantize(levels, 17, sed=1)  # error: call-arg
assert_type(fastscore.bits_per_dim(torch.zeros(3), (2,), 17, (-1, 1)), Tensor)
sde = fastscore.sde.VE()
bits = fastscore.evaluation.discrete_log_likelihood(model, x, sde, levels=17, probes=2, seed=1)
assert_type(bits, fastscore.evaluation.DiscreteLikelihood)
assert_type(bits.mean_bits, float)
assert_type(fastscore.evaluation.auroc(bits.bits, bits.bits).stderr, float)
assert_type(fastscore.evaluation.paired_difference(bits.bits, bits.bits).mean, float)
assert_type(fastscore.evaluation.energy_spread(model, x, sde).spread, float)

# Random numbers: of a seed, or of a key.
assert_type(fastscore.random.normal((3, 2), seed=1), Tensor)
assert_type(fastscore.random.normal(shape=(3, 2), dtype=torch.float64), Tensor)
assert_type(fastscore.random.uniform(fastscore.random.key(0), (3, 2)), Tensor)
fastscore.random.normal(seed=1)  # error: call-overload

# Losses
assert_type(fastscore.dsm_loss(model, x, sigmas), Tensor)
assert_type(fastscore.dsm_loss(model, x, sigmas, weighting=lambda s: s**2), Tensor)
assert_type(fastscore.ssm_loss(model, x, sigmas=sigmas, prediction="eps"), Tensor)
fastscore.dsm_loss(model, x, sigmas, weighing="none")  # error: call-arg
fastscore.dsm_loss(model, "x", sigmas)  # error: arg-type
labels = torch.zeros(3, dtype=torch.int64)
classifier = fastscore.nn.NoisyClassifier(2, classes=3)
assert_type(fastscore.classifier_loss(classifier, x, labels, sde, label_smoothing=0.1), Tensor)
fastscore.classifier_loss(classifier, x, labels, sde, smoothing=0.1)  # error: call-arg

# Guided scores
own = {"label": labels}
guided = fastscore.guidance.ClassifierGuidance(model, classifier, scale=2.0)
assert_type(fastscore.annealed_langevin(guided, sigmas, num_samples=3, model_kwargs=own), Tensor)
free = fastscore.guidance.ClassifierFreeGuidance(model, null={"label": 3}, sigma_interval=(0.1, 3))
assert_type(fastscore.probability_flow(free, sde, num_samples=3, model_kwargs=own), Tensor)
fastscore.guidance.ClassifierFreeGuidance(model)  # error: call-arg

# Networks and their averages
average = fastscore.nn.EMA(model, decay=0.9, module=fastscore.nn.ScoreMLP(2))
assert_type(average.module, nn.Module)
with average.swapped() as inside:
    assert_type(inside, nn.Module)
fastscore.nn.EMA(model, decay="much")  # error: arg-type
fastscore.nn.EMA(model, modul=model)  # error: call-arg
"""


def test_a_users_script(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    # What is imported is not judged here. The cache is kept: without it PyTorch is read anew.
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--config-file=", "--strict"),
            *("--follow-imports=silent", "--hide-error-context", "--no-error-summary"),
            *("--cache-dir", str(ROOT / ".mypy_cache" / "script"), str(script)),
        ],
        env={**os.environ, "MYPYPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    expected = {
        (number, line.rpartition("# error: ")[2])
        for number, line in enumerate(SCRIPT.splitlines(), 1)
        if "# error: " in line
    }
    errors = re.findall(r"script\.py:(\d+): error: .*\[([a-z-]+)\]$", done.stdout, re.M)
    assert {(int(number), code) for number, code in errors} == expected, done.stdout + done.stderr
