import numpy as np
import pytest

from handmim.render import scene
from handmim.render.scene import SceneRenderer, SceneSettings
from tests.render.plain_shading import plain_shade


@pytest.mark.parametrize("side", ["dorsal", "palmar"])
def test_compiled_shading_agrees_with_plain_python(monkeypatch, hand_arrays, side):
    taken, compiled = [], scene.shade
    monkeypatch.setattr(scene, "shade", lambda *args: taken.append(args))
    settings = SceneSettings(
        image_px=40, view="cone", sides=(side,), background="studio", objects=0.5, sleeves=0.3
    )
    renderer = SceneRenderer(hand_arrays, settings)
    bones = set()
    for index in range(3):
        renderer.render(index)
        *args, image = taken.pop()
        plain = image.copy()
        compiled(*args, image)
        plain_shade(*args, plain)
        covered, face_id, bone = args[0], args[1], args[10]
        assert len(covered) > 250
        assert plain[covered].std() > 0.05
        assert np.abs(image - plain).max() < 3e-5
        bones |= set(bone[face_id.ravel()[covered]])
    assert -1 in bones  # sleeve or object
    assert len(bones) > 12
