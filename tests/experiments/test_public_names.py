"""What `from experiments import ...` gives is the same before and after its module was imported."""

from importlib import import_module
from pkgutil import iter_modules

import experiments


def test_each_public_name_is_what_its_module_defines():
    for name in experiments.__all__:
        home = import_module(f"experiments.{experiments._HOMES[name]}")
        assert getattr(experiments, name) is getattr(home, name)


def test_no_public_name_is_a_module_s():
    """Else the module, once imported, would stand in the function's place."""
    modules = {module.name for module in iter_modules(experiments.__path__)}
    assert not modules & set(experiments.__all__)
