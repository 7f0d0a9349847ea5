"""The command line of packing."""

import argparse
import logging

from handmim.utils.console import Progress
from handmim.utils.entry import given_output, given_path


def main() -> None:
    """Read, square, write; print the number of left out images."""
    form = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description="write images as one file", formatter_class=form)
    add = parser.add_argument
    add("source", type=given_path, help="folder of images or tar files, or a tar file")
    add("target", metavar="file", type=given_output, help="to write; a folder with --shard-size")
    add("--image-px", type=int, default=256, help="side of the crops; smaller ones are enlarged")
    fits = "contain: borders are reflected; cover: the centre"
    add("--fit", default="contain", choices=("contain", "cover"), help=fits)
    codings = "raw is quickest, at ten times the size (PNG in shards)"
    add("--coding", default="jpeg", choices=("jpeg", "raw"), help=codings)
    add("--quality", type=int, default=95, help="of JPEGs, 1 to 100")
    add("--shard-size", type=int, help="write WebDataset shards (tar files) of so many samples")
    add("--annotations", type=given_path, help="keypoint file: shards of labelled hands")
    add("--exclude", nargs="+", default=[], help="patterns of paths to leave out")
    add("--include-all", action="store_true", help="keep masks and depth maps too")
    add("--max-megapixels", type=float, default=200, help="of a file")
    add("--overwrite", action="store_true", help="replace FILE")
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
