"""Encoders of timm in the networks of the papers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dilated_seg import weights
from dilated_seg.__main__ import main
from dilated_seg.errors import UserError
from dilated_seg.inference import load
from dilated_seg.models import FCN, DeepLabV1, DilatedNet, UNet, timm_encoder
from dilated_seg.runs import Run
from dilated_seg.task import SegmentationTask
from dilated_seg.weights import normalization
from tests.support.tolerance import assert_equal_but_for_rounding

timm = pytest.importorskip("timm", reason="timm, the extra 'timm', is not installed")

# One of each family, and whether timm can dilate it.
FAMILIES = {
    "resnet50": True,
    "resnext50_32x4d": True,
    "regnety_016": True,
    "convnext_tiny.fb_in1k": True,
    "efficientnet_b0": True,
    "mobilenetv3_large_100": True,
    "resnest50d": True,
    "densenet121": False,
    "hrnet_w18": False,
    "vgg16": False,
    "swin_tiny_patch4_window7_224": False,
    "pvt_v2_b0": False,
}
SMALL = {"resnet10t": True, "convnext_atto": True, "mobilenetv3_small_050": True, "pvt_v2_b0": False}
UNSUITABLE = {
    "vit_tiny_patch16_224": "at strides 16, and this network needs 8, 16, 32",
    "maxvit_tiny_tf_224": "does not accept images of any size",
    "inception_v4": "does not accept images of any size",
    "convnext_tinny": "not a network of timm: did you mean convnext_tiny",
    "convnext_tiny.fb_in2k": "no such weights of convnext_tiny: leave them out, or .*convnext_tiny.fb_in1k",
    "hf-hub:timm/convnext_tiny.fb_in1k": "not a network of timm",
}


def build_all(name, dilated):
    """Return the networks that an encoder fits, on the current device."""
    networks = [FCN(5, 8, width=1 / 16, encoder=name), UNet(5, width=1 / 16, encoder=name)]
    if dilated:
        networks += [DeepLabV1(5, width=1 / 16, encoder=name), DilatedNet(5, width=1 / 16, encoder=name)]
    return networks


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_logits_of_the_size_of_the_image(name):
    with torch.device("meta"), torch.no_grad():
        for network in build_all(name, FAMILIES[name]):
            for size in ((75, 100), (33, 47), (1, 1)):
                assert network.eval()(torch.empty(1, 3, *size)).shape == (1, 5, *size)


@pytest.mark.parametrize(("name", "dilated"), SMALL.items())
def test_small_encoders_are_computed_and_trained(name, dilated):
    for network in [FCN(5, 32, encoder=name), *build_all(name, dilated)]:
        for layer, part in network.named_modules():  # scores that start at zero would hide what is before them
            if "score" in layer and isinstance(part, torch.nn.Conv2d):
                torch.nn.init.normal_(part.weight)
        assert network(torch.randn(2, 3, 64, 64)).shape == (2, 5, 64, 64)
        network(torch.randn(2, 3, 65, 50)).square().mean().backward()
        learnt = {key: parameter for key, parameter in network.named_parameters() if parameter.requires_grad}
        assert [key for key, parameter in learnt.items() if parameter.grad is None or not parameter.grad.isfinite().all()] == []


@pytest.mark.parametrize("name", [name for name, dilated in FAMILIES.items() if not dilated])
def test_an_encoder_that_timm_cannot_dilate_is_refused_with_the_names_of_others(name):
    for network in (DeepLabV1, DilatedNet):
        with torch.device("meta"), pytest.raises(ValueError, match=f"{name}' cannot have an output stride of 8.*resnet50"):
            network(3, encoder=name)


@pytest.mark.parametrize("name", UNSUITABLE)
def test_an_unsuitable_encoder_is_refused_in_one_sentence(name):
    with torch.device("meta"), pytest.raises(ValueError, match=UNSUITABLE[name]):
        FCN(3, 8, encoder=name)


@pytest.mark.slow
def test_the_suggested_encoders_fit_every_network():
    with torch.device("meta"):
        for name in timm_encoder.SUGGESTED.replace(" or ", ", ").split(", "):
            assert FCN(3, 8, encoder=name) and DeepLabV1(3, encoder=name) and UNet(3, encoder=name)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: FCN(2, form="authors", encoder="resnet18"), "needs VGG-16"),
        (lambda: DilatedNet(2, padding="reflect", encoder="resnet18"), "needs VGG-16"),
        (lambda: UNet(2, form="authors", encoder="resnet18"), "form='authors'"),
        (lambda: DeepLabV1(2, msc=True, encoder="resnet18"), "needs VGG-16"),
        (lambda: FCN(2, resnet=18, encoder="resnet18"), "both replace VGG-16"),
    ],
)
def test_arguments_that_need_vgg_are_refused(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()


@pytest.mark.parametrize("build", [UNet, FCN, DeepLabV1])
def test_encoders_take_images_of_other_channels(build):
    net = build(2, encoder="resnet18", in_channels=4)
    with torch.no_grad():
        assert net.eval()(torch.zeros(1, 4, 64, 64)).shape == (1, 2, 64, 64)
    assert net.encoder.normalization is None


def test_without_timm_the_message_names_the_extra(monkeypatch):
    monkeypatch.setattr("dilated_seg.errors.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"encoder='resnet18' needs timm: pip install timm \(the extra 'timm'\)"):
        FCN(2, encoder="resnet18")


def test_features_are_those_of_timm_and_keep_their_initial_values():
    torch.manual_seed(0)
    encoder = FCN(3, 8, width=1 / 16, encoder="resnet18").double().eval().encoder
    theirs = timm.create_model("resnet18", features_only=True).double().eval()
    theirs.load_state_dict(encoder.net.state_dict())
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    for ours, feature in zip(encoder(image), theirs(image)[2:], strict=True):
        assert_equal_but_for_rounding(ours, feature)
    assert encoder.net.layer4[1].bn2.weight.abs().max() == 0  # timm's zero start of a block's last batch norm


@pytest.mark.parametrize("dilated", [False, True])
def test_our_resnet_and_timms_give_the_same_logits(dilated):
    """Ours has torchvision's names, timm's the same, so that both take the same weights."""
    build = DilatedNet if dilated else lambda classes, **kwargs: FCN(classes, 8, **kwargs)
    ours, theirs = build(3, resnet=50).double().eval(), build(3, encoder="resnet50").double().eval()
    state = {key.replace("encoder.", "encoder.net."): tensor for key, tensor in ours.state_dict().items()}
    theirs.load_state_dict(state)
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        assert_equal_but_for_rounding(ours(image), theirs(image))


def test_fc6_and_fc7_are_added_with_fc_channels():
    with torch.device("meta"):
        network = FCN(3, 8, encoder="resnet18", fc_channels=64)
        assert network.get_parameter("classifier.fc6.weight").shape == (64, 512, 7, 7)
        assert network(torch.empty(1, 3, 65, 50)).shape == (1, 3, 65, 50)
        assert not hasattr(FCN(3, 8, encoder="resnet18").classifier, "fc6")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A repository at the Hub for each of timm's networks, with random weights; returns those of a name."""
    states = {}

    def write(name):
        if name not in states:
            states[name] = timm.create_model(name, pretrained=False).state_dict()
            save_file(states[name], tmp_path / f"{name}.safetensors")
        return states[name]

    def download(repository, file):
        assert file == "model.safetensors" and repository.startswith("timm/")
        name = repository.removeprefix("timm/")
        write(name)
        return str(tmp_path / f"{name}.safetensors")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return write


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("resnet18.a1_in1k", "conv1.weight"),
        ("convnext_atto.d2_in1k", "stem.0.weight"),
        ("mobilenetv3_small_050.lamb_in1k", "conv_stem.weight"),
        ("vgg11.tv_in1k", "features.0.weight"),
        ("densenet121.ra_in1k", "features.conv0.weight"),
        ("swin_tiny_patch4_window7_224.ms_in1k", "patch_embed.proj.weight"),
    ],
)
def test_timms_weights_fill_the_encoder(name, first, hub):
    network = FCN(3, 8, width=1 / 16, encoder=name)
    result, mean, std = weights.load(network, "imagenet")
    assert {key for key, _ in result.missing if key.startswith("encoder.")} == set()
    assert all("encoder.net" in key and not key.startswith("encoder.net.stages") for key, _ in result.unexpected)
    assert any(torch.equal(tensor, hub(name)[first]) for tensor in network.encoder.state_dict().values())
    config = timm.get_pretrained_cfg(name)
    assert mean == pytest.approx([255 * n for n in config.mean], abs=1e-3)
    assert std == pytest.approx([255 * n for n in config.std], abs=1e-3)


def test_a_file_of_another_network_is_refused(hub, tmp_path):
    for name in ("resnet18.a1_in1k", "resnet34.a1_in1k"):
        hub(name)
    for encoder, file, sentence in (("resnet34", "resnet18", "lacks layer1.2.bn1"), ("resnet18", "resnet34", "has layer1.2")):
        with pytest.raises(UserError, match=f"{sentence}.*of another network than encoder='{encoder}'"):
            weights.load(FCN(3, encoder=encoder), tmp_path / f"{file}.a1_in1k.safetensors")


def test_nothing_is_downloaded_unless_weights_ask_for_it(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    network = FCN(3, encoder="resnet18.a1_in1k")
    with pytest.raises(UserError, match=r"timm/resnet18.a1_in1k from the Hugging Face Hub \(no network\): fetch it"):
        normalization.fetch_imagenet(network)


def test_the_task_normalizes_as_the_encoder():
    with torch.device("meta"):
        network = FCN(3, encoder="xception41")
    task = SegmentationTask(network.to_empty(device="cpu"), 3)
    assert task.model.mean.flatten().tolist() == task.model.std.flatten().tolist() == [127.5] * 3


@pytest.mark.slow
def test_describe_states_a_receptive_field_where_it_can_be_derived(capsys):
    for name, derived in (("resnet10t", True), ("convnext_atto", False)):
        call = f"FCN(3, stride=8, encoder='{name}')"
        assert main(["describe", call, "--json", "--size", "65", "96"]) == 0
        (summary,) = json.loads(capsys.readouterr().out)
        with torch.device("meta"):
            assert summary["parameters"] == sum(p.numel() for p in FCN(3, stride=8, encoder=name).parameters())
        assert summary["layers"][0]["name"].startswith("encoder.net.") and summary["layers"][0]["output_stride"]
        assert (summary["receptive_field"] is not None) == (summary["lost"] == "") == derived
    assert main(["describe", call, "--size", "65", "96"]) == 0
    assert "receptive field:  cannot be derived beyond aten." in capsys.readouterr().out


EXPERIMENT = """
data: {class_path: Shapes, init_args: {size: [64, 64], batch_size: 2, num_workers: 0, images: [4, 2, 2]}}
model:
  net: {class_path: FCN, init_args: {stride: 8, encoder: resnet10t}}
  weights: imagenet
  optimizer: {class_path: AdamW, init_args: {lr: 1.0e-3}}
trainer: {max_steps: 2, val_check_interval: 2}
"""


@pytest.mark.slow
def test_a_run_with_an_encoder_of_timm_is_trained_segmented_with_and_exported(tmp_path, monkeypatch, hub):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(EXPERIMENT)
    assert main(["fit", "--config", "mine.yaml", "--run_dir", "runs/mine", "--wandb", "false"]) == 0
    run = Run("runs/mine")
    assert run.checkpoint("last") is not None
    for kind, out in (("hub", "exported"), ("onnx", "mine.onnx")):
        assert main(["export", "runs/mine", "--format", kind, "--out", out]) == 0
    image = torch.randint(0, 256, (1, 3, 50, 65), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(load("runs/mine")(image), load("exported")(image))
