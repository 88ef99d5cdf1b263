"""After a whole run with --emulated=all: nothing that a user's GPU may launch was left out."""

import pytest
from emulator import coverage, plugin

FAMILIES = {"random", "langevin", "multistep", "dsm", "runge_kutta", "sliced", "dual"}


@pytest.mark.last
@pytest.mark.emulated
def test_every_kernel_was_launched(request: pytest.FixtureRequest) -> None:
    if not plugin.is_whole_run(request.config):
        pytest.skip("tells nothing but after a whole run with --emulated=all")
    kernels = coverage()
    assert {kernel.family for kernel in kernels} == FAMILIES
    never = [f"{kernel.family}: {kernel.name}" for kernel in kernels if kernel.launches == 0]
    assert not never
