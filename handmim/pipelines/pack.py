"""The command line of packing."""

import argparse
import logging

from handmim.utils.overrides import given_output, given_path
from handmim.utils.progress import Progress


def main() -> None:
    """Read, square, write, say what was left out."""
    parser = argparse.ArgumentParser(description="write a tree of images as one file")
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
    given = parser.parse_args()

    from handmim.data.packing import pack_crops

    logging.basicConfig(format="%(message)s")
    with Progress(None) as shown:
        unreadable = pack_crops(
            given.source,
            given.file,
            image_px=given.image_px,
            fit=given.fit,
            coding=given.coding,
            quality=given.quality,
            overwrite=given.overwrite,
            exclude=given.exclude,
            include_all=given.include_all,
            max_megapixels=given.max_megapixels,
            progress=lambda done, total: shown.update(done, total=total),
        )
    size = given.file.stat().st_size / 2**20
    print(
        f"{(shown.total or 0) - len(unreadable)} pictures of {given.image_px} px, {size:.1f} MiB, "
        f"{len(unreadable)} left out: data=packed data.root={given.file}"
    )
