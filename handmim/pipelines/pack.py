"""The command line of packing."""

import argparse
import logging

from handmim.utils.console import Progress
from handmim.utils.overrides import given_output, given_path


def main() -> None:
    """Read, square, write; print the number of left out images."""
    parser = argparse.ArgumentParser(description="write a tree of images as one file, or as shards")
    source = "folder of images or tar files, or a tar file"
    parser.add_argument("source", type=given_path, help=source)
    target = "to write; a folder with --shard-size"
    parser.add_argument("target", metavar="file", type=given_output, help=target)
    px = "side of the crops, %(default)s; smaller images are enlarged"
    parser.add_argument("--image-px", type=int, default=256, help=px)
    fits = "%(default)s: borders are reflected; cover: the centre"
    parser.add_argument("--fit", default="contain", choices=("contain", "cover"), help=fits)
    codings = "%(default)s, or raw: quickest, ten times the size (PNG in shards)"
    parser.add_argument("--coding", default="jpeg", choices=("jpeg", "raw"), help=codings)
    parser.add_argument("--quality", type=int, default=95, help="of JPEGs, 1 to 100; %(default)s")
    shards = "write WebDataset shards (tar files) of so many samples"
    parser.add_argument("--shard-size", type=int, help=shards)
    labels = "keypoint file of the images: shards of labelled hands"
    parser.add_argument("--annotations", type=given_path, help=labels)
    parser.add_argument("--exclude", nargs="+", default=[], help="patterns of paths to leave out")
    parser.add_argument("--include-all", action="store_true", help="keep masks and depth maps too")
    parser.add_argument("--max-megapixels", type=float, default=200, help="of a file, %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    given = parser.parse_args()

    from handmim.data.packing import pack_crops

    logging.basicConfig(format="%(message)s")
    with Progress(None) as shown:
        unreadable = pack_crops(
            **vars(given), progress=lambda done, total: shown.update(done, total=total)
        )
    files = given.target.iterdir() if given.target.is_dir() else [given.target]
    size = sum(file.stat().st_size for file in files) / 2**20
    data = "packed" if given.shard_size is None else "webdataset"
    print(
        f"{(shown.total or 0) - len(unreadable)} images of {given.image_px} px, {size:.1f} MiB, "
        f"{len(unreadable)} left out: data={data} data.root={given.target}"
    )
