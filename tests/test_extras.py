"""Optional packages: what is missing is named, with the command that mends it, before any work."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from fastscore._support.checks import check_device_there
from fastscore._support.extras import require, require_all


def test_what_is_there_is_returned() -> None:
    assert require("f", "math", "maths") is sys.modules["math"]
    assert require_all("f", {"json": "json", "os.path": "os"})[1].join("a", "b") == "a/b"


def test_the_message_is_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match=r"^f: needs tqdm: pip install tqdm$"):
        require("f", "tqdm", "tqdm")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    packages = {"sklearn": "scikit-learn", "math": "maths", "tqdm": "tqdm"}
    message = r"^f: --x needs scikit-learn and tqdm: pip install scikit-learn tqdm$"
    with pytest.raises(ImportError, match=message):
        require_all("f", packages, what="--x")


def test_a_package_that_fails_to_import_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_extra.py").write_text("raise ImportError('no libfoo.so')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError, match=r"^f: needs b, which fails to import: no libfoo.so$"):
        require("f", "broken_extra", "b")


def test_a_device_is_there_or_not() -> None:
    assert check_device_there("f", "cpu") == torch.device("cpu")
    assert check_device_there("f", torch.device("cpu")) == torch.device("cpu")
    for name in ["nonsense", "mps", "hpu", "cuda:99"]:
        message = rf"^f: device must be a device that is there, got {name} \(.+\)$"
        with pytest.raises(ValueError, match=message):
            check_device_there("f", name)
    with pytest.raises(TypeError, match=r"^f: device must be a device .*, got NoneType$"):
        check_device_there("f", None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_cuda_without_cuda() -> None:
    with pytest.raises(ValueError, match=r"^f: device must be a device that is there, got cuda \("):
        check_device_there("f", "cuda")
