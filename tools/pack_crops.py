"""Pack a tree of pictures, or tar files of them, into one file of square crops for data=packed.

python tools/pack_crops.py SOURCE FILE [--image-px 256] [--coding jpeg]
python tools/pretrain.py data=packed data.root=FILE
"""

from handmim.cli import main

if __name__ == "__main__":
    main("pack")
