"""Which tests run on the emulated side, and which never."""

from __future__ import annotations

import re

# Modules that --emulated=all runs a second time with every op emulated.
WHOLE = frozenset({
    "test_closed_form", "test_divergence", "test_dsm", "test_dsm_noisy", "test_dsm_reduced",
    "test_dual", "test_dual_slope", "test_fisher", "test_gradients_off", "test_guided_steps",
    "test_jvp", "test_jvp_layers", "test_jvp_rules", "test_langevin", "test_likelihood",
    "test_losses", "test_mixed_samples", "test_multistep", "test_one_reverse_pass", "test_random",
    "test_runge_kutta", "test_sample_identity", "test_sampler_batches",
    "test_sampler_options", "test_samplers", "test_samples", "test_score_matching", "test_sliced",
    "test_ssm", "test_ssm_models", "test_ssm_use", "test_vmap", "test_writes",
})  # fmt: skip

# Patterns of tests that are never emulated, with the reason.
NEVER: dict[str, str] = {}

# What --emulated=some runs, about 90 seconds on one core beside the fuzzer's own: each dtype and
# each layout of the parity tests once, long rows and odd shapes; the ops, losses and samplers
# themselves, but not each once more through opcheck and torch.compile, which see the same kernels.
CHOSEN = (
    r"/test_(emulated_|capture|fuzz|mutations)",
    r"/test_parity\.py.*(float32-(contiguous|channels_last)|bfloat16-strided|float16-misaligned)",
    r"/test_parity\.py.*float64-transposed",
    r"/test_parity\.py::test_(a_|nan_|no_)",
    r"/test_(dsm|dsm_noisy|guided_steps|langevin|losses|multistep|random|runge_kutta)\.py",
    r"/test_likelihood\.py::test_each_device",
    r"/test_(sample_identity|sampler_options|samplers|sliced|ssm)\.py",
)
LEFT_OUT = r"opcheck|compile"


def why_never(nodeid: str) -> str | None:
    """Why a test is never emulated, if it isn't."""
    return next((why for pattern, why in NEVER.items() if re.search(pattern, nodeid)), None)


def is_chosen(nodeid: str) -> bool:
    """Whether --emulated=some runs a test."""
    chosen = any(re.search(pattern, nodeid) for pattern in CHOSEN)
    return chosen and not re.search(LEFT_OUT, nodeid)
