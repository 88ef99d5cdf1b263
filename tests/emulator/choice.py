"""Which tests run on the emulated side, and which never."""

from __future__ import annotations

import re

# Modules that --emulated=all runs a second time with every op emulated.
WHOLE = frozenset({
    "test_closed_form", "test_divergence", "test_dsm", "test_dsm_reduced", "test_dual",
    "test_dual_slope", "test_fisher", "test_gradients_off", "test_jvp", "test_jvp_layers",
    "test_jvp_rules", "test_langevin", "test_losses", "test_mixed_samples",
    "test_one_reverse_pass", "test_random", "test_sample_identity", "test_sampler_batches",
    "test_sampler_options", "test_samplers", "test_samples", "test_score_matching", "test_sliced",
    "test_ssm", "test_ssm_models", "test_ssm_use", "test_vmap", "test_writes",
})  # fmt: skip

NEVER: dict[str, str] = {}  # by a pattern of test names: the reason

CHOSEN: tuple[str, ...] = (r"",)  # patterns of what --emulated=some runs


def why_never(nodeid: str) -> str | None:
    """Why a test is never emulated, if it isn't."""
    return next((why for pattern, why in NEVER.items() if re.search(pattern, nodeid)), None)


def is_chosen(nodeid: str) -> bool:
    return any(re.search(pattern, nodeid) for pattern in CHOSEN)
