"""The pages of docs/ say what is so: their numbers are computed again, what they quote is what we print."""

import doctest

from tests.conftest import ROOT


def test_the_worked_example_of_the_protocol_gives_the_numbers_it_shows():
    result = doctest.testfile(str(ROOT / "docs/protocol.md"), module_relative=False)
    assert result.failed == 0
    assert result.attempted >= 12
