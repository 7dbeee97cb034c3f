"""Objects written as constructor calls on the command line."""

import pytest

from dilated_seg.commands.objects import parse_crf, parse_network, parse_strategy
from dilated_seg.errors import UserError
from dilated_seg.inference.strategies import MultiScale, Tiles
from dilated_seg.models import FCN
from dilated_seg.models.build import format_call, parse_call


def test_a_call_is_read_without_running_anything():
    assert parse_call("Net(1/2, [1, 2], 'x', form=authors, deep=true, none=null)", "network", "FCN(21)") == (
        "Net", [0.5, (1, 2), "x"], {"form": "authors", "deep": True, "none": None},
    )  # fmt: skip
    with pytest.raises(UserError, match=r"cannot parse network 'Net\(open\('x'\)\)': write its class .*, such as 'FCN\(21\)'"):
        parse_call("Net(open('x'))", "network", "FCN(21)")


def test_what_is_formatted_is_parsed_again():
    call = format_call("FCN", 3, stride=8, form="authors")
    assert call == "FCN(3, stride=8, form='authors')"
    net = parse_network(call)
    assert isinstance(net, FCN) and net.output_stride == 8 and net.score_fr.weight.is_meta


def test_a_strategy_may_hold_another_and_a_crf_has_its_parameters():
    strategy = parse_strategy("MultiScale(scales=(0.5, 1), each=Tiles(size=(64, 64), overlap=0))")
    assert isinstance(strategy, MultiScale) and isinstance(strategy.each, Tiles)
    assert parse_crf("DenseCRF(w1=5)").w1 == 5
    with pytest.raises(UserError, match="there is no CRF Tiles: choose one of DenseCRF"):
        parse_crf("Tiles(size=(64, 64))")
