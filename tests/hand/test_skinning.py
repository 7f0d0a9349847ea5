"""Our skinning against a textbook's: one joint after the other, homogeneous, by autograd."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from handmim.geometry.rotation import axis_angle_to_matrix
from handmim.hand.model import BlendSkinning, HandModel
from handmim.hand.skeleton import CANONICAL_FROM_HO3D


@pytest.fixture(scope="module")
def arrays(hand_arrays):
    """The stand-in with pose blendshapes of MANO's size."""
    posedirs = 1e-3 * np.random.default_rng(0).normal(size=hand_arrays.posedirs.shape)
    return replace(hand_arrays, posedirs=posedirs)


@pytest.fixture(scope="module")
def model(arrays):
    return HandModel(arrays)


def textbook(arrays, pose, betas):
    """[B, 16, 3] and [B, 10] in float64 to vertices and 21 joints."""
    data = {
        key: torch.from_numpy(getattr(arrays, key))
        for key in ("v_template", "shapedirs", "posedirs", "J_regressor", "weights")
    }
    R = torch.linalg.matrix_exp(cross_matrix(pose))
    shaped = data["v_template"] + torch.einsum("vck,bk->bvc", data["shapedirs"], betas)
    joints = torch.einsum("jv,bvc->bjc", data["J_regressor"], shaped)
    bent = (R[:, 1:] - torch.eye(3)).reshape(len(pose), 135)
    rest = shaped + torch.einsum("vck,bk->bvc", data["posedirs"], bent)
    world = []
    for j, parent in enumerate(arrays.parents):
        offset = joints[:, j] - (joints[:, parent] if j else 0)
        local = torch.zeros(len(pose), 4, 4, dtype=torch.float64)
        local[:, :3, :3], local[:, :3, 3], local[:, 3, 3] = R[:, j], offset, 1
        world.append(world[parent] @ local if j else local)
    verts = 0
    for j, transform in enumerate(world):
        moved = (rest - joints[:, j, None]) @ transform[:, :3, :3].transpose(1, 2)
        verts = verts + data["weights"][:, j, None] * (moved + transform[:, None, :3, 3])
    chain = torch.stack([transform[:, :3, 3] for transform in world], dim=1)
    every = torch.cat([chain, verts[:, arrays.tip_ids]], dim=1)
    return verts, every[:, CANONICAL_FROM_HO3D]


def cross_matrix(r):
    x, y, z = r.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], dim=-1).unflatten(-1, (3, 3))


def draw(b, dtype=torch.float64):
    """Pose and betas, and gradients of vertices and joints."""
    g = torch.Generator().manual_seed(b)
    shapes = ((b, 16, 3), (b, 10), (b, 778, 3), (b, 21, 3))
    drawn = [torch.randn(shape, generator=g, dtype=dtype) for shape in shapes]
    return 0.5 * drawn[0], *drawn[1:]


def gradients(verts, joints, inputs, *grads):
    return torch.autograd.grad((verts, joints), inputs, grads)


@pytest.mark.parametrize("b", [1, 63, 64, 65, 130])
def test_equals_the_textbook(arrays, model, b):
    pose, betas, *grads = draw(b)
    expected_inputs = (pose.requires_grad_(), betas.requires_grad_())
    expected = textbook(arrays, *expected_inputs)
    inputs = tuple(t.detach().float().requires_grad_() for t in expected_inputs)
    mesh = model(*inputs)
    for ours, theirs in zip((mesh.verts_m, mesh.joints_m), expected, strict=True):
        assert (ours - theirs).abs().max() < 1e-6
    found = gradients(mesh.verts_m, mesh.joints_m, inputs, *(g.float() for g in grads))
    for ours, theirs in zip(found, gradients(*expected, expected_inputs, *grads), strict=True):
        assert (ours - theirs).abs().max() < 5e-6 * theirs.abs().max()


@pytest.mark.parametrize("b", [0, 1, 7])
def test_chunks_change_nothing(arrays, b):
    pose, betas, *grads = draw(b, torch.float32)
    inputs = (pose.requires_grad_(), betas.requires_grad_())
    results = []
    for chunk_size in (32, 1, 3):
        layer = HandModel(arrays)
        layer.chunk_size = chunk_size
        mesh = layer(*inputs)
        assert mesh.verts_m.shape == (b, 778, 3)
        found = gradients(mesh.verts_m, mesh.joints_m, inputs, *grads)
        results.append((mesh.verts_m, mesh.joints_m, *found))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], atol=2e-5, rtol=1e-5)


def test_gradients_only_where_they_are_asked_for(model):
    pose, betas, *grads = draw(3, torch.float32)
    inputs = (pose.requires_grad_(), betas.requires_grad_())
    mesh = model(*inputs)
    both = gradients(mesh.verts_m, mesh.joints_m, inputs, *grads)
    for i in (0, 1):
        alone = [t if k == i else t.detach() for k, t in enumerate(inputs)]
        mesh = model(*alone)
        (found,) = gradients(mesh.verts_m, mesh.joints_m, inputs[i], *grads)
        torch.testing.assert_close(found, both[i], atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        assert not model(*inputs).verts_m.requires_grad
    with torch.inference_mode():
        assert torch.equal(model(*inputs).verts_m, mesh.verts_m)


def test_a_loss_on_joints_alone_and_one_on_vertices_alone(arrays, model):
    pose, betas, grad_verts, grad_joints = draw(2)
    expected_inputs = (pose.requires_grad_(), betas.requires_grad_())
    expected = textbook(arrays, *expected_inputs)
    inputs = tuple(t.detach().float().requires_grad_() for t in expected_inputs)
    mesh = model(*inputs)
    ours = (mesh.verts_m, mesh.joints_m)
    for i, grad in enumerate((grad_verts, grad_joints)):
        found = torch.autograd.grad(ours[i], inputs, grad.float(), retain_graph=True)
        theirs = torch.autograd.grad(expected[i], expected_inputs, grad, retain_graph=True)
        for a, b in zip(found, theirs, strict=True):
            assert (a - b).abs().max() < 5e-6 * b.abs().max()


def test_the_gradient_that_comes_in_is_left_as_it_is(model):
    """Fingertips' gradients are added to a copy, whatever its layout."""
    pose, betas, grad_verts, grad_joints = draw(2, torch.float32)
    pose.requires_grad_()
    for grad in (grad_verts, grad_verts.transpose(1, 2).contiguous().transpose(1, 2)):
        before = grad.clone()
        mesh = model(pose, betas)
        gradients(mesh.verts_m, mesh.joints_m, pose, grad, grad_joints)
        assert torch.equal(grad, before)


def small_case(dtype):
    """Two samples of a mesh of seven vertices and five joints, inputs first."""
    g = torch.Generator().manual_seed(0)
    shapes = ((2, 3), (2, 4), (2, 5, 3, 4), (21,), (7, 21), (5, 7))
    tensors = [torch.randn(shape, generator=g, dtype=dtype) for shape in shapes]
    for t in tensors[:3]:
        t.requires_grad_()
    return *tensors, torch.tensor([1, 6]), 1


def test_exact_in_double_precision():
    assert torch.autograd.gradcheck(BlendSkinning.apply, small_case(torch.float64))


def test_autocast_does_not_reach_the_backward_pass():
    inputs = small_case(torch.float32)
    found = []
    for enabled in (False, True):
        verts, tips = BlendSkinning.apply(*inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            total = verts.square().sum() + tips.sum()
            found.append(torch.autograd.grad(total, inputs[:3]))
    torch.testing.assert_close(found[0], found[1], atol=0, rtol=0)


def test_a_second_derivative_is_refused(model):
    pose, betas, *_ = draw(1, torch.float32)
    (first,) = torch.autograd.grad(
        model(pose.requires_grad_(), betas).verts_m.square().sum(), pose, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_compiles_without_a_break(model):
    pose, betas, *grads = draw(2, torch.float32)
    pose.requires_grad_()
    results = []
    for layer in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        mesh = layer(pose, betas)
        results.append((mesh, gradients(mesh.verts_m, mesh.joints_m, pose, *grads)))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("angle_rad", [0, 1e-12, 1e-7, 1e-3, 0.1, 1, 3.1, 6.3])
def test_rotation_vectors_are_exponentials(angle_rad):
    g = torch.Generator().manual_seed(0)
    r, grad = (torch.randn(20, *s, generator=g, dtype=torch.float64) for s in ((3,), (3, 3)))
    r = angle_rad * torch.nn.functional.normalize(r, dim=-1)
    ours, theirs = r.float().requires_grad_(), r.float().double().requires_grad_()
    R, expected = axis_angle_to_matrix(ours), torch.linalg.matrix_exp(cross_matrix(theirs))
    assert (R - expected).abs().max() < 1e-6
    (found,) = torch.autograd.grad(R, ours, grad.float())
    assert (found - torch.autograd.grad(expected, theirs, grad)[0]).abs().max() < 3e-6
    assert torch.autograd.gradcheck(axis_angle_to_matrix, r[0].clone().requires_grad_(), atol=1e-5)
