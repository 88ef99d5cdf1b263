"""Finding out that a result can't be written before the work is done, not after."""

from __future__ import annotations

import os
import tempfile
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
        OSError: the directory is missing or can't be written to, or ``path`` is a directory.
    """
    file = Path(path)
    if file.suffix not in suffixes:
        raise ValueError(f"{fn}: the output must end in {' or '.join(suffixes)}, got {file}")
    if file.is_dir():
        raise IsADirectoryError(f"{fn}: {file} is a directory")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"{fn}: the directory {file.parent} does not exist")
    prepare_directory(fn, file.parent)
    return file
