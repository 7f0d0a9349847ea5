import numpy as np
import pytest

from handmim.utils.checked_files import check_array, open_array, save_array

VALUES = np.arange(12, dtype=np.float32).reshape(2, 3, 2)


@pytest.fixture
def path(tmp_path):
    save_array(tmp_path / "a" / "x.npy", VALUES)
    return tmp_path / "a" / "x.npy"


def test_arrays_come_back_also_by_numpy_alone(path):
    check_array(path)
    np.testing.assert_array_equal(open_array(path, (3, 2), "float32"), VALUES)
    np.testing.assert_array_equal(np.load(path), VALUES)
    assert [p.name for p in path.parent.iterdir()] == ["x.npy"]


def test_every_changed_byte_is_found(path):
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"x\.npy is damaged"):
            check_array(path)


def test_every_cut_is_found(path):
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"x\.npy is damaged"):
            check_array(path)


def test_headers_are_believed_as_far_as_the_file_reaches(path):
    def header(text: str) -> None:
        path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode())

    for shape in ("(2, 3, 2)", f"({2**62}, 3, 2)"):
        header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}")
        with pytest.raises(ValueError, match=r"x\.npy is cut off"):
            open_array(path, (3, 2), "float32")
    for descr, shape in (
        ("|O", "(2, 3, 2)"),
        ("<f8", "(2, 3, 2)"),
        ("<f4", "(12,)"),
        ("<f4", "()"),
    ):
        header(f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}")
        with pytest.raises(ValueError, match=r"x\.npy (holds|is) .* type float32 is required"):
            open_array(path, (3, 2), "float32")
    for text in ("", "{}", "[" * 9000, "1" * 60_000):
        header(text)
        with pytest.raises(ValueError, match=r"x\.npy is .*no \.npy file"):
            open_array(path, (3, 2), "float32")


def test_other_files_are_no_arrays(path):
    for content in (b"", b"PK\x03\x04", b"\x93NUMPY"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.npy .*no \.npy .* is required"):
            open_array(path, (3, 2), "float32")
