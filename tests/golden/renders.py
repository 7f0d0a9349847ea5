"""Images and labels of a few renders, kept in renders.npz as the renderer of today draws them.

When images are meant to change, raise RENDERER_VERSION and write the file anew:
python -m tests.golden.renders
"""

from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("renders.npz")
STUDIO = {"view": "cone", "background": "studio", "objects": 0.0, "occluders": 0.0}
CASES = {
    "full": ({"image_px": 56}, range(4)),
    "occluded": ({"image_px": 40, "occluders": 1.0, "blur": 0.0, "motion_blur": 1.0}, range(2)),
    "studio": ({"image_px": 48, **STUDIO}, range(2)),
    "supersampled": ({"image_px": 40, "supersample": 2}, range(2)),
}
FIELDS = ("image", "mask", "K_px", "verts_cam_m", "joints_cam_m", "rotmats", "betas")


def draw(hand_arrays) -> dict[str, np.ndarray]:
    """All cases by case and field."""
    from handmim.render.scene import SceneRenderer, SceneSettings

    drawn = {}
    for name, (settings, indices) in CASES.items():
        renderer = SceneRenderer(hand_arrays, SceneSettings(**settings), seed=11)
        hands = [renderer.render(i) for i in indices]
        for field in FIELDS:
            drawn[f"{name}.{field}"] = np.stack([getattr(hand, field) for hand in hands])
        drawn[f"{name}.verts_cam_m"] = drawn[f"{name}.verts_cam_m"][:, ::50]
    return drawn


if __name__ == "__main__":
    from handmim.hand.io import load_hand_arrays

    np.savez_compressed(FILE, **draw(load_hand_arrays("standin")))
