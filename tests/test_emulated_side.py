"""The emulated side itself: that it is on where it says so, and nowhere else, and is strict."""

from __future__ import annotations

import ast
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from emulator import EmulationError, build, configured, emulated, is_emulating, launches, side
from helpers import assert_same_bytes, make_key, randn

import fastscore
from fastscore import ops

ROOT = Path(__file__).parents[1]
needs_compilers = pytest.mark.emulated


@needs_compilers
def test_kernels_run_emulated_inside_the_context_alone() -> None:
    key = make_key(3, 4)
    with launches() as record:
        want = fastscore.random.normal(key, (5, 7))
        with emulated():
            assert is_emulating()
            got = fastscore.random.normal(key, (5, 7))
            with emulated():
                fastscore.random.normal(key, (5, 7))
            fastscore.random.uniform(key, (5, 7))
        assert not is_emulating()
        fastscore.random.normal(key, (5, 7))
    assert [launch.op for launch in record] == 2 * ["random_normal_"] + ["random_uniform_"]
    assert_same_bytes(got, want)


@needs_compilers
def test_backward_and_other_threads_are_emulated_too() -> None:
    x, key = randn(3, 70, seed=1).requires_grad_(), make_key(1)
    table, labels = torch.ones(1, 3, dtype=torch.float64), torch.zeros(3, dtype=torch.int64)
    with emulated(), launches() as record, ThreadPoolExecutor(4) as pool:
        ops.dsm_residual(x, table, labels, key).sum().backward()
        drawn = list(pool.map(lambda d: fastscore.random.normal(make_key(1, d), (40, 3)), range(8)))
    assert [launch.op for launch in record[:2]] == ["dsm_residual", "dsm_residual_backward"]
    assert len(record) == 10
    for draw, z in enumerate(drawn):
        assert_same_bytes(z, fastscore.random.normal(make_key(1, draw), (40, 3)))


@needs_compilers
def test_an_error_of_the_op_stays_what_it_is() -> None:
    table = torch.ones(1, 4, dtype=torch.float64)
    with emulated(), pytest.raises(ValueError, match=r"^langevin_step: score must be of shape"):
        ops.langevin_step(torch.zeros(3), torch.zeros(4), table, make_key(1))


@needs_compilers
def test_a_write_to_what_the_schema_does_not_change_is_a_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = side._op
    monkeypatch.setattr(side, "_op", lambda name: (known(name)[0], ()))
    out = torch.zeros(2, 9)
    with emulated(), pytest.raises(EmulationError, match=r"(?s)^random_normal_\(.*fill"):
        ops.normal_(out, make_key(1))
    monkeypatch.undo()
    with emulated():  # nothing of it is left
        ops.normal_(out, make_key(1))


@needs_compilers
def test_a_launch_that_no_device_takes_fails() -> None:
    """Less than no multiprocessor, more than all blocks."""
    fault = r"(?s)invalid configuration argument.*emulated"
    output, labels = torch.zeros(2, 200_000), torch.zeros(2, dtype=torch.int64)
    table = torch.ones(1, 3, dtype=torch.float64)
    args = (output.clone(), torch.ones(2), 0.5, output, table, labels, make_key(1), 0)
    with emulated(), configured(multiprocessors=-1), pytest.raises(RuntimeError, match=fault):
        torch.ops.fastscore.dsm_residual_regrad_(*args)


@needs_compilers
def test_settings_are_taken_back() -> None:
    before = dict(side._state.settings)
    with configured(order="shuffled", seed=9, multiprocessors=3, check_races=False):
        assert side._state.settings["multiprocessors"] == 3
    assert side._state.settings == before


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="there is no setting colour"), configured(colour=3):
        pass


# ---- the build -----------------------------------------------------------------------------


def test_kernels_are_compiled_as_setup_compiles_them() -> None:
    tool = ast.parse((ROOT / "tools/cuda_resources.py").read_text())
    flags = next(
        ast.unparse(node.value)
        for node in tool.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FLAGS"
    )
    wanted = [*build.setup_flags("NVCC"), *build.setup_flags("STABLE_ABI")]
    assert "-fmad=false" in wanted
    assert not [flag for flag in wanted if repr(flag) not in flags]


def test_without_nvcc_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    assert side.why_not() == "no nvcc on the PATH or in CUDA_HOME"


@needs_compilers
def test_host_code_may_call_nothing_that_the_emulator_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = shutil.copy(build.build_library(), tmp_path / "library.so")
    build.check_what_it_takes(library)
    monkeypatch.setattr(build, "PYTORCHS_OWN", build.re.compile("aoti_torch_get_dim"))
    with pytest.raises(RuntimeError, match=r"calls .*aoti_torch_get_sizes.* doesn't know"):
        build.check_what_it_takes(library)


@needs_compilers
def test_a_function_of_cuda_that_is_not_stood_in_for_does_not_link(tmp_path: Path) -> None:
    source = tmp_path / "kernel.cpp"
    call = "int f() { void* p; return cudaMalloc(&p, 4); }"
    source.write_text(f'extern "C" int cudaMalloc(void**, unsigned long);\n{call}\n')
    with pytest.raises(RuntimeError, match="undefined reference to `cudaMalloc'"):
        build.link([build.emulator_object(source)], "test")
