"""Files that are written whole or not at all."""

import os
import tempfile
from pathlib import Path

from circuits.errors import UserError


def check_writable(path: str | Path, *, overwrite: bool = False) -> Path:
    """Say early whether `path` can be written, before any long computation.

    Raises:
        UserError: the folder does not exist or is not writable, `path` is a folder, or it exists
            and `overwrite` is false.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise UserError(
            f"cannot write {path}: the folder {path.parent} does not exist; make it first"
        )
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write {path}: the folder {path.parent} is not writable")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already; pass overwrite=True (--force) or another name")
    return path


def write_atomically(path: str | Path, data: bytes | str, *, overwrite: bool = False) -> Path:
    """Write `data` to `path` through a neighbouring temporary file and one rename.

    A reader sees the old file or the new one, never a half; a failure leaves the old one.

    Raises:
        UserError: see `check_writable`, and when the disk refuses the write.
    """
    path = check_writable(path, overwrite=overwrite)
    raw = data.encode() if isinstance(data, str) else data
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(raw)
        temporary.chmod(0o666 & ~_umask())
        if overwrite:
            temporary.replace(path)
        else:
            _put_new(temporary, path)
    except FileExistsError:
        raise UserError(
            f"{path} exists already; pass overwrite=True (--force) or another name"
        ) from None
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return path


def _put_new(temporary: Path, path: Path) -> None:
    """Give `temporary` the name `path`, unless another process was first."""
    try:
        os.link(temporary, path)  # unlike a rename, fails if the name is taken
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(path) from None
        temporary.replace(path)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
