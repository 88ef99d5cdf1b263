"""Fixtures shared by all tests: ``device`` and ``other`` are in tests/emulator/plugin.py."""

pytest_plugins = ["emulator.plugin"]
