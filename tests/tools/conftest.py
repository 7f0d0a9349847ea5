import pytest

from tests.tools.calls import PRETRAIN, TINY, call, small_data


@pytest.fixture(scope="session")
def workdir(tmp_path_factory, hand_path):
    """A working folder with the hand model and a small cache, shared by the tests of the tools."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "data").mkdir()
    (folder / "data" / hand_path.name).write_bytes(hand_path.read_bytes())
    return folder


@pytest.fixture(scope="session")
def pretrained(workdir):
    overrides = [
        *PRETRAIN,
        *TINY,
        *small_data(workdir),
        "probe.hook=null",
        "name=pre",
        "trainer.image_every=4",
    ]
    call(workdir, "pretrain.py", *overrides)
    return workdir / "runs" / "pre"
