"""Where random models of many shapes are saved."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """A new folder at each call."""
    return lambda: tmp_path_factory.mktemp("shape")
