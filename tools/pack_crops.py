"""Pack a tree of images, or tar files of them, into one file of square crops, or into shards.

python tools/pack_crops.py SOURCE FILE [--image-px 256] [--coding jpeg]
python tools/pretrain.py data=packed data.root=FILE
python tools/pack_crops.py SOURCE FOLDER --shard-size 1000
python tools/pretrain.py data=webdataset data.root=FOLDER
"""

from handmim.cli import main

if __name__ == "__main__":
    main("pack")
