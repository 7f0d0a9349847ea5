"""Files of backbones whose metadata states what no export states."""

import json

import pytest
from safetensors import safe_open

import handmim
from handmim.models.vit import ViT
from handmim.utils.tensor_files import save_weights

ARCH = "vit_tiny_patch16_224"
ARGS = {"img_size": 16, "patch_size": 8, "num_classes": 0}
ARGS |= {"embed_dim": 24, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "backbone.safetensors"
    size = {"embed_dim": 24, "depth": 2, "num_heads": 2, "weight_init": "jax"}
    ViT(ARCH, img_px=16, patch_px=8, size=size).export(path)
    return path


def test_sizes_with_a_way_to_initialise_are_loaded(exported):
    assert handmim.load_backbone(exported).depth == 2


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"timm_name": "hf-hub:evil/model"}, "must be a model of timm, got 'hf-hub:evil/model'"),
        ({"timm_name": "local-dir:/tmp"}, "must be a model of timm"),
        ({"timm_name": "vit_tinny"}, "must be a model of timm"),
        ({"timm_name": f"{ARCH}.nope"}, "nope"),
        ({"timm_name": "resnet18"}, "resnet18|unexpected"),
        ({"timm_args": "{}"}, "timm_args must be an object"),
        ({"timm_args": "[]"}, "timm_args must be an object"),
        ({"timm_args": "{"}, "metadata: "),
        ({"timm_args": json.dumps(ARGS | {"checkpoint_path": "x.pt"})}, "checkpoint_path"),
        ({"timm_args": json.dumps(ARGS | {"img_size": 10**9})}, "img_size=1000000000 is not taken"),
        ({"timm_args": json.dumps(ARGS | {"embed_dim": "wide"})}, "metadata: timm cannot build"),
        ({"timm_args": json.dumps(ARGS | {"depth": 4000})}, "depth=4000 is not taken"),
        ({"timm_args": json.dumps(ARGS | {"embed_dim": 4096})}, "embed_dim=4096 is not taken"),
        ({"timm_args": json.dumps(ARGS | {"embed_dim": 48})}, "other tensors"),
        ({"timm_args": json.dumps(ARGS | {"mlp_ratio": 1e6})}, "is not taken"),
        ({"timm_args": json.dumps(ARGS | {"final_norm": False})}, "other tensors"),
        ({"timm_args": json.dumps(ARGS | {"mlp_ratio": []})}, "metadata: "),
        ({"timm_args": json.dumps(ARGS | {"norm_layer": "no"})}, "metadata: "),
        ({"pixel_norm": "none"}, "pixel_norm must be one of"),
    ],
)
def test_other_metadata_is_a_value_error_that_names_the_file(tmp_path, exported, meta, message):
    with safe_open(exported, framework="pt") as file:
        stated = {key: file.metadata()[key] for key in ("timm_name", "timm_args", "pixel_norm")}
        names = file.keys()
        tensors = {key: file.get_tensor(key) for key in names}
    path = tmp_path / "other.safetensors"
    save_weights(tensors, path, stated | meta)
    with pytest.raises(ValueError, match=message) as refused:
        handmim.load_backbone(path)
    assert str(path) in str(refused.value)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights at"):
        handmim.load_backbone(tmp_path / "none.safetensors")
