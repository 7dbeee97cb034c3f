"""Our networks are the authors', layer by layer: compared with a table of their definitions at full width, without numbers."""

import re
from itertools import pairwise

import pytest
import torch
from torch import nn

from dilated_seg.analysis import summary
from dilated_seg.commands.objects import parse_network
from dilated_seg.models import ContextModule, FrontEnd
from tests.support.released_layers import AUTHORS, PUBLISHED, rows

# What each kind of layer is compared by; the rest has no meaning there.
FACTS = {
    "conv": ("kernel", "stride", "padding", "dilation", "groups", "bias", "params", "fixed"),
    "deconv": ("kernel", "stride", "padding", "dilation", "groups", "bias", "params", "fixed"),
    "maxpool": ("kernel", "stride", "padding"),
    "avgpool": ("kernel", "stride", "padding"),
    "bn": ("params",),
    "scale": ("params", "fixed"),
    "lrn": (),
    "max_unpool": (),
}
# Names that the published files of one network give differently, or with characters that a Python path has not.
ALIASES = (("^fc-final$", "final"), ("^ct_", "ctx_"), ("^fc8_.*", "fc8"), ("^seg-score-voc$", "score"))


def published(row):
    for pattern, ours in ALIASES:
        row["name"] = re.sub(pattern, ours, row["name"])
    return [row["name"], row["type"], row["in"], row["out"], *(row[fact] for fact in FACTS[row["type"]]), *row["size"]]


def ours(layer, names):
    facts = {"params": layer.parameters, "fixed": not layer.learnt}
    name = next((n for n in names if layer.name == n or layer.name.endswith(f".{n}")), layer.name)
    values = (facts[fact] if fact in facts else getattr(layer, fact) for fact in FACTS[layer.type])
    return [name, layer.type, layer.in_channels, layer.out_channels, *values, *layer.size]


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_layers_in_order_and_parameters_are_the_authors(name):
    call, margin = PUBLISHED[name]
    net, facts, theirs = parse_network(call).eval(), AUTHORS[name], [published(row) for row in rows(name)]
    layers, _, _ = summary.run(net, tuple(side - margin for side in facts["native_input_hw"]))
    names = [row[0] for row in theirs]
    assert [ours(layer, names) for layer in layers if layer.type in FACTS] == theirs
    assert sum(p.numel() for p in net.parameters()) == facts["total_params"]
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == facts["trainable_params"]


@pytest.mark.parametrize(
    ("name", "size", "expected"), [(name, *case) for name in PUBLISHED for case in AUTHORS[name]["shape_cases"]]
)
def test_scores_have_the_published_sizes(name, size, expected):
    call, margin = PUBLISHED[name]
    layers, _, output = summary.run(parse_network(call).eval(), tuple(side - margin for side in size))
    scores = [layer for layer in layers if layer.type in ("conv", "deconv")][-1]
    cropped = name.startswith("fcn")
    assert (list(output.shape[-2:]) if cropped else list(scores.size)) == expected


def test_every_entry_of_the_table_is_a_network_of_ours():
    assert set(AUTHORS) == set(PUBLISHED)


@pytest.mark.parametrize(("size", "least"), [((900, 900), "released"), ((372, 400), "too small")])
def test_an_unpadded_front_end_names_the_size_that_it_needs(size, least):
    net, image = FrontEnd(2, "valid", width=1 / 64), torch.zeros(1, 3, *size, device="meta")
    if least == "released":
        assert net.to("meta")(image).shape == (1, 2, 66, 66)
    else:
        with pytest.raises(Exception, match="at least 373 x 373 pixels, not 372 x 400"):
            net.to("meta")(image)


@pytest.mark.parametrize(("layers", "border"), [(7, 17), (8, 33), (10, 129)])
def test_padding_once_is_the_unpadded_module_on_padded_maps(layers, border):
    torch.manual_seed(0)
    maps = torch.rand(1, 2, 9, 11)
    once, valid = ContextModule(2, "large", layers, "once"), ContextModule(2, "large", layers, "valid")
    valid.load_state_dict(once.state_dict())
    padded = nn.functional.pad(maps, [border] * 4)
    torch.testing.assert_close(once(maps), valid(padded))


# fcn8s: the table's file is the deployed one, without dropout. SegNet for VOC: a variant with dropout that is not ours.
@pytest.mark.parametrize("name", [name for name in PUBLISHED if name not in ("fcn8s_voc", "segnet_vgg16_voc")])
def test_dropout_is_where_the_authors_have_it(name):
    call, margin = PUBLISHED[name]
    layers, _, _ = summary.run(parse_network(call).eval(), tuple(side - margin for side in AUTHORS[name]["native_input_hw"]))
    net, names = parse_network(call), [row["name"] for row in rows(name)]
    found = []
    for before, layer in pairwise([row for row in layers if row.type in ("conv", "deconv", "dropout", "maxpool")]):
        if layer.type == "dropout":
            after = next(n for n in names if before.name == n or before.name.endswith(f".{n}"))
            found.append([after, net.get_submodule(layer.name).p])
    assert found == AUTHORS[name]["dropouts"]
