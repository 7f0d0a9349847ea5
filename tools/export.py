"""A checkpoint of fine-tuning as one small file, for prediction alone.

python tools/export.py runs/adapt/hand/best.pt hand.safetensors
"""

from handmim.cli import main

if __name__ == "__main__":
    main("export")
