import pytest

from tests.tools.calls import PRETRAIN, TINY, call, small_data


@pytest.fixture(scope="session")
def place(tmp_path_factory, hand_path):
    """A working folder with the hand model and a small cache, shared by the tests of the tools."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "data").mkdir()
    (folder / "data" / hand_path.name).write_bytes(hand_path.read_bytes())
    return folder


@pytest.fixture(scope="session")
def pretrained(place):
    words = [
        *PRETRAIN,
        *TINY,
        *small_data(place),
        "probe=none",
        "name=pre",
        "trainer.image_every=4",
    ]
    call(place, "pretrain.py", *words)
    return place / "runs" / "pre"
