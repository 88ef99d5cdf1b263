"""Files appear whole or not at all, with the permissions that any program's would have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastscore._support.files import prepare_file, whole_file


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_permissions_are_ordinary(umask: int, tmp_path: Path) -> None:
    path = tmp_path / "a"
    with whole_file(path) as partial:
        partial.unlink()  # as a writer that makes a file of its own does
        partial.touch(0o600)
        partial.write_text("one")
        assert not path.exists()
    assert mode(path) == 0o666 & ~umask
    assert path.read_text() == "one"
    path.chmod(0o640)
    with whole_file(path) as partial:
        partial.write_text("two")
        assert path.read_text() == "one"
    assert mode(path) == 0o640
    assert path.read_text() == "two"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_of_a_failure(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def write() -> None:
        with whole_file(path) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_writers_at_once_have_places_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 255)  # as long as a name may be
    with whole_file(path) as first, whole_file(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # the one that ended last


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "a", tmp_path / "a"
    link.symlink_to(target)
    with whole_file(prepare_file("f", link, ("",))) as partial:
        partial.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    link.unlink()
    link.symlink_to(tmp_path / "nowhere" / "a")
    with pytest.raises(FileNotFoundError, match=r"^f: the directory .*nowhere does not exist$"):
        prepare_file("f", link, ("",))


def test_a_device_is_not_replaced() -> None:
    with pytest.raises(OSError, match=r"^f: /dev/null is not an ordinary file$"):
        prepare_file("f", "/dev/null", ("",))
