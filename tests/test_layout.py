"""The four packages are this project's own, and share one root."""

from pathlib import Path

import attribution
import circuits
import experiments
import graphs

ROOT = Path(__file__).parent.parent


def test_the_four_packages_share_one_root():
    """`graphs` and `experiments` are names that another distribution could take."""
    for package in (circuits, attribution, graphs, experiments):
        assert ROOT / package.__name__ / "__init__.py" == Path(package.__file__ or "")


def test_public_names_exist():
    for package in (circuits, attribution, graphs, experiments):
        assert all(hasattr(package, name) for name in package.__all__)
