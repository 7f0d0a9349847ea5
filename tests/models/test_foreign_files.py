"""Files as public projects and hubs write them: shards, other names, or no weights at all."""

import argparse
import json
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor

from handmim.engine.checkpoint import load_checkpoint
from handmim.models.weights.load import load_initial
from tests.models.vit_files import noise, ours, renamed, theirs

SMALL = {"embed_dim": 384, "depth": 1, "num_heads": 6}


def fixed_positions(width: int, rows_first: bool) -> Tensor:
    """[1, 17, D] of a 4 x 4 grid: sines and cosines of rows and columns."""
    omega = 1 / 10000 ** (torch.arange(width // 4) / (width // 4))
    row, col = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    parts = (row, col) if rows_first else (col, row)
    angles = [part.flatten()[:, None] * omega for part in parts]
    halves = [f for angle in angles for f in (angle.sin(), angle.cos())]
    return torch.cat([torch.zeros(1, width), torch.cat(halves, dim=1)])[None]


def saved(path: Path, content: Any) -> str:
    torch.save(content, path)
    return str(path)


def assert_same_patches(vit: Any, net: Any) -> None:
    image = torch.rand(1, 3, 32, 32)
    expected = net.forward_features((image - vit.pixel_mean) / vit.pixel_std)
    torch.testing.assert_close(vit(image).patches, expected[:, 1:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prefix", ["module.base_encoder.", "module.", ""])
def test_the_twelve_heads_of_mocov3s_small_vit_are_known(prefix: str, tmp_path: Path):
    net = theirs(**(SMALL | {"num_heads": 12}))
    net.pos_embed.data = fixed_positions(384, rows_first=True)
    content = {"arch": "vit_small", "state_dict": renamed(net.state_dict(), prefix)}
    path = saved(tmp_path / "a.pth.tar", content)
    with pytest.raises(ValueError, match=r"num_heads=12; .*num_heads 12 \(required 6\)"):
        load_initial(ours(size=SMALL), path)
    vit = ours(size=SMALL | {"num_heads": 12})
    assert load_initial(vit, path).warnings == ()
    assert_same_patches(vit, net)


def test_a_momentum_encoder_comes_before_its_base(tmp_path: Path):
    net, other = theirs(), theirs(seed=3)
    content = renamed(other.state_dict(), "base_encoder.")
    content |= renamed(net.state_dict(), "momentum_encoder.")
    vit = ours()
    load_initial(vit, saved(tmp_path / "a.pth", content))
    assert_same_patches(vit, net)


def test_the_fixed_positions_of_mae_state_its_heads(tmp_path: Path):
    size = {"embed_dim": 768, "depth": 1, "num_heads": 12, "mlp_ratio": 0.5}
    net = theirs(**size)
    net.pos_embed.data = fixed_positions(768, rows_first=False)
    path = saved(tmp_path / "a.pth", {"model": net.state_dict()})
    assert load_initial(ours(size=size), path).warnings == ()
    with pytest.raises(ValueError, match="num_heads 12"):
        load_initial(ours(size=size | {"num_heads": 8}), path)


@pytest.mark.parametrize(
    ("args", "also"),
    [
        ({"arch": "vit_small"}, {"student": noise("head.bias")}),
        ({"model": "deit_small_patch16_224"}, {}),
    ],
)
def test_saved_arguments_state_the_network(args: Any, also: Any, tmp_path: Path):
    net = theirs(
        **SMALL,
    )
    kwargs = {"model_kwargs": {"depth": 1}}
    content = {"teacher": net.state_dict(), "args": argparse.Namespace(**args, **kwargs), **also}
    path = saved(tmp_path / "a.pth", content)
    assert not any("heads" in w for w in load_initial(ours(size=SMALL), path).warnings)
    with pytest.raises(ValueError, match="num_heads 6"):
        load_initial(ours(size=SMALL | {"num_heads": 12}), path)


def hugging_face(weights: dict[str, Tensor], prefix: str, is_dinov2: bool) -> dict[str, Tensor]:
    """timm's weights under the names of transformers."""
    names = {"blocks.": "encoder.layer.", "patch_embed.proj.": "embeddings.patch_embeddings."
             "projection.", "attn.proj.": "attention.output.dense."}  # fmt: skip
    if not is_dinov2:
        names |= {"norm1.": "layernorm_before.", "norm2.": "layernorm_after."}
        names |= {"mlp.fc1.": "intermediate.dense.", "mlp.fc2.": "output.dense."}
    new = {}
    for key, value in weights.items():
        name = {
            "cls_token": "embeddings.cls_token",
            "pos_embed": "embeddings.position_embeddings",
        }.get(key, key)
        name = f"layernorm.{key[5:]}" if key.startswith("norm.") else name
        for old, other in names.items():
            name = name.replace(old, other)
        if ".attn.qkv." in name:
            for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                new[name.replace("attn.qkv", f"attention.attention.{part}")] = rows.clone()
        else:
            new[name] = value
    return renamed(new, prefix)


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_weights_under_the_names_of_transformers(kind: str, tmp_path: Path):
    net, vit = theirs(), ours()
    content = hugging_face(net.state_dict(), f"{kind}.", kind == "dinov2")
    path = tmp_path / "model.safetensors"
    save_file(content | noise("classifier.weight"), path)
    config = {"model_type": kind, "num_attention_heads": 2, "hidden_act": "gelu",
              "layer_norm_eps": 1e-6}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    constants = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(constants))
    report = load_initial(vit, str(path))
    assert (report.unused, report.warnings) == ({"classifier": 1}, ())
    image = torch.rand(1, 3, 32, 32)
    expected = net.forward_features((image - 0.5) / 0.5)
    torch.testing.assert_close(vit(image).patches, expected[:, 1:], atol=1e-4, rtol=1e-4)
    for key, value, message in (
        ("num_attention_heads", 4, "num_heads=4"),
        ("hidden_act", "gelu_new", "act_layer=gelu_tanh"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
        with pytest.raises(ValueError, match=message):
            load_initial(ours(), str(path))


def test_positions_of_16_by_12_patches_as_vitpose_has_them(tmp_path: Path):
    weights = theirs().state_dict()
    weights["last_norm.weight"], weights["last_norm.bias"] = (
        weights.pop(f"norm.{part}") for part in ("weight", "bias")
    )
    del weights["cls_token"]
    rows = torch.linspace(-1, 1, 16).view(16, 1, 1).expand(16, 12, 24)  # the same in all columns
    shift = torch.full((1, 24), 3.0)
    weights["pos_embed"] = torch.cat([shift, rows.flatten(0, 1)])[None]
    vit = ours()
    report = load_initial(vit, saved(tmp_path / "a.pth", renamed(weights, "backbone.")))
    placed = vit.net.pos_embed[0, 1:].view(4, 4, 24)
    torch.testing.assert_close(placed, placed[:, :1].expand(4, 4, 24), atol=1e-5, rtol=1e-5)
    assert placed.mean().item() == pytest.approx(3.0, abs=1e-4)
    assert placed[0].mean() < 2.5 < 3.5 < placed[3].mean()
    assert "pos_embed 16 x 12 -> 4 x 4" in report.resampled
    assert sum("no class token" in w or "2 px" in w for w in report.warnings) == 2


SHARDS = ["model.safetensors.index.json", "model-00002-of-00002.safetensors"]


def sharded(folder: Path, weights: dict[str, Tensor]) -> dict[str, str]:
    """Two shards and their index; what the index says."""
    where = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(weights)}
    for shard in set(where.values()):
        save_file({k: v for k, v in weights.items() if where[k] == shard}, folder / shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return where


@pytest.mark.parametrize("name", SHARDS)
def test_all_shards_are_read(name: str, tmp_path: Path):
    net, vit = theirs(), ours()
    sharded(tmp_path, net.state_dict())
    load_initial(vit, str(tmp_path / name))
    assert_same_patches(vit, net)


def test_a_shard_alone_or_elsewhere_is_refused(tmp_path: Path):
    where = sharded(tmp_path, theirs().state_dict())
    index = tmp_path / "model.safetensors.index.json"
    (tmp_path / "model-00002-of-00002.safetensors").rename(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"model-00002-of-00002\.safetensors is missing"):
        load_initial(ours(), str(index))
    index.write_text(json.dumps({"weight_map": dict.fromkeys(where, "../x.safetensors")}))
    with pytest.raises(ValueError, match="must lie beside its index"):
        load_initial(ours(), str(index))
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(ValueError, match=r"tensors that its shards lack: \['a'\]"):
        load_initial(ours(), str(index))
    index.unlink()
    with pytest.raises(FileNotFoundError, match=r"their index .* is missing"):
        load_initial(ours(), str(tmp_path / "model-00001-of-00002.safetensors"))
    with pytest.raises(FileNotFoundError, match="is a folder, give one of its files: model-00001"):
        load_initial(ours(), str(tmp_path))


def gzipped(folder: Path) -> bytes:
    (folder / "x").write_text("x")
    with tarfile.open(folder / "x.tar.gz", "w:gz") as archive:
        archive.add(folder / "x")
    return (folder / "x.tar.gz").read_bytes()


def half_zip(folder: Path) -> bytes:
    torch.save(theirs().state_dict(), folder / "whole")
    return (folder / "whole").read_bytes()[:20_000]


KINDS: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "html": (lambda _: b"\n<!DOCTYPE html><html>Sign in</html>", "is an HTML page, probably"),
    "xml": (lambda _: b"<?xml version='1.0'?><Error/>", "is an XML document"),
    "json": (lambda _: b'{"error": "Not found"}', "is JSON text"),
    "text": (lambda _: b"Invalid username or password.", "begins 'Invalid username"),
    "tar.gz": (gzipped, "is a gzip archive"),
    "empty": (lambda _: b"", r"is empty \(0 bytes\)"),
    "zeros": (lambda _: bytes(9000), "begins with zeros"),
    "lfs": (lambda _: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "half": (half_zip, "is cut off or damaged"),
    "numbers": (lambda _: b"\x80\x02\xff\x13", "is damaged or not"),
}


@pytest.mark.parametrize("ending", [".pth", ".safetensors", ".pt"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_saved_in_place_of_weights_is_named(kind: str, ending: str, tmp_path: Path):
    content, message = KINDS[kind]
    path = tmp_path / f"weights{ending}"
    path.write_bytes(content(tmp_path))
    readers: tuple[Callable[[], Any], ...] = (
        lambda: load_initial(ours(), str(path)),
        lambda: load_checkpoint(path),
    )
    for read in readers:
        with pytest.raises(ValueError, match=message) as raised:
            read()
        assert "weights_only" not in str(raised.value)
        assert "run code" not in str(raised.value)


def test_the_ending_of_a_file_does_not_matter(tmp_path: Path):
    net = theirs()
    (tmp_path / "a.pth").write_bytes(save(net.state_dict()))
    torch.save(net.state_dict(), tmp_path / "b.safetensors")
    for name in ("a.pth", "b.safetensors"):
        vit = ours()
        load_initial(vit, str(tmp_path / name))
        assert_same_patches(vit, net)
    cut = (tmp_path / "a.pth").read_bytes()[:-100]
    (tmp_path / "a.pth").write_bytes(cut)
    with pytest.raises(ValueError, match="cut off or damaged"):
        load_initial(ours(), str(tmp_path / "a.pth"))


def nested(levels: int) -> dict[str, Any]:
    """Dicts that hold the next one twice: 2^levels paths."""
    node: dict[str, Any] = noise("x")
    for _ in range(levels):
        node = {"a": node, "b": node}
    return node


def tower(height: int) -> bytes:
    """A pair of twice a pair of twice ...: 2^height steps to hash it."""
    return b"K\x01" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(height))


FORGED = b"".join(
    b"\x8a\x0c%sN" % ((2**61 - 1) * k << 4).to_bytes(12, "little") for k in range(11_000)
)
BOMBS = {
    "marks": (b"(" * 2_000_000, "more than .* instructions"),
    "tuples": (b"N" + b"\x85" * 300_000 + b".", "more than .* instructions"),
    "empty lists": (b"]" * 300_000 + b".", "more than .* instructions"),
    "keys of equal hash": (b"}(" + FORGED + b"u.", "more than 10000 keys"),
    "a key of tuples": (b"}" + tower(60) + b"Ns.", "a tuple inside a tuple as a key"),
    "a counted tower": (b"ccollections\nCounter\n]" + tower(60) + b"a\x85R.", "inside a tuple"),
    "a storage's name": (b"X\x07\0\0\0storageN" + tower(60) + b"NN(0000tQ.", "damaged|tuple"),
    "bytes": (b"cbuiltins\nbytearray\n\x8a\x06\0\0\0\0\0\x01\x85R.", "content is int"),
}


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("kind", BOMBS)
def test_a_small_checkpoint_takes_little_time_and_memory(kind: str, is_zip: bool, tmp_path: Path):
    raw, message = BOMBS[kind]
    path = tmp_path / "bomb.pt"
    path.write_bytes(b"\x80\x02" + raw)
    if is_zip:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("bomb/data.pkl", b"\x80\x02" + raw)
            archive.writestr("bomb/version", b"3\n")
    start = time.process_time()
    with pytest.raises(ValueError, match=rf"bomb\.pt .*({message})"):
        load_initial(ours(), str(path))
    assert time.process_time() - start < 3.0


def test_damaged_safetensors_are_named_as_such(tmp_path: Path):
    raw = save(theirs().state_dict())
    path = tmp_path / "a.safetensors"
    for content in (raw[:8] + b"\xff" + raw[9:], b"\xff" * 8 + raw[8:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.safetensors is damaged: .* safetensors"):
            load_initial(ours(), str(path))
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"holds safetensors, a checkpoint .* is required"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("[" * 100_000, "recursion depth"), ('{"a": 1%s}' % ("0" * 5000), "limit .4300 digits")],
)
def test_an_unreadable_index_is_named_plainly(text: str, message: str, tmp_path: Path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(ValueError, match=message) as raised:
        load_initial(ours(), str(index))
    assert index.name in str(raised.value)
    assert not any(word in str(raised.value) for word in ("label", "set_int_max_str_digits"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: {"x": torch.zeros(1).expand(10**12)}, "larger than what is stored"),
        (lambda: nested(30), "refer to each other"),
        (lambda: theirs().state_dict() | {"norm.bias": torch.zeros(24, dtype=torch.int8)}, "int8"),
        (lambda: {"patch_embed.proj.weight": torch.zeros(24, 192)}, "by a tensor"),
        (lambda: theirs().state_dict() | {"pos_embed": torch.zeros(1, 24, 4, 4)}, "positions"),
        (lambda: noise("visual.transformer.resblocks.0.attn.in_proj_weight"), "CLIP"),
        (lambda: noise("embeddings.patch_embeddings.weight"), "DINOv3 .* rotary"),
    ],
)
def test_tensors_that_cannot_be_used_are_refused(content: Any, message: str, tmp_path: Path):
    path = saved(tmp_path / "a.pth", content())
    with pytest.raises(ValueError, match=message):
        load_initial(ours(), path)
