"""One cell of a table; tools/ablate.py and its kin start it, alone or by Hydra's multirun.

python tools/ablate_cell.py table=objectives cell=patch/0
python tools/ablate_cell.py --multirun table=objectives cell=patch/0,pixel/0 hydra/launcher=joblib
python tools/ablate_cell.py --config-name=label_efficiency 'inits=[random,mae]' cell=mae/0
"""

from omegaconf import DictConfig

from handmim.utils.entry import compose, tool


@tool("ablate")
def main(cfg: DictConfig) -> None:
    """Pretrain, probe, fine-tune, write cell.json."""
    from handmim.ablation.one_cell import run_one_cell

    run_one_cell(cfg, compose)


if __name__ == "__main__":
    main()
