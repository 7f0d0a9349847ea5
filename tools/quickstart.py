"""The whole chain on the embedded default: render, pretrain, fine-tune twice, score, report.

python tools/quickstart.py
python tools/quickstart.py --seed 1 --name other data.num_train=4000

Overrides are for pretraining and both fine-tunings.
"""

from handmim.cli import main

if __name__ == "__main__":
    main("quickstart")
