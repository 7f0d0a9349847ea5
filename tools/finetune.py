"""Fine-tune a MANO regression on labelled hand crops.

python tools/finetune.py init_from=runs/pretrain/backbone.safetensors data=synthetic
python tools/finetune.py experiment=quickstart_finetune init_from=null     # from scratch, on a CPU
"""

from omegaconf import DictConfig

from handmim.utils.entry import tool


@tool("finetune")
def main(cfg: DictConfig) -> int:
    """Assemble, start at the mean hand of the labels, train, validate.

    The exit code says how the run ended (utils/exits.py).
    """
    from handmim.pipelines.finetune import finetune

    return finetune(cfg).result.exit_code


if __name__ == "__main__":
    main()
