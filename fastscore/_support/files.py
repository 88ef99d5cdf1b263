"""Finding out that a result can't be written before the work is done; writing it whole."""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def prepare_directory(fn: str, path: str | os.PathLike[str]) -> Path:
    """The directory ``path``, made if its parent exists, proven writable.

    Raises:
        OSError: the parent is missing, ``path`` is a file, or nothing can be written there.
    """
    directory = Path(path)
    if not directory.exists():
        if not directory.absolute().parent.is_dir():
            raise FileNotFoundError(f"{fn}: the directory {directory.parent} does not exist")
        try:
            directory.mkdir()
        except OSError as error:
            raise type(error)(f"{fn}: can't make the directory {directory}: {error}") from error
    if not directory.is_dir():
        raise NotADirectoryError(f"{fn}: {directory} is not a directory")
    try:
        with tempfile.NamedTemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise type(error)(f"{fn}: can't write to {directory}: {error}") from error
    return directory


def prepare_file(fn: str, path: str | os.PathLike[str], suffixes: tuple[str, ...]) -> Path:
    """The file ``path``, of one of the ``suffixes``, in a directory that exists and is writable.

    Raises:
        ValueError: another suffix.
        OSError: the directory is missing or can't be written to, or ``path`` is no ordinary file.
    """
    file = Path(path)
    if file.suffix not in suffixes:
        raise ValueError(f"{fn}: the output must end in {' or '.join(suffixes)}, got {file}")
    if file.is_dir():
        raise IsADirectoryError(f"{fn}: {file} is a directory")
    if file.exists() and not file.is_file():
        raise OSError(f"{fn}: {file} is not an ordinary file")
    for parent in (file.parent, Path(os.path.realpath(file)).parent):  # of a link, and its target
        if not parent.is_dir():
            raise FileNotFoundError(f"{fn}: the directory {parent} does not exist")
    prepare_directory(fn, parent)
    return file


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A place to write a file to, which becomes ``path`` when the block has ended, and not before.

    The place is the process's own, beside ``path``, and is gone after a failure. The file has the
    permissions of the one that it replaces, or those that an ordinary new file gets. A link stays
    one: what it leads to is replaced.

    Raises:
        OSError: the file can't be written.
    """
    target = Path(os.path.realpath(path))
    own = f"{os.getpid()}.{secrets.token_hex(4)}"
    partial = target.with_name(f".{target.name[:99]}.{own}.partial")
    # The system takes the umask off, which a process can't read without changing it.
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        mode = stat.S_IMODE((target if target.exists() else partial).stat().st_mode)
        yield partial
        partial.chmod(mode)  # whoever wrote it may have made another file of that name
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
