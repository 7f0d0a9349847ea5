"""The surface of a hand beyond its mesh: forearm, skin colours, bone frames, palm lines."""

import itertools

import numpy as np
from numpy.typing import NDArray

from handmim.geometry.rotation_numpy import unit
from handmim.hand.arrays import HandArrays
from handmim.hand.poses import BREADTH_MM, chain
from handmim.hand.skeleton import CANONICAL_FROM_CHAIN_AND_TIPS, CHAIN_FINGERS
from handmim.render.rasterizer import vertex_normals

Array = NDArray[np.floating]

ARM_RINGS = 4
RING = 16
# Heart, head and life line: (distal, to the thumb's side) in mm from the wrist.
PALM_LINES_MM = (
    ((71, -41), (76, -28), (81, -14), (86, -4), (94, 5), (104, 12)),
    ((73, 33), (72, 18), (68, 2), (61, -14), (53, -27)),
    ((73, 33), (68, 20), (58, 9), (44, 1), (28, -2), (14, -1)),
)


class HandSurface:
    """Posing and colouring of one hand model; float64, one sample at a time.

    Args:
        arrays: the stand-in, or any model that carries `axes`, `J`, `tips` and `wrist_ring`.
    """

    def __init__(self, arrays: HandArrays) -> None:
        try:
            axes, joints, tips = (
                arrays.extras[k].astype(np.float64) for k in ("axes", "J", "tips")
            )
            self.ring = arrays.extras["wrist_ring"].astype(np.int64)
        except KeyError as error:
            raise ValueError(
                f"{arrays.name} has no {error}: only the stand-in can be drawn"
            ) from None
        self.arrays = arrays
        verts, n = arrays.v_template, len(arrays.v_template)
        self.joints = arrays.J_regressor @ verts
        self.joint_shapedirs = np.einsum("jv,vck->jck", arrays.J_regressor, arrays.shapedirs)
        self.shapedirs = arrays.shapedirs.reshape(3 * n, -1)
        self.posedirs = arrays.posedirs.reshape(3 * n, -1)
        self.tip_ids = np.asarray(arrays.tip_ids)
        self.faces = np.vstack([arrays.faces, self._arm_faces(n)]).astype(np.int32)
        self.bone = np.full(len(self.faces), -1, np.int32)
        self.bone[: len(arrays.faces)] = arrays.weights[arrays.faces].sum(axis=1).argmax(axis=1)
        self.frame = np.zeros((16, 5, 3))
        for j in range(16):
            end = joints[4] if j == 0 else tips[j // 3 - 1] if j % 3 == 0 else joints[j + 1]
            breadth_mm = BREADTH_MM[CHAIN_FINGERS[max(j - 1, 0) // 3]][j % 3 == 0]
            self.frame[j, 0], self.frame[j, 1:4] = joints[j], axes[j][[2, 0, 1]]
            self.frame[j, 4, :2] = np.linalg.norm(end - joints[j]), breadth_mm / 2e3
        segments = [np.hstack([line[:-1], line[1:]]) for line in map(np.array, PALM_LINES_MM)]
        wrist_xz = joints[0, [0, 2, 0, 2]]
        ends = wrist_xz + np.vstack(segments) * 1e-3 * [-1, 1, -1, 1]
        along = ends[:, 2:] - ends[:, :2]
        self.lines = np.column_stack([ends[:, :2], along, 1 / (along**2).sum(axis=1)])
        normals: Array = np.zeros_like(verts)
        vertex_normals(verts, arrays.faces, normals)
        normals = unit(normals)

        def near(points: Array, reach_m: float) -> Array:
            d = np.linalg.norm(verts[:, None] - points, axis=2).min(axis=1)
            return np.exp(-((d / reach_m) ** 2))[:, None]

        palmar = np.clip(0.2 - 1.5 * normals[:, 1:2], 0, 1)
        knuckle = near(self.joints[1:], 0.012) * np.clip(normals[:, 1:2], 0, 1)
        self._paler = palmar * np.array([0.10, 0.07, 0.07])
        self._redder = 1 + near(verts[self.tip_ids], 0.014) * np.array([0.03, -0.09, -0.06])
        self._redder *= 1 - knuckle * np.array([0.03, 0.10, 0.10])
        arm = [verts[self.ring] + [0.03 * k, 0, 0] for k in range(ARM_RINGS)]
        self.rest = np.vstack([verts, *arm])

    @staticmethod
    def _arm_faces(first: int) -> NDArray[np.int64]:
        rows = [first + RING * k + np.arange(RING) for k in range(ARM_RINGS)]
        faces = []
        for a, b in itertools.pairwise(rows):
            a2, b2 = np.roll(a, -1), np.roll(b, -1)
            faces += [np.stack([a, a2, b2], axis=1), np.stack([a, b2, b], axis=1)]
        last = rows[-1]
        cap = np.stack([np.full(RING - 2, last[0]), last[1:-1], last[2:]], axis=1)
        return np.vstack([*faces, cap])

    def pose(self, rotmats: Array, betas: Array) -> tuple[Array, Array]:
        """Blend skinning of one hand, without translation.

        Args:
            rotmats: [16, 3, 3] R_cam_from_mano, then absolute finger rotations.
            betas: [10].
        Returns: vertices [V, 3] and joints [21, 3], metres.
        """
        a = self.arrays
        joints = self.joints + self.joint_shapedirs @ betas
        offsets = self.shapedirs @ betas + self.posedirs @ (rotmats[1:] - np.eye(3)).ravel()
        rest = a.v_template + offsets.reshape(-1, 3)
        world, posed = (x[0] for x in chain(rotmats[None], joints))
        shift = posed - (world @ joints[..., None])[..., 0]
        transforms = np.concatenate([world, shift[..., None]], axis=2).reshape(16, 12)
        blended = (a.weights @ transforms).reshape(-1, 3, 4)
        verts = np.einsum("vab,vb->va", blended[..., :3], rest) + blended[..., 3]
        order = list(CANONICAL_FROM_CHAIN_AND_TIPS)
        return verts, np.vstack([posed, verts[self.tip_ids]])[order]

    def arm(self, verts: Array, wrist_axis: Array) -> Array:
        """[64, 3] rings of a forearm that continues the wrist along `wrist_axis`."""
        ring = verts[self.ring]
        centre = ring.mean(axis=0)
        steps = np.arange(ARM_RINGS)[:, None, None]
        rings = centre + (ring - centre) * (1 + 0.10 * steps) + wrist_axis * 0.035 * steps
        return rings.reshape(-1, 3)

    def colours(self, tone: Array) -> Array:
        """[V, 3] skin: paler in the palm, redder at fingertips and knuckles."""
        return tone * (1 + self._paler * (1.6 - tone.mean())) * self._redder
