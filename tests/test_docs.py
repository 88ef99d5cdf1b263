"""Every example in a docstring and in the README runs and prints what it says."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import fastscore

README = Path(__file__).parents[1] / "README.md"
MODULES = [
    module.name
    for module in pkgutil.walk_packages(fastscore.__path__, "fastscore.")
    if not module.name.endswith(("_C", "__main__"))
]


@pytest.mark.parametrize("name", ["fastscore", *MODULES])
def test_docstring_examples(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


@pytest.mark.parametrize("name", fastscore.__all__)
def test_every_public_name_is_documented_with_an_example(name):
    thing = getattr(fastscore, name)
    assert thing.__doc__, name
    if callable(thing):
        assert ">>>" in thing.__doc__, name


def test_readme_snippets_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert snippets
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(snippet, names)
