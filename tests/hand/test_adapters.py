import copy
import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import nn

from handmim.geometry.rotation import axis_angle_to_matrix
from handmim.hand.adapters import ManopthHand, SmplxHand
from handmim.hand.io import load_hand_arrays, read_mano, save_npz
from handmim.hand.model import HandLayer, HandModel
from handmim.hand.skeleton import CANONICAL_FROM_HO3D
from synthesis.mano import mirrored, write_fake_mano


class FakeManoLayer(nn.Module):
    """manopth's documented behaviour by loops: millimetres, OpenPose order, fingertips of its own,
    a translation of exact zeros counts as none, PCA and mean pose by its options. Like manopth it
    reads the pickle as it is and repairs nothing."""

    def __init__(
        self, center_idx=None, flat_hand_mean=True, ncomps=6, side="right",
        mano_root="mano/models", use_pca=True, root_rot_mode="axisang", joint_rot_mode="axisang",
    ):  # fmt: skip
        super().__init__()
        assert not use_pca
        assert root_rot_mode == joint_rot_mode == "axisang"
        raw = read_mano(f"{mano_root}/MANO_{side.upper()}.pkl")
        tensors = {k: torch.from_numpy(v.astype("float32")) for k, v in raw.items()}
        self.center_idx, self.side, self.ncomps = center_idx, side, ncomps
        mean = tensors["hands_mean"] * (0.0 if flat_hand_mean else 1.0)
        self.register_buffer("th_hands_mean", mean[None])
        self.register_buffer("th_shapedirs", tensors["shapedirs"])
        self.register_buffer("th_posedirs", tensors["posedirs"])
        self.register_buffer("th_v_template", tensors["v_template"][None])
        self.register_buffer("th_J_regressor", tensors["J_regressor"])
        self.register_buffer("th_weights", tensors["weights"])
        self.parents = raw["kintree_table"][0].tolist()

    def forward(self, th_pose_coeffs, th_betas=None, th_trans=None):
        assert th_pose_coeffs.shape[1:] == (3 + self.ncomps,)
        rotvec = torch.cat(
            [th_pose_coeffs[:, :3], th_pose_coeffs[:, 3:] + self.th_hands_mean], dim=1
        )
        R = axis_angle_to_matrix(rotvec.view(-1, 16, 3))
        eye = torch.eye(3, dtype=R.dtype)
        shaped = self.th_v_template + torch.einsum("vck,bk->bvc", self.th_shapedirs, th_betas)
        rest = torch.einsum("jv,bvc->bjc", self.th_J_regressor, shaped)
        offsets = (R[:, 1:] - eye).flatten(1)
        posed = shaped + torch.einsum("vcp,bp->bvc", self.th_posedirs, offsets)
        world, joints = [R[:, 0]], [rest[:, 0]]
        for j in range(1, 16):
            p = self.parents[j]
            joints.append(joints[p] + (world[p] @ (rest[:, j] - rest[:, p])[..., None])[..., 0])
            world.append(world[p] @ R[:, j])
        verts = sum(
            self.th_weights[:, j, None]
            * ((posed - rest[:, j, None]) @ world[j].transpose(1, 2) + joints[j][:, None])
            for j in range(16)
        )
        tips = verts[:, [745, 317, 444 if self.side == "right" else 445, 556, 673]]
        jtr = torch.cat([torch.stack(joints, dim=1), tips], dim=1)[:, list(CANONICAL_FROM_HO3D)]
        if th_trans is None or bool(torch.norm(th_trans) == 0):
            if self.center_idx is not None:
                centre = jtr[:, self.center_idx, None]
                verts, jtr = verts - centre, jtr - centre
        else:
            verts, jtr = verts + th_trans[:, None], jtr + th_trans[:, None]
        return verts * 1000, jtr * 1000, None


@pytest.fixture
def fake_manopth(monkeypatch):
    package, module = ModuleType("manopth"), ModuleType("manopth.manolayer")
    module.ManoLayer = FakeManoLayer
    monkeypatch.setitem(sys.modules, "manopth", package)
    monkeypatch.setitem(sys.modules, "manopth.manolayer", module)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, hand_arrays):
    folder = tmp_path_factory.mktemp("mano")
    right = replace(hand_arrays, name="MANO_RIGHT")
    write_fake_mano(right, folder / "MANO_RIGHT.pkl")
    write_fake_mano(mirrored(right, buggy_shapedirs=True), folder / "MANO_LEFT.pkl")
    return folder


@pytest.fixture(params=["smplx", "manopth"])
def adapter(request, fake_manopth):
    if request.param == "smplx":
        pytest.importorskip("smplx")
    return {"smplx": SmplxHand, "manopth": ManopthHand}[request.param]


def inputs(b: int = 6, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    pose = 0.5 * torch.randn(b, 16, 3, generator=g, dtype=dtype)
    return (
        pose,
        torch.randn(b, 10, generator=g, dtype=dtype),
        torch.randn(b, 3, generator=g, dtype=dtype),
    )


def assert_close(ours, theirs):
    for name in ("verts_m", "joints_m", "chain_joints_m"):
        assert (getattr(ours, name) - getattr(theirs, name)).abs().max() < 1e-6, name


@pytest.mark.parametrize("side", ["RIGHT", "LEFT"])
def test_agrees_with_our_own_skinning(adapter, folder, capsys, side):
    path = folder / f"MANO_{side}.pkl"
    ours, theirs = HandModel.from_file(path), adapter.from_file(path)
    assert isinstance(theirs, HandLayer)
    pose, betas, transl = inputs()
    for t in (None, torch.zeros(6, 3), transl):
        assert_close(ours(pose, betas, t), theirs(pose, betas, t))
    rest = theirs(torch.zeros(6, 48), betas)  # no mean pose anywhere
    assert_close(ours(torch.zeros(6, 48), betas), rest)
    assert (theirs.sha256, theirs.side) == (ours.sha256, side.lower())
    assert torch.equal(theirs.mean_rotmats, ours.mean_rotmats)
    assert capsys.readouterr().out == ""


def test_the_chosen_repair_reaches_the_layer(adapter, folder):
    path = folder / "MANO_LEFT.pkl"
    pose, betas, _ = inputs()
    seen = []
    for option in ("as_is", "negate_x", "negate_all"):
        theirs = adapter.from_file(path, left_shapedirs=option)(pose, betas)
        assert_close(HandModel.from_file(path, left_shapedirs=option)(pose, betas), theirs)
        seen.append(theirs.verts_m)
    assert (seen[0] - seen[1]).abs().max() > 1e-3
    assert (seen[1] - seen[2]).abs().max() > 1e-3


def test_behaves_as_a_module(adapter, folder):
    layer = adapter.from_file(folder / "MANO_RIGHT.pkl")
    assert layer.state_dict() == {}
    assert not list(layer.parameters())
    pose, betas, transl = inputs()
    before = layer(pose, betas, transl)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(pose, betas, transl).verts_m, before.verts_m)
    double = copy.deepcopy(layer).double()
    mesh = double(*(t.double() for t in (pose, betas, transl)))
    assert mesh.verts_m.dtype == torch.float64
    assert_close(before, mesh)
    assert layer(pose, betas, transl).verts_m.dtype == torch.float32
    with pytest.raises(ValueError, match="betas must be"):
        layer(pose, betas[:, :9])


def test_gradients_reach_pose_and_shape(adapter, folder):
    """At random poses as our own, and finite where a rotation is none at all."""
    pose, betas, _ = inputs(2)
    grads = []
    for layer in (HandModel, adapter):
        p, b = pose.clone().requires_grad_(), betas.clone().requires_grad_()
        mesh = layer.from_file(folder / "MANO_RIGHT.pkl")(p, b)
        (mesh.verts_m.square().sum() + mesh.joints_m.square().sum()).backward()
        grads.append((p.grad, b.grad))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    p = torch.eye(3).expand(1, 16, 3, 3).clone().requires_grad_()
    adapter.from_file(folder / "MANO_RIGHT.pkl")(p, betas[:1]).verts_m.square().sum().backward()
    assert p.grad.isfinite().all()
    assert p.grad.abs().max() > 0


def test_missing_packages_are_named(folder, monkeypatch):
    for name in ("smplx", "manopth", "manopth.manolayer"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install smplx.*hand=mano"):
        SmplxHand.from_file(folder / "MANO_RIGHT.pkl")
    with pytest.raises(ImportError, match=r"chumpy and .*not on PyPI; hand=mano"):
        ManopthHand.from_file(folder / "MANO_RIGHT.pkl")


def test_smplx_takes_any_file_of_ours(folder, tmp_path):
    pytest.importorskip("smplx")
    save_npz(tmp_path / "mine.npz", load_hand_arrays(folder))
    pose, betas, _ = inputs()
    assert_close(
        SmplxHand.from_file(tmp_path / "mine.npz")(pose, betas),
        HandModel.from_file(folder)(pose, betas),
    )


def test_manopth_wants_the_file_as_downloaded_and_the_same_hand(fake_manopth, folder, tmp_path):
    save_npz(tmp_path / "MANO_RIGHT.npz", load_hand_arrays(folder))
    with pytest.raises(ValueError, match=r"manopth reads MANO_RIGHT\.pkl .*MANO_RIGHT\.npz"):
        ManopthHand.from_file(tmp_path / "MANO_RIGHT.npz")
    (tmp_path / "MANO_RIGHT.pkl").write_bytes((folder / "MANO_LEFT.pkl").read_bytes())
    with pytest.raises(ValueError, match=r"manopth reads MANO_LEFT\.pkl"):
        ManopthHand.from_file(tmp_path / "MANO_RIGHT.pkl", left_shapedirs="negate_x")
    arrays = load_hand_arrays(folder)
    other = replace(arrays, v_template=arrays.v_template * 1.01)
    with pytest.raises(ValueError, match=r"another hand from .*"):
        ManopthHand(other, folder)
    assert ManopthHand.from_file(folder).name == "MANO_RIGHT"  # a folder will do
