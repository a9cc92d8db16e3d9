"""Whole numbers are those of Python and numpy alike; whatever else comes is told."""

import numpy as np
import pytest

from circuits import UserError
from circuits.whole_numbers import checked_seed, number_or_none, whole_number


@pytest.mark.parametrize("number", [3, np.int64(3), np.uint8(3)])
def test_whole_numbers_of_any_library_are_python_s_own(number):
    assert whole_number("n", number, 3) == 3
    assert type(whole_number("n", number)) is int
    assert type(checked_seed(number)) is int


@pytest.mark.parametrize("number", [0, 1.0, np.float32(1), True, np.True_, "1", None])
def test_what_is_none_is_told(number):
    with pytest.raises(UserError) as error:
        whole_number("n", number, note=", such as 7")
    assert str(error.value) == f"n={number!r}; give a whole number from 1 on, such as 7"


def test_none_may_have_a_meaning():
    assert number_or_none("n", None, "all") is None
    assert number_or_none("n", np.int64(2), "all") == 2
    with pytest.raises(UserError, match="n=0; give a whole number from 1 on, or None for all"):
        number_or_none("n", 0, "all")
