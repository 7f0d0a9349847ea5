"""Packing, pruning, recomputing and writing attention out change nothing of what a ViT says."""

import pytest
import torch

from handmim.models.vit import ViT
from handmim.types import Tokens

SIZE = {"embed_dim": 24, "depth": 3, "num_heads": 2}
WAYS = {"plain": {}, "layer scale": {"init_values": 0.3}, "qk norm": {"qk_norm": True}}
SIDE, PATCH = 32, 8


def vit(drop_path_rate: float = 0.0, size=SIZE, **kwargs) -> ViT:
    torch.manual_seed(0)
    net = ViT(
        "vit_tiny_patch16_224",
        img_px=SIDE,
        patch_px=PATCH,
        drop_path_rate=drop_path_rate,
        size=size,
        **kwargs,
    )
    with torch.no_grad():  # biases, layer scales and the mask token start too small to be seen
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net.double()


def images(num: int = 4, side: int = SIDE, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(num, 3, side, side, generator=g, dtype=torch.float64)


def mask(num: int = 4) -> torch.Tensor:
    """One view has no mask, one is hidden whole."""
    g = torch.Generator().manual_seed(1)
    counts = torch.tensor([3, 0, 16, 7])[:num, None]
    return torch.rand(num, 16, generator=g).argsort(-1) < counts


def whole(tokens: Tokens) -> torch.Tensor:
    return torch.cat([tokens.cls[:, None], tokens.patches], dim=1)


def timm_forward(net: ViT, image: torch.Tensor, is_masked: torch.Tensor) -> torch.Tensor:
    """timm's own blocks, one after another."""
    x = net._embedded(image, is_masked)
    for block in net.net.blocks:
        x = block(x)
    return net.net.norm(x)


@pytest.mark.parametrize("attention", ["auto", "fused", "written_out"])
@pytest.mark.parametrize("way", list(WAYS))
def test_tokens_are_those_of_timms_own_forward(way, attention):
    net = vit(size=SIZE | WAYS[way], attention=attention)
    tokens, expected = net(images(), mask()), timm_forward(net, images(), mask())
    torch.testing.assert_close(whole(tokens), expected)


@pytest.mark.parametrize("rate", [0.2, 0.9])  # now and then a branch is dropped for all
@pytest.mark.parametrize("num_local", [0, 3])
def test_paths_drop_as_timm_drops_them(rate, num_local):
    net = vit(drop_path_rate=rate).train()
    found = []
    for forward in (timm_forward, lambda net, *args: whole(net(*args))):
        net.zero_grad(set_to_none=True)
        torch.manual_seed(5)
        out = forward(net, images(), mask())
        out.pow(3).sum().backward()
        found.append((out, {k: p.grad for k, p in net.named_parameters()}))
    torch.testing.assert_close(found[0], found[1])
    if num_local:
        torch.manual_seed(5)
        tokens = net(images(), mask(), local=images(num_local, SIDE // 2))
        assert whole(tokens).isfinite().all()
        assert tokens.local_cls.shape == (num_local, 24)


def test_a_branch_that_is_dropped_for_all_has_gradients_of_zero():
    net, seen = vit(drop_path_rate=0.9).train(), set()
    for seed in range(20):
        found = []
        for forward in (timm_forward, lambda net, *args: whole(net(*args))):
            net.zero_grad(set_to_none=True)
            torch.manual_seed(seed)
            forward(net, images(1), mask(1)).pow(3).sum().backward()
            found.append({k: p.grad for k, p in net.named_parameters()})
        torch.testing.assert_close(found[0], found[1])
        seen.add(bool(found[0]["net.blocks.2.mlp.fc1.weight"].any()))
    assert seen == {True, False}


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.6])
@pytest.mark.parametrize("size", [SIZE, SIZE | {"init_values": 0.3}])
def test_places_alone_are_the_same_places_of_all(size, drop_path_rate):
    net, patch_idx = vit(drop_path_rate, size).train(), mask().flatten().nonzero().squeeze(1)
    outs, grads = [], []
    for chosen in (None, patch_idx):
        net.zero_grad(set_to_none=True)
        torch.manual_seed(5)
        tokens = net(images(), mask(), patch_idx=chosen)
        patches = tokens.patches.flatten(0, 1)[patch_idx] if chosen is None else tokens.patches
        (tokens.cls.square().sum() + patches.pow(3).sum()).backward()
        outs.append((tokens.cls, patches))
        grads.append({k: p.grad for k, p in net.named_parameters()})
    torch.testing.assert_close(outs[0], outs[1])
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("patch_idx", [None, mask().flatten().nonzero().squeeze(1)])
def test_local_crops_that_go_along_are_as_if_alone(patch_idx):
    net, local = vit(), images(5, SIDE // 2, seed=2)
    packed = net(images(), mask(), patch_idx=patch_idx, local=local)
    alone = net(images(), mask(), patch_idx=patch_idx)
    torch.testing.assert_close(packed.cls, alone.cls)
    torch.testing.assert_close(packed.patches, alone.patches)
    torch.testing.assert_close(packed.local_cls, net(local).cls)
    assert alone.local_cls is None


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
def test_recomputed_blocks_give_the_same_gradients_from_less_memory(drop_path_rate):
    saved, grads = [], []
    for blocks in (0, 2, 3):
        net, kept = vit(drop_path_rate, recompute_blocks=blocks).train(), []
        torch.manual_seed(5)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x
        ):
            tokens = net(images(), mask())
        (tokens.cls.square().sum() + tokens.patches.square().sum()).backward()
        saved.append(sum(kept))
        grads.append({k: p.grad for k, p in net.named_parameters()})
    assert saved[0] > 1.5 * saved[1] > 1.5 * 1.2 * saved[2]
    for other in grads[1:]:
        torch.testing.assert_close(grads[0], other)


def test_taps_are_of_the_views_when_crops_go_along():
    net = vit()
    tokens = net(images(), taps=(1, 3), local=images(2, SIDE // 2))
    for tap, expected in zip(tokens.taps, net(images(), taps=(1, 3)).taps, strict=True):
        torch.testing.assert_close(tap, expected)


def test_blocks_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="vit_small_patch16_18x2_224 is not a plain ViT"):
        ViT("vit_small_patch16_18x2_224", img_px=SIDE, patch_px=PATCH, size=SIZE)


def test_settings_are_checked():
    with pytest.raises(ValueError, match=r"fused.*got 'flash'"):
        vit(attention="flash")
    for blocks in (-1, 4):
        with pytest.raises(ValueError, match=rf"0 to 3, got {blocks}"):
            vit(recompute_blocks=blocks)
    with pytest.raises(ValueError, match="without taps"):
        vit()(images(), mask(), taps=(1,), patch_idx=torch.zeros(1, dtype=torch.int64))


def test_bfloat16_on_a_cpu_writes_attention_out(monkeypatch):
    calls = []
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *args, **kwargs: calls.append(1) or fused(*args, **kwargs),
    )
    net = vit().float()
    for is_mixed, num in ((False, 3), (True, 0)):
        calls.clear()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_mixed):
            net(images().float())
        assert len(calls) == num


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_compiled_blocks_say_the_same_and_share_their_code():
    """Ten blocks with rates of their own: a compilation each would be given up on."""
    torch._dynamo.reset()
    net = vit(drop_path_rate=0.4, size=SIZE | {"depth": 10}).float().train()
    local = images(2, SIDE // 2).float()
    found = []
    for compiled in (False, True):
        if compiled:
            net.compile_blocks()
        torch._dynamo.utils.counters.clear()
        for _ in range(2):
            net.zero_grad(set_to_none=True)
            torch.manual_seed(5)
            tokens = net(images().float(), mask(), local=local)
            (whole(tokens).square().mean() + tokens.local_cls.square().mean()).backward()
        grads = {k: p.grad for k, p in net.named_parameters()}
        found.append((whole(tokens), tokens.local_cls, grads))
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2  # with and without drops
