"""Pack a tree of pictures, or tar files of them, into one file of square crops for data=packed.

python tools/pack_crops.py SOURCE FILE [--image-px 256] [--coding jpeg]
python tools/pretrain.py data=packed data.root=FILE
"""

import argparse
import logging
from pathlib import Path

from rich.progress import Progress


def main() -> None:
    """Read, square, write, say what was left out."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path, help="folder of pictures or tar files, or a tar file")
    parser.add_argument("file", type=Path, help="to write")
    parser.add_argument("--image-px", type=int, default=256, help="side of the crops")
    parser.add_argument("--fit", default="contain", help="contain (borders reflected) | cover")
    parser.add_argument("--coding", default="jpeg", help="jpeg | raw: quickest, ten times the size")
    parser.add_argument("--quality", type=int, default=95, help="of JPEGs, 1 to 100")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    asked = parser.parse_args()

    from handmim.data.packing import pack_crops

    logging.basicConfig(format="%(message)s")
    with Progress() as shown:
        task = shown.add_task("packing", total=None)
        try:
            unreadable = pack_crops(
                asked.source,
                asked.file,
                image_px=asked.image_px,
                fit=asked.fit,
                coding=asked.coding,
                quality=asked.quality,
                overwrite=asked.overwrite,
                progress=lambda done, total: shown.update(task, completed=done, total=total),
            )
        except (ValueError, OSError) as error:
            parser.error(str(error))
    size = asked.file.stat().st_size / 2**20
    print(f"{asked.file}: {size:.1f} MiB, {len(unreadable)} pictures left out")


if __name__ == "__main__":
    main()
