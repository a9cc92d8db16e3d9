"""A folder with one file of arrays for each prompt, so that an interrupted run goes on.

A file is written whole or not at all, under a name made from what its numbers depend on; what they
all depend on is in `settings.json`, and a folder with other settings is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from attribution.digest import digest
from circuits import Prompt, UserError
from circuits.files import write_atomically
from circuits.formats.array_files import read_json

SETTINGS = "settings.json"
FORMAT = "gemma-circuits effects by prompt"


@dataclass(frozen=True)
class PromptStore:
    """Arrays by name (`effects/1f3a...`) in a folder. Made by `open_store`."""

    folder: Path

    def __contains__(self, name: str) -> bool:
        return self._path(name).exists()

    def write(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write the arrays of one prompt, whole or not at all."""
        path = self._path(name)
        _make(path.parent)
        data = save({key: np.ascontiguousarray(array) for key, array in arrays.items()})
        write_atomically(path, data, overwrite=True)

    def read(self, name: str, prefix: str = "") -> dict[str, np.ndarray]:
        """The arrays whose names begin with `prefix`, without it; others are not read.

        Raises:
            UserError: the file is damaged.
        """
        path = self._path(name)
        try:
            with safe_open(path, framework="numpy") as file:
                keys = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118
                return {key.removeprefix(prefix): file.get_tensor(key) for key in keys}
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{path} is damaged; delete it and run again") from error

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


@contextmanager
def open_store(path: str | Path | None, settings: Mapping[str, Any]) -> Iterator[PromptStore]:
    """The store at `path`, made if it is not there; a temporary one where `path` is None.

    Raises:
        UserError: the folder holds something else or was made with other `settings`.
    """
    if path is None:
        with TemporaryDirectory(prefix="circuits-") as folder:
            yield PromptStore(Path(folder))
        return
    folder = Path(path)
    _make(folder)
    if (folder / SETTINGS).exists():
        _check_settings(folder, settings)
    elif any(not file.name.startswith(".") for file in folder.iterdir()):
        raise UserError(f"{folder} holds other files; give a new folder, or an earlier run's")
    else:
        text = json.dumps({"format": FORMAT, **settings}, indent=1) + "\n"
        write_atomically(folder / SETTINGS, text, overwrite=True)
    yield PromptStore(folder)


def prompt_key(prompt: str | Prompt, metric: str) -> str:
    """A file name made from a prompt and the name of its metric."""
    return digest([asdict(prompt) if isinstance(prompt, Prompt) else prompt, metric])


def _check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    found = read_json(folder / SETTINGS)
    if found.get("format") != FORMAT:
        raise UserError(f"{folder} holds other files; give a new folder, or an earlier run's")
    wanted = json.loads(json.dumps(settings))  # as JSON gives it back
    other = [key for key in wanted if found.get(key) != wanted[key]]
    if other:
        told = ", ".join(
            f"{key}={_short(found.get(key))}, now {_short(wanted[key])}" for key in other
        )
        raise UserError(f"{folder} was made with {told}; give a new folder, or the same settings")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from error
