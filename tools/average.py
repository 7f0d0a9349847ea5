"""Average weights over checkpoints of fine-tunings, or over exported backbones.

python tools/average.py 'checkpoints=[a.pt,b.pt]' 'shares=[0.3,0.7]' out=FILE.pt
python tools/average.py 'checkpoints=runs/seed*/last.pt' out=FILE.pt    # equal shares
"""

from handmim.cli import main

if __name__ == "__main__":
    main("average")
