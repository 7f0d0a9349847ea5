"""Every choice of the keypoint losses is one word on the command line."""

import inspect
from functools import partial
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from hydra.utils import instantiate

from handmim.losses import keypoint_agree, keypoint_align, latent_equivariance, peclr

CONFIGS = Path(__file__).parents[2] / "configs"


def composed(*overrides: str):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        chosen = ["data=folder", "data.root=x", "method=handmim-plain", *overrides]
        return compose("pretrain", overrides=chosen).task


def built(loss: str, *overrides: str):
    return instantiate(composed(f"loss=[{loss}]", *overrides).losses[loss]).term


@pytest.mark.parametrize("module", [keypoint_align, keypoint_agree, peclr, latent_equivariance])
def test_yaml_names_every_option_and_gives_the_defaults(module):
    loss = module.__name__.rsplit(".", 1)[1]
    extra = ["keypoint_align", loss] if loss == "keypoint_agree" else [loss]
    node = composed(f"loss=[{','.join(extra)}]").losses[loss].term
    given = {k: v for k, v in node.items() if k != "_target_"}
    assert given == {k: p.default for k, p in inspect.signature(module.Term).parameters.items()}


def test_discrimination_is_one_word_and_brings_its_head():
    assert built("keypoint_align").disc == "nce"
    assert "disc" not in built("keypoint_align", "keypoint_disc=none").weights
    assert "keypoint_classes" in built("keypoint_align", "keypoint_disc=proto").needs
    for disc, has_head in (("none", False), ("nce", False), ("proto", True)):
        heads = composed("loss=[keypoint_align]", f"keypoint_disc={disc}").heads
        assert ("keypoint_prototypes" in heads) == has_head


def test_heads_are_one_word():
    task = composed("loss=[keypoint_align]")
    assert set(task.heads) == {"keypoint"}
    task = composed(
        "loss=[keypoint_align,keypoint_agree]",
        "keypoint_head=soft_argmax",
        "keypoint_predictor=mlp",
        "task.heads.keypoint.num_keypoints=16",
        "task.heads.keypoint.num_dims=3",
    )
    keypoint = instantiate(task.heads.keypoint)(32, grid_hw=(4, 4))
    own = instantiate(task.heads.class_keypoint)(32)
    predictor = instantiate(task.heads.keypoint_predictor)
    assert isinstance(predictor, partial)
    for head in (keypoint, own):
        assert (head.num_keypoints, head.num_dims) == (16, 3)
    predictor(num_keypoints=16, num_dims=3)


def test_choices_of_a_loss_that_is_off_are_refused():
    with pytest.raises(ConfigCompositionException, match="keypoint_disc"):
        composed("loss=[pixel_recon]", "keypoint_disc=proto")


def test_peclr_has_its_latents_in_place_of_points():
    task = composed("loss=[peclr]", "method=peclr")
    head = instantiate(task.heads.keypoint)(32)
    assert (head.num_keypoints, head.num_dims) == (64, 2)
