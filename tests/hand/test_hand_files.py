import io
import pickle
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse

from handmim.hand.io import load_hand_arrays, read_mano, resolve_hand_path, save_npz
from handmim.hand.model import HandModel
from handmim.utils.unpickle import UnsafePickleError
from synthesis.mano import mirrored, write_fake_mano
from synthesis.python2_pickle import Foreign, dump

FLOATS = ("v_template", "shapedirs", "posedirs", "J_regressor", "weights", "hands_mean",
          "hands_components")  # fmt: skip


def assert_same(a, b):
    for name in (*FLOATS, "faces"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
        assert getattr(a, name).dtype == getattr(b, name).dtype
    for name in ("parents", "tip_ids", "sha256", "side", "repairs"):
        assert getattr(a, name) == getattr(b, name), name
    assert a.extras.keys() == b.extras.keys()


@pytest.fixture(scope="module")
def right(hand_arrays):
    return replace(hand_arrays, name="MANO_RIGHT", extras={})


@pytest.fixture(scope="module")
def folder(tmp_path_factory, right):
    """A download: both hands as MANO ships them, the left one with its well-known fault."""
    folder = tmp_path_factory.mktemp("mano")
    write_fake_mano(right, folder / "MANO_RIGHT.pkl")
    write_fake_mano(mirrored(right, buggy_shapedirs=True), folder / "MANO_LEFT.pkl")
    return folder


@pytest.fixture(scope="module")
def lonely_left(tmp_path_factory, folder):
    path = tmp_path_factory.mktemp("left") / "MANO_LEFT.pkl"
    path.write_bytes((folder / "MANO_LEFT.pkl").read_bytes())
    return path


def test_a_pickle_like_manos_reads_as_the_hand_it_was_made_from(folder, right):
    raw = (folder / "MANO_RIGHT.pkl").read_bytes()
    for word in (
        b"cchumpy.reordering\nSelect\n",
        b"cchumpy.reordering\nReshape\n",
        b"cchumpy.ch\nCh\n",
        b"cscipy.sparse.csc\ncsc_matrix\n",
        b"_dirty_vars",
        b"hands_coeffs",
        b"bs_type",
    ):
        assert word in raw
    loaded = load_hand_arrays(folder / "MANO_RIGHT.pkl")
    assert_same(loaded, right)
    assert "chumpy" not in sys.modules
    assert set(read_mano(folder / "MANO_RIGHT.pkl")) == {*FLOATS, "f", "kintree_table"}


def test_conversion_to_npz_and_back_changes_nothing(tmp_path, folder, hand_arrays):
    for name in ("MANO_RIGHT.pkl", "MANO_LEFT.pkl"):
        loaded = load_hand_arrays(folder / name)
        save_npz(tmp_path / "some.npz", loaded)
        again = load_hand_arrays(tmp_path / "some.npz")
        assert_same(again, loaded)
        assert again.file_sha256 != loaded.file_sha256
        assert again.name == "some"
    save_npz(tmp_path / "some.npz", hand_arrays)  # with extras, over the other file
    assert_same(load_hand_arrays(tmp_path / "some.npz"), hand_arrays)
    assert [p.name for p in tmp_path.iterdir()] == ["some.npz"]
    with pytest.raises(ValueError, match=r"written as \.npz"):
        save_npz(tmp_path / "some.pkl", hand_arrays)


def test_an_interrupted_conversion_leaves_the_old_file(tmp_path, right, monkeypatch):
    save_npz(tmp_path / "some.npz", right)
    before = (tmp_path / "some.npz").read_bytes()

    def fail(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        save_npz(tmp_path / "some.npz", right)
    assert (tmp_path / "some.npz").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["some.npz"]


def test_identity_is_of_the_arrays_as_used(right):
    same = replace(right, name="other", file_sha256="x", repairs=("r",), extras={"a": np.ones(2)})
    assert same.sha256 == right.sha256
    zero = replace(right, posedirs=np.where(right.posedirs == 0, -0.0, right.posedirs))
    assert zero.sha256 == right.sha256
    for name in FLOATS:
        moved = getattr(right, name).copy()
        moved.flat[7] += 1e-12
        assert replace(right, **{name: moved}).sha256 != right.sha256, name
    assert replace(right, faces=right.faces[:, [1, 2, 0]]).sha256 != right.sha256
    assert replace(right, tip_ids=(745, 317, 444, 556, 673)).sha256 != right.sha256


def absolute_pose(pose, arrays, num_pca_comps, flat_hand_mean=True):
    """Axis-angle whose zero is the flat hand."""
    full = pose if num_pca_comps is None else pose @ arrays.hands_components[:num_pca_comps]
    return full if flat_hand_mean else full + arrays.hands_mean


def smplx_mano(smplx, arrays, dtype, **options):
    """smplx's own model on arrays that were read by us."""
    from smplx.utils import Struct

    data = Struct(
        **{name: getattr(arrays, name) for name in FLOATS},
        f=arrays.faces,
        kintree_table=np.stack([[2**32 - 1, *arrays.parents[1:]], np.arange(16)]),
    )
    return smplx.MANO(
        model_path="", data_struct=data, is_rhand=arrays.side == "right", dtype=dtype, **options
    )


@pytest.mark.parametrize("flat_hand_mean", [True, False])
@pytest.mark.parametrize("num_pca_comps", [None, 6, 12])
@pytest.mark.parametrize("side", ["right", "left"])
def test_pickle_npz_and_smplx_pose_the_same_hand(
    tmp_path, folder, capsys, side, num_pca_comps, flat_hand_mean
):
    smplx = pytest.importorskip("smplx")
    arrays = load_hand_arrays(folder / f"MANO_{side.upper()}.pkl")
    save_npz(tmp_path / "converted.npz", arrays)
    theirs = smplx_mano(
        smplx,
        arrays,
        torch.float32,
        use_pca=num_pca_comps is not None,
        num_pca_comps=num_pca_comps or 6,
        flat_hand_mean=flat_hand_mean,
        batch_size=8,
    )
    g = torch.Generator().manual_seed(0)
    pose = 0.5 * torch.randn(8, num_pca_comps or 45, generator=g)
    orient, betas, transl = (torch.randn(8, n, generator=g) for n in (3, 10, 3))
    expected = theirs(betas=betas, global_orient=orient, hand_pose=pose.clone(), transl=transl)
    full = absolute_pose(pose.numpy(), arrays, num_pca_comps, flat_hand_mean)
    full = torch.cat([orient, torch.from_numpy(full).float()], dim=1)
    for ours in (HandModel(arrays), HandModel.from_file(tmp_path / "converted.npz")):
        mesh = ours(full, betas, transl)
        assert (mesh.verts_m - expected.vertices).abs().max() < 1e-6
        assert (mesh.chain_joints_m - expected.joints).abs().max() < 1e-6
    straight = absolute_pose(pose.numpy(), arrays, num_pca_comps)
    if not flat_hand_mean:  # the mean pose matters: forgetting it would show
        assert np.abs(straight - full[:, 3:].numpy()).max() > 0.1


def test_the_left_hand_is_the_mirror_image_of_the_right_in_every_pose(right):
    left = HandModel(mirrored(right))
    g = torch.Generator().manual_seed(1)
    pose, betas = 0.5 * torch.randn(4, 16, 3, generator=g), torch.randn(4, 10, generator=g)
    mirror = torch.tensor([-1.0, 1.0, 1.0])
    a = HandModel(right)(pose, betas)
    b = left(pose * torch.tensor([1.0, -1.0, -1.0]), betas)
    for ours, theirs in zip(a, b, strict=True):
        torch.testing.assert_close(ours * mirror, theirs, atol=1e-6, rtol=0)
    mean = left.mean_rotmats - HandModel(right).mean_rotmats * mirror * mirror[:, None]
    assert mean.abs().max() < 1e-6
    corners = left.arrays.v_template[left.faces]
    volume = np.linalg.det(corners - corners.mean(axis=(0, 1))).sum()
    assert volume > 0  # triangles still look outwards
    assert_same(mirrored(mirrored(right)), right)
    assert left.side == "left"
    assert left.name == "MANO_LEFT"


@pytest.mark.parametrize("beside", [True, False])
def test_the_fault_of_the_left_file_is_found_and_recorded(folder, lonely_left, right, beside):
    path = folder / "MANO_LEFT.pkl" if beside else lonely_left
    found = load_hand_arrays(path)
    assert found.repairs == ("left shapedirs x negated",)
    assert_same(found, replace(mirrored(right), repairs=found.repairs))
    as_is = load_hand_arrays(path, left_shapedirs="as_is")
    assert as_is.repairs == ()
    assert_same(as_is, mirrored(right, buggy_shapedirs=True))
    assert as_is.sha256 != found.sha256
    assert as_is.file_sha256 == found.file_sha256
    assert load_hand_arrays(path, left_shapedirs="negate_x").sha256 == found.sha256
    rotated = load_hand_arrays(path, left_shapedirs="negate_all")
    np.testing.assert_array_equal(rotated.shapedirs, -as_is.shapedirs)
    assert rotated.repairs == ("left shapedirs negated",)
    assert len({rotated.sha256, as_is.sha256, found.sha256}) == 3


@pytest.mark.parametrize("beside", [True, False])
def test_a_sound_left_file_is_left_alone(tmp_path, right, beside):
    write_fake_mano(mirrored(right), tmp_path / "MANO_LEFT.pkl")
    if beside:
        write_fake_mano(right, tmp_path / "MANO_RIGHT.pkl")
    loaded = load_hand_arrays(tmp_path / "MANO_LEFT.pkl")
    assert loaded.repairs == ()
    assert_same(loaded, mirrored(right))


def test_the_right_file_is_proof_where_the_guess_fails_and_only_if_it_is_the_same_hand(
    tmp_path, right
):
    """First direction sideways: no size in it."""
    dirs = right.shapedirs.copy()
    dirs[:, :, 0] = dirs[:, [1, 2, 0], 1]
    dirs[:, 0, 0] = 0.01 * right.v_template[:, 1]
    odd = replace(right, shapedirs=dirs)
    path = tmp_path / "MANO_LEFT.pkl"
    write_fake_mano(mirrored(odd, buggy_shapedirs=True), path)
    with pytest.raises(ValueError, match=r"does not show .*hand\.left_shapedirs=negate_x"):
        load_hand_arrays(path)
    assert load_hand_arrays(path, left_shapedirs="as_is").repairs == ()
    write_fake_mano(odd, tmp_path / "MANO_RIGHT.pkl")
    assert load_hand_arrays(path).repairs == ("left shapedirs x negated",)
    other = right.shapedirs[:, :, ::-1] * np.arange(1, 11)  # some other hand's file
    write_fake_mano(replace(right, shapedirs=other), tmp_path / "MANO_RIGHT.pkl")
    with pytest.raises(ValueError, match="does not show"):
        load_hand_arrays(path)


def test_a_converted_left_hand_is_not_settled_twice(tmp_path, folder):
    target = tmp_path / "left.npz"
    for option in ("auto", "as_is", "negate_x", "negate_all"):
        loaded = load_hand_arrays(folder / "MANO_LEFT.pkl", left_shapedirs=option)
        save_npz(target, loaded)
        assert_same(load_hand_arrays(target), loaded)
        other = "negate_x" if option in ("as_is", "negate_all") else "negate_all"
        with pytest.raises(ValueError, match="converted with its shapedirs settled"):
            load_hand_arrays(target, left_shapedirs=other)


def test_options_without_meaning_are_refused(folder):
    for option in ("as_is", "negate_x", "negate_all"):
        with pytest.raises(ValueError, match=rf"a right hand: hand\.left_shapedirs={option}"):
            load_hand_arrays(folder / "MANO_RIGHT.pkl", left_shapedirs=option)
    with pytest.raises(ValueError, match=r"one of .*got 'yes'"):
        load_hand_arrays(folder / "MANO_LEFT.pkl", left_shapedirs="yes")


def test_folders_are_searched_for_the_right_hand(tmp_path, folder, right):
    assert resolve_hand_path(folder) == folder / "MANO_RIGHT.pkl"
    assert load_hand_arrays(folder).sha256 == right.sha256
    with pytest.raises(FileNotFoundError, match=r"no MANO_RIGHT\.pkl"):
        load_hand_arrays(tmp_path)
    (tmp_path / "models").mkdir()
    save_npz(tmp_path / "models" / "MANO_RIGHT.npz", right)
    assert load_hand_arrays(tmp_path).sha256 == right.sha256
    (tmp_path / "mano").mkdir()
    (tmp_path / "mano" / "MANO_RIGHT.pkl").write_bytes((folder / "MANO_RIGHT.pkl").read_bytes())
    assert resolve_hand_path(tmp_path).parent.name == "mano"


def test_a_pickle_cut_short_is_a_value_error_wherever_it_is_cut(tmp_path, folder):
    whole = (folder / "MANO_RIGHT.pkl").read_bytes()
    path = tmp_path / "MANO_RIGHT.pkl"
    cuts = {*range(60), *np.linspace(60, len(whole) - 1, 40).astype(int), len(whole) - 1}
    for cut in sorted(cuts):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"MANO_RIGHT\.pkl is damaged"):
            load_hand_arrays(path)


def test_an_npz_cut_short_or_of_objects_is_a_value_error(tmp_path, right):
    path = tmp_path / "hand.npz"
    save_npz(path, right)
    whole = path.read_bytes()
    for cut in (0, 3, 100, 5000, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"hand\.npz is damaged or not an npz"):
            load_hand_arrays(path)
    np.savez(path, f=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match=r"hand\.npz is damaged or not an npz"):
        load_hand_arrays(path)
    with path.open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(ValueError, match="one array instead"):
        load_hand_arrays(path)
    (tmp_path / "hand.mat").write_bytes(whole)
    with pytest.raises(ValueError, match=r"read from \.pkl and \.npz, got hand\.mat"):
        load_hand_arrays(tmp_path / "hand.mat")


def test_code_inside_a_hand_file_is_refused_and_does_not_run(tmp_path, folder):
    marker = tmp_path / "ran"
    order = f"S'touch {marker}'\n".encode()
    whole = (folder / "MANO_RIGHT.pkl").read_bytes()
    path = tmp_path / "MANO_RIGHT.pkl"
    for call in (b"cos\nsystem\n(" + order + b"tR", b"(" + order + b"ios\nsystem\n"):
        pickle.load(io.BytesIO(call + b"."))  # noqa: S301  the attack is real
        assert marker.exists()
        marker.unlink()
        path.write_bytes(whole[:-2] + b"U\x01z" + call + b"u.")
        with pytest.raises(UnsafePickleError, match=r"os\.system: refused, nothing"):
            load_hand_arrays(path)
        assert not marker.exists()


def pickled(path, **content):
    dump(content, path)
    return read_mano(path)


def test_other_formulas_are_refused_by_name(tmp_path):
    leaf = Foreign("chumpy.ch", "Ch", {"x": np.ones(3)})
    for module, name in (
        ("chumpy.reordering", "Concatenate"),
        ("chumpy.ch_ops", "add"),
        ("chumpy.ch", "ChLambda"),
        ("scipy.sparse.coo", "coo_matrix"),
    ):
        node = Foreign(module, name, {"a": leaf})
        with pytest.raises(UnsafePickleError, match=rf"{module}\.{name}: refused.*Select"):
            pickled(tmp_path / "a.pkl", v_template=node)


def test_formulas_are_worked_out(tmp_path):
    def read(module, name, **state):
        return pickled(tmp_path / "a.pkl", f=Foreign(module, name, state))["f"]

    x = np.arange(6.0).reshape(2, 3)
    leaf = Foreign("chumpy.ch", "Ch", {"x": x})
    np.testing.assert_array_equal(read("chumpy.ch", "Ch", x=x), x)
    picked = read("chumpy.reordering", "Select", a=leaf, idxs=np.array([5, 0, 0]))
    assert picked.tolist() == [5, 0, 0]
    inner = Foreign(
        "chumpy.reordering", "Select", {"a": leaf, "idxs": np.arange(4), "preferred_shape": (4, 1)}
    )
    shaped = read("chumpy.reordering", "Reshape", a=inner, newshape=(2, 2))
    assert shaped.tolist() == [[0, 1], [2, 3]]
    for name, state in (
        ("Select", {"a": leaf, "idxs": np.array([6])}),
        ("Select", {"a": leaf, "idxs": np.array([0]), "preferred_shape": (2,)}),
        ("Reshape", {"a": leaf, "newshape": (7,)}),
        ("Reshape", {"newshape": (6,)}),
        ("Select", {"a": "text", "idxs": np.array([0])}),
    ):
        with pytest.raises(ValueError, match=r"a\.pkl: f holds "):
            read("chumpy.reordering", name, **state)
    loop: dict = {"newshape": (6,)}
    loop["a"] = Foreign("chumpy.reordering", "Reshape", loop)
    with pytest.raises(ValueError, match="f holds"):
        pickled(tmp_path / "a.pkl", f=loop["a"])


@pytest.mark.parametrize("kind", ["csc", "csr"])
def test_sparse_matrices_are_written_out_as_scipy_would(tmp_path, kind):
    rng = np.random.default_rng(0)
    dense = rng.random((16, 778)) * (rng.random((16, 778)) < 0.05)
    matrix = sparse.csc_matrix(dense) if kind == "csc" else sparse.csr_matrix(dense)
    parts = {key: getattr(matrix, key) for key in ("data", "indices", "indptr")}
    path = tmp_path / "a.pkl"
    for module in (f"scipy.sparse.{kind}", f"scipy.sparse._{kind}"):
        for shape in ("shape", "_shape"):
            node = Foreign(module, f"{kind}_matrix", {**parts, shape: (16, 778)})
            np.testing.assert_array_equal(pickled(path, J_regressor=node)["J_regressor"], dense)
    path.write_bytes(pickle.dumps({"J_regressor": matrix}, 2))  # by the scipy that is installed
    np.testing.assert_array_equal(read_mano(path)["J_regressor"], dense)
    twice = {"data": np.ones(2), "indices": np.zeros(2, int), "indptr": np.array([0, 2])}
    node = Foreign(f"scipy.sparse.{kind}", f"{kind}_matrix", {**twice, "shape": (1, 1)})
    assert pickled(path, J_regressor=node)["J_regressor"].tolist() == [[2.0]]
    for bad in (
        {"shape": (16, 777)},
        {"shape": (10**9, 10**9)},
        {"indices": parts["indices"] - 1},
        {"indices": parts["indices"] + 778},
        {"indptr": parts["indptr"][::-1]},
        {"data": parts["data"][:-1]},
    ):
        node = Foreign(
            f"scipy.sparse.{kind}", f"{kind}_matrix", {**parts, "shape": (16, 778), **bad}
        )
        with pytest.raises(ValueError, match="J_regressor holds a sparse matrix"):
            pickled(path, J_regressor=node)


def test_pickles_of_other_things_are_refused(tmp_path, folder):
    path = tmp_path / "a.pkl"
    dump([1, 2], path)
    with pytest.raises(ValueError, match=r"must hold MANO's dict, got a list"):
        load_hand_arrays(path)
    dump({"handPose": np.zeros(48)}, path)
    with pytest.raises(ValueError, match=r"a\.pkl lacks .*not a hand model"):
        load_hand_arrays(path)
    dump({"v_template": "text"}, path)
    with pytest.raises(ValueError, match="v_template holds str where an array"):
        load_hand_arrays(path)


def archived(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def claiming(shape) -> bytes:
    """A .npy whose header claims a shape, with sixteen bytes of content."""
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(2))
    raw = buffer.getvalue()
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117)
    return raw[:10] + text + b"\n" + raw[-16:]


@pytest.mark.parametrize("shape", [(10**12,), (2**62, 4), (2**64,), (-1,), "((" * 20])
def test_headers_of_an_npz_that_claim_more_than_it_holds_are_refused(tmp_path, shape):
    path = archived(tmp_path / "hand.npz", v_template=claiming(shape))
    with pytest.raises(ValueError, match=r"hand\.npz is damaged or not an npz "):
        read_mano(path)


def test_an_npz_that_unpacks_to_gigabytes_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "hand.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("f.npy", "w", force_zip64=True) as member,
    ):
        for _ in range(300):
            member.write(bytes(1_000_000))
    assert path.stat().st_size < 2_000_000
    with pytest.raises(ValueError, match=r"hand\.npz .*1 arrays of 300000000 bytes; at most 1000 "):
        read_mano(path)


@pytest.mark.parametrize("tips", [np.zeros(5), np.array(["a"] * 5), np.zeros((5, 9), int)])
def test_tip_ids_are_five_integers(tmp_path, hand_arrays, tips):
    save_npz(tmp_path / "hand.npz", replace(hand_arrays, tip_ids=tips))
    with pytest.raises(ValueError, match=r"hand\.npz: tip_ids must be five vertices, got"):
        load_hand_arrays(tmp_path / "hand.npz")


def test_an_endless_shape_of_a_sparse_matrix_is_named(tmp_path):
    far = Foreign("scipy.sparse.csc", "csc_matrix", {"_shape": (float("inf"), 1.0)})
    dump({"J_regressor": far}, tmp_path / "hand.pkl")
    with pytest.raises(ValueError, match=r"hand\.pkl: J_regressor holds .*infinity"):
        read_mano(tmp_path / "hand.pkl")
