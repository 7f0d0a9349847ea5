"""Pack a tree of pictures, or tar files of them, into one file of square crops for data=packed.

python tools/pack_crops.py SOURCE FILE [--image-px 256] [--coding jpeg]
python tools/pretrain.py data=packed data.root=FILE
"""

import argparse
import logging

from handmim.utils.entry import plain_tool
from handmim.utils.progress import Progress
from handmim.utils.words import given_output, given_path


@plain_tool
def main() -> None:
    """Read, square, write, say what was left out."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "source", type=given_path, help="folder of pictures or tar files, or a tar file"
    )
    parser.add_argument("file", type=given_output, help="to write")
    px = "side of the crops, %(default)s; smaller pictures are enlarged"
    parser.add_argument("--image-px", type=int, default=256, help=px)
    fits = "%(default)s: borders are reflected; cover: the centre"
    parser.add_argument("--fit", default="contain", choices=("contain", "cover"), help=fits)
    codings = "%(default)s, or raw: quickest, ten times the size"
    parser.add_argument("--coding", default="jpeg", choices=("jpeg", "raw"), help=codings)
    parser.add_argument("--quality", type=int, default=95, help="of JPEGs, 1 to 100; %(default)s")
    parser.add_argument("--exclude", nargs="+", default=[], help="patterns of paths to leave out")
    parser.add_argument("--include-all", action="store_true", help="keep masks and depth maps too")
    parser.add_argument("--max-megapixels", type=float, default=200, help="of a file, %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    asked = parser.parse_args()

    from handmim.data.packing import pack_crops

    logging.basicConfig(format="%(message)s")
    with Progress(None) as shown:
        unreadable = pack_crops(
            asked.source,
            asked.file,
            image_px=asked.image_px,
            fit=asked.fit,
            coding=asked.coding,
            quality=asked.quality,
            overwrite=asked.overwrite,
            exclude=asked.exclude,
            include_all=asked.include_all,
            max_megapixels=asked.max_megapixels,
            progress=lambda done, total: shown.update(done, total=total),
        )
    size = asked.file.stat().st_size / 2**20
    print(
        f"{(shown.total or 0) - len(unreadable)} pictures of {asked.image_px} px, {size:.1f} MiB, "
        f"{len(unreadable)} left out: data=packed data.root={asked.file}"
    )


if __name__ == "__main__":
    main()
