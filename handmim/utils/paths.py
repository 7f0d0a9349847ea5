"""Files that come with the package: in it where a wheel was installed, beside it in a checkout."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
CHECKOUT = PACKAGE.parent
IS_CHECKOUT = not (PACKAGE / "configs").is_dir()
CONFIGS = CHECKOUT / "configs" if IS_CHECKOUT else PACKAGE / "configs"
STANDIN = (CHECKOUT / "data" if IS_CHECKOUT else PACKAGE / "assets") / "standin_right.npz"


def options_of(group: str) -> list[str]:
    """Names that `GROUP=NAME` takes: files of configs/GROUP."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))
