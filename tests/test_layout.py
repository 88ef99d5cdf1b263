"""One family, one name, in every room; and no code shared between instruction sets."""

import ast
import importlib
import inspect
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastscore

ROOT = Path(__file__).parents[1]
FAMILIES = ["random", "langevin", "multistep", "dsm", "runge_kutta", "sliced", "dual"]
# A function of the family's own name would hide a module of that name.
MODULES = {"dual": "duals"}
ROOMS = [
    "csrc/core/{}.h",
    "csrc/cpu/{}.cpp",
    "csrc/cpu/isa/{}.cpp",
    "csrc/cuda/{}.cu",
    "fastscore/ops/{module}.py",
    "fastscore/reference/{module}.py",
    "tests/test_{}.py",
    "benchmarks/bench_{}.py",
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("room", ROOMS)
def test_every_family_is_in_every_room(family, room):
    assert (ROOT / room.format(family, module=MODULES.get(family, family))).is_file()


# The house, from the ground up: a room imports from itself and from the rooms before it.
FLOORS = [
    "_support",
    "reference",
    "ops",
    "random schedules conditioning",
    "derivatives operators",
    "scores",
    "nn sde",
    "losses samplers guidance",
    "evaluation",
    "checkpoint pictures",
    "__init__",
    "apps",
    "__main__",
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imports_of(path: Path) -> set[str]:
    """The modules of this package that a file imports, wherever in it that stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in inside if is_module(name) or name == "fastscore._C"]
            names.update(modules or [str(node.module)])
    return {name for name in names if name.split(".")[0] == "fastscore"}


def is_module(module: str) -> bool:
    path = ROOT / module.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def test_no_room_imports_from_a_higher_one():
    upwards = []
    for path in sorted((ROOT / "fastscore").rglob("*.py")):
        parts = path.relative_to(ROOT / "fastscore").parts
        room = parts[0].removesuffix(".py")
        assert room in FLOOR_OF, f"{path}: in no room of the house"
        for name in imports_of(path):
            other = room_of(name)
            if other != room and other != "_C" and FLOOR_OF[other] >= FLOOR_OF[room]:
                upwards.append(f"{'/'.join(parts)} imports {name}")
    assert not upwards


def test_no_public_function_hides_a_module():
    for info in pkgutil.walk_packages(fastscore.__path__, "fastscore."):
        package, _, name = info.name.rpartition(".")
        found = getattr(importlib.import_module(package), name, None)
        assert found is None or inspect.ismodule(found), f"{info.name} is hidden by {found}"


def test_modules_that_have_moved_keep_their_old_names():
    code = """if True:
        import warnings
        warnings.simplefilter("error")
        import fastscore
        warnings.simplefilter("default")
        with warnings.catch_warnings(record=True) as caught:
            from fastscore.divergence import divergence, output_and_divergence
            from fastscore.jvp import jvp, jvps, quadratic_forms
            from fastscore.metrics import fisher_divergence
            from fastscore.nn.checkpoint import load_checkpoint
            from fastscore.nn import checkpoint
            from fastscore.bench.measure import measure
            import fastscore.quality
            fastscore.nn.checkpoint.Checkpoint
        assert len(caught) == 7, [str(w.message) for w in caught]
        assert all(w.category is DeprecationWarning for w in caught)
        assert checkpoint.load_checkpoint is load_checkpoint is fastscore.load_checkpoint
        assert fastscore.quality.frechet_distance is fastscore.evaluation.frechet_distance
        assert measure.__module__ == "fastscore.apps.bench.measure"
        assert fastscore.divergence(lambda x: -x, fastscore.random.normal(
            fastscore.random.key(0), (1, 2))).tolist() == [-2.0]
        warnings.simplefilter("ignore")
        from fastscore.samplers.langevin import langevin
        from fastscore.ops.dual import dual_silu
        from fastscore.jvp import *
        assert jvps is fastscore.jvps and langevin is fastscore.langevin
        try:
            from fastscore.metrics import nonsense
        except ImportError as error:
            assert "cannot import name" in str(error)
        try:
            import fastscore.nonsense
        except ModuleNotFoundError:
            print("right")
        """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "right", run.stderr
    command = [sys.executable, "-m", "fastscore.cli", "--version"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("fastscore ")


@pytest.mark.parametrize("name", fastscore.ops.__all__)
def test_reference_has_the_same_signature(name):
    fused, plain = getattr(fastscore.ops, name), getattr(fastscore.reference, name)

    def arguments(function):
        return [
            (p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()
        ]

    assert arguments(fused) == arguments(plain)


def test_every_schema_is_written_in_one_place():
    text = (ROOT / "csrc/library.cpp").read_text()
    defined = set(re.findall(r'"(\w+)\(Tensor', text))
    registered = {
        name.partition("::")[2].partition(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("fastscore::")
    }
    assert defined == registered


def test_streams_have_the_same_numbers_on_both_sides():
    text = (ROOT / "csrc/core/streams.h").read_text()
    numbers = {name.upper(): int(n) for name, n in re.findall(r"k(\w+) = (\d+)", text)}
    assert numbers == {s.name: s.value for s in fastscore.random.Stream}


@pytest.mark.skipif(not shutil.which("nm"), reason="needs nm to read the symbols")
def test_instruction_sets_share_no_function():
    library = importlib.import_module("fastscore._C").__file__
    run = ["nm", "-C", "--defined-only", library]
    names = subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()
    kernels = [line for line in names if re.search(r"fastscore::cpu_(avx2|avx512|default)::", line)]
    assert {m for line in kernels for m in re.findall(r"cpu_(\w+?)::", line)} == {
        "avx2",
        "avx512",
        "default",
    }
    # What a kernel unit emits for others to use (weak) must carry its instruction set's name. A
    # weak std:: or fastscore:: function could be taken from the AVX-512 unit on any machine.
    mixed = [line for line in kernels if len(set(re.findall(r"cpu_(\w+?)::", line))) > 1]
    assert not mixed


@pytest.mark.skipif(not shutil.which("nm"), reason="needs nm to read the symbols")
def test_kernel_units_define_only_names_of_their_own(tmp_path):
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    for unit in sorted((ROOT / "csrc/cpu/isa").glob("*.cpp")):
        target = tmp_path / f"{unit.stem}.o"
        # -fno-inline emits every inline function that is not forced inline.
        flags = ["-std=c++20", "-O1", "-fno-inline", "-mavx2", "-mfma", "-mf16c", f"-I{ROOT}/csrc"]
        macros = ["-DFASTSCORE_LANES_AVX2", "-DFASTSCORE_ISA=cpu_avx2"]
        subprocess.run([compiler, *flags, *macros, "-c", unit, "-o", target], check=True)
        run = ["nm", "-C", "--defined-only", "--extern-only", target]
        lines = subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()
        foreign = [line for line in lines if "cpu_avx2::" not in line]
        assert not foreign, f"{unit.name}: {foreign}"


@pytest.mark.parametrize("checkout", [True, False])
def test_without_the_compiled_library_the_import_says_what_to_do(
    checkout: bool, tmp_path: Path
) -> None:
    ignored = shutil.ignore_patterns("_C*", "__pycache__")
    shutil.copytree(ROOT / "fastscore", tmp_path / "fastscore", ignore=ignored)
    if checkout:
        (tmp_path / "setup.py").touch()
    run = [sys.executable, "-S", "-c", "import fastscore"]  # -S: no editable install of it
    path = {**os.environ, "PYTHONPATH": str(Path(torch.__file__).parents[1])}
    done = subprocess.run(run, cwd=tmp_path, env=path, capture_output=True, text=True, check=False)
    expected = "are not built in place: import an installed" if checkout else "Build it with"
    assert "fastscore._C could not be loaded" in done.stderr
    assert expected in done.stderr


def test_every_option_of_the_tests_is_listed_in_one_place() -> None:
    listed = set(re.findall(r"FASTSCORE_TEST_\w+", (ROOT / "CONTRIBUTING.md").read_text()))
    files = [path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)]
    used = {name for path in files for name in re.findall(r"FASTSCORE_TEST_\w+", path.read_text())}
    assert used == listed
