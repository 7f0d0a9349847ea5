import pytest
import torch
from safetensors.torch import load_file, save_file

from handmim.models.weights.files import read_weights
from handmim.utils.tensor_files import check_weights, save_weights

WEIGHTS = {"patch_embed.proj.weight": torch.arange(12.0), "norm.bias": torch.ones(3)}


@pytest.fixture
def path(tmp_path):
    save_weights(WEIGHTS, tmp_path / "a.safetensors", {"step": "4"})
    return tmp_path / "a.safetensors"


def test_plain_safetensors_reads_the_file(path):
    check_weights(path)
    assert all(torch.equal(v, WEIGHTS[k]) for k, v in load_file(path).items())


def test_every_changed_byte_of_the_weights_is_refused(path):
    whole = path.read_bytes()
    for offset in range(len(whole)):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
        with pytest.raises(ValueError, match=r"a\.safetensors"):
            read_weights(str(path))


def test_files_of_others_have_no_digest(tmp_path):
    save_file(WEIGHTS, tmp_path / "b.safetensors", metadata={"sha": "1"})
    check_weights(tmp_path / "b.safetensors")
    save_file(WEIGHTS, tmp_path / "c.safetensors")
    check_weights(tmp_path / "c.safetensors")
