"""Score a fine-tuned checkpoint, or an existing submission file.

python tools/eval.py checkpoint=runs/finetune/last.pt                       # its own data
python tools/eval.py checkpoint=runs/finetune/last.pt predictor=mean_hand   # the baseline to beat
python tools/eval.py checkpoint=runs/finetune/last.pt data=freihand data.root=DIR
python tools/eval.py predictions=pred.json data=ho3d_v3 data.root=DIR       # without a model
python tools/eval.py checkpoint=runs/finetune/last.pt tta=rotations         # turned crops, apart
python tools/eval.py 'checkpoint=runs/seed*/last.pt'                        # each, mean and spread

With FreiHAND or HO-3D it writes pred.json and the zip that the servers take, and every official
figure where the truth is beside the dataset.
"""

from handmim.cli import main

if __name__ == "__main__":
    main("evaluate")
