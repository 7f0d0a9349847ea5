"""Fine-tune a MANO regression on labelled hand crops.

python tools/finetune.py init_from=runs/pretrain/backbone.safetensors data=synthetic
python tools/finetune.py experiment=quickstart_finetune init_from=null     # from scratch, on a CPU
"""

from handmim.cli import main

if __name__ == "__main__":
    main("finetune")
