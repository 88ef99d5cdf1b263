# Two commands on a fresh machine: `make demo` and `make test`. Each sets itself up in .venv.
VENV := .venv
PYTHON := $(VENV)/bin/python
SOURCES := $(shell find csrc setup.py pyproject.toml -type f)

.PHONY: demo test bench lint setup clean

demo: setup
	$(PYTHON) -m fastscore demo --out demo

test: lint
	$(PYTHON) -m pytest

bench: setup
	$(PYTHON) -m pytest -c benchmarks/pytest.ini benchmarks
	$(PYTHON) benchmarks/plot.py

lint: setup
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	git ls-files '*.h' '*.cuh' '*.cpp' '*.cu' | xargs $(VENV)/bin/clang-format --dry-run -Werror

setup: $(VENV)/.built

$(VENV)/.installed: requirements-dev.txt
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

$(VENV)/.built: $(VENV)/.installed $(SOURCES)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

clean:
	rm -rf build dist demo *.egg-info fastscore/*.so $(VENV)
