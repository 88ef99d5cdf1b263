"""setup.py without what it needs: one line that says how to mend it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run_setup(tmp_path: Path, blocked: list[str]) -> subprocess.CompletedProcess[str]:
    """setup.py in a copy, with imports that fail, and the system's programs alone on the path."""
    shutil.copy(ROOT / "setup.py", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "README.md").touch()
    code = f"""if True:
        import runpy, sys
        for name in {blocked}:
            sys.modules[name] = None
        sys.argv = ["setup.py", "--version"]
        runpy.run_path("setup.py", run_name="__main__")
        """
    env = {**os.environ, "PATH": "/nowhere"}
    run = [sys.executable, "-c", code]
    return subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("blocked", "line"),
    [
        (["pybind11"], "pybind11: pip install pybind11"),
        (["ninja"], "ninja: pip install ninja"),
        (["pybind11", "ninja"], "pybind11 and ninja: pip install pybind11 ninja"),
        (
            ["torch", "pybind11", "ninja"],
            "torch, pybind11 and ninja: pip install torch pybind11 ninja",
        ),
    ],
)
def test_what_building_needs_is_said_in_one_line(
    blocked: list[str], line: str, tmp_path: Path
) -> None:
    done = run_setup(tmp_path, blocked)
    assert done.returncode == 1
    assert done.stderr == f"fastscore: building needs {line}\n"


def test_with_all_of_it_setup_goes_on_and_finds_ninja(tmp_path: Path) -> None:
    done = run_setup(tmp_path, [])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "0.1.0"
