"""Pretrain a backbone on unlabeled hand crops.

python tools/pretrain.py data=folder data.root=DIR                  # your crops, ViT-B/16
python tools/pretrain.py experiment=cpu_pretrain data.root=DIR      # the same on a CPU, minutes
python tools/pretrain.py experiment=quickstart_pretrain             # rendered hands, a CPU, minutes
python tools/pretrain.py 'objective=[patch_distill,koleo]' ... # an ablation is one override
python tools/pretrain.py method=ibot ...                            # or dino, swav, mae, ...
"""

from handmim.cli import main

if __name__ == "__main__":
    main("pretrain")
