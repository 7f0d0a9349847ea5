"""Pretrain a backbone on unlabeled hand crops.

python tools/pretrain.py data=folder data.root=DIR                  # your crops, ViT-B/16
python tools/pretrain.py experiment=cpu_pretrain data.root=DIR      # the same on a CPU, minutes
python tools/pretrain.py experiment=quickstart_pretrain             # rendered hands, a CPU, minutes
python tools/pretrain.py 'loss=[patch_distill,keypoint_align]' ...  # an ablation is one override
"""

import hydra
from omegaconf import DictConfig

from handmim.pipelines.pretrain import pretrain


@hydra.main(version_base="1.3", config_path="../configs", config_name="pretrain")
def main(cfg: DictConfig) -> None:
    """Assemble, train, export."""
    pretrain(cfg)


if __name__ == "__main__":
    main()
