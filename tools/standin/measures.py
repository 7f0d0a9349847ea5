"""Measures of the stand-in hand and the ranges that each must stay in.

One table (`FACTS`) serves the tests, `tools/measure_standin.py` and data/README.md. Overlap and
surface distance are taken against the sculpt itself, so they need neither the mesh builder nor its
libraries.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handmim.geometry.rotation_numpy import matrix_to_rotvec
from handmim.hand.io import HandArrays
from handmim.hand.poses import PoseSampler, chain
from handmim.hand.skeleton import CHAIN_FINGERS
from standin.anatomy import BONES, PULP, TIP_SLOT, WRIST, Skeleton
from standin.mesh import quality
from standin.sculpt import digit, gradient, sdf

Array = NDArray[np.floating[Any]]
CLOSED_PIP_DEG = 75.0  # a fist is closed when all four fingers bend this far at the middle joint
OVERLAP_MM = 2.0


@dataclass(frozen=True)
class Fact:
    """A measure of the stand-in and the range it has to stay in.

    Args:
        key: name in the measures.
        text: what it is.
        low, high: inclusive range; None leaves a side open.
        digits: digits after the point when printed.
        unit: of value and range.
    """

    key: str
    text: str
    low: float | None = None
    high: float | None = None
    digits: int = 0
    unit: str = ""

    def holds(self, value: float) -> bool:
        """Whether the value lies in the range; not a number never does."""
        above = value >= self.low if self.low is not None else value == value
        return above and (self.high is None or value <= self.high)

    def required(self) -> str:
        """The range as text."""
        if self.low is not None and self.low == self.high:
            return f"= {self.low:g}"
        parts = [f">= {self.low:g}"] if self.low is not None else []
        return ", ".join(parts + ([f"<= {self.high:g}"] if self.high is not None else []))


def _bone_facts() -> Iterator[Fact]:
    for finger in CHAIN_FINGERS:
        lengths = (*BONES[finger][:2], BONES[finger][2] + PULP[finger])
        for i, length in enumerate(lengths):
            yield Fact(
                f"bone_{finger}_{i + 1}_mm",
                f"{finger} bone {i + 1}",
                length - 0.05,
                length + 0.05,
                1,
                "mm",
            )


FACTS: tuple[Fact, ...] = (
    Fact("num_verts", "vertices", 778, 778),
    Fact("num_faces", "triangles", 1538, 1538),
    Fact("num_edges", "edges", 2315, 2315),
    Fact("num_rim_edges", "edges of the open wrist", 16, 16),
    Fact("num_non_manifold", "edges of more than two triangles", 0, 0),
    Fact("euler", "Euler number", 1, 1),
    Fact("num_components", "connected parts", 1, 1),
    Fact("num_open_when_capped", "open edges once a 14-triangle fan closes the wrist", 0, 0),
    Fact("quality_min", "least triangle quality (1 = equilateral)", 0.5, None, 2),
    Fact("quality_p1", "triangle quality, 1st percentile", 0.8, None, 2),
    Fact("quality_median", "triangle quality, median", 0.95, None, 2),
    Fact("valence_min", "least edges at a vertex", 3, None),
    Fact("valence_max", "most edges at a vertex", None, 9),
    Fact("edge_min_mm", "shortest edge", 2.0, None, 1, "mm"),
    Fact("edge_median_mm", "median edge", 5.0, 9.0, 1, "mm"),
    Fact("edge_max_mm", "longest edge", None, 25.0, 1, "mm"),
    Fact("num_faces_inside_out", "triangles against the sculpt's normal", 0, 0),
    Fact("sculpt_mean_mm", "face centres off the sculpt, mean", None, 0.2, 2, "mm"),
    Fact("sculpt_p99_mm", "face centres off the sculpt, 99th percentile", None, 1.5, 2, "mm"),
    *_bone_facts(),
    Fact("hand_length_mm", "wrist to middle fingertip", 180, 200, 0, "mm"),
    Fact("knuckle_breadth_mm", "breadth at the knuckles", 78, 92, 0, "mm"),
    Fact("wrist_perimeter_mm", "perimeter of the wrist's rim", 140, 180, 0, "mm"),
    Fact("volume_cm3", "volume", 320, 400, 0, "cm3"),
    Fact("tip_max_mm", "farthest fingertip vertex from its digit's end", None, 2.0, 1, "mm"),
    Fact("regressor_error_mm", "regressed joints off the skeleton", None, 0.05, 5, "mm"),
    Fact("regressor_nonzeros_min", "fewest vertices of a regressed joint", 25, None),
    Fact("regressor_nonzeros_max", "most vertices of a regressed joint", None, 60),
    Fact("regressor_least", "least regressor entry", 0.0, None, 3),
    Fact("regressor_sum_error", "regressor rows off 1", None, 1e-6, 8),
    Fact("weights_per_vertex_max", "most skinning weights of a vertex", None, 4),
    Fact("weights_sum_error", "skinning rows off 1", None, 1e-6, 8),
    Fact("verts_per_joint_min", "fewest vertices that a joint dominates", 18, None),
    Fact("shape_rank", "rank of the shape basis", 10, 10),
    Fact("shape_cosine_max", "largest cosine between shape directions", None, 1e-6, 10),
    Fact("shape_first_mm", "first shape direction, rms per unit", 5.0, 8.0, 2, "mm"),
    Fact("shape_last_mm", "last shape direction, rms per unit", 0.2, None, 2, "mm"),
    Fact("pose_variance_6", "pose variance in 6 components", 0.85, None, 3),
    Fact("pose_variance_15", "pose variance in 15 components", 0.95, None, 3),
    Fact("pose_variance_30", "pose variance in 30 components", 0.995, None, 3),
    Fact("volume_ratio_min", "least volume over random poses, of the rest volume", 0.92, None, 3),
    Fact("volume_ratio_mean", "mean volume over random poses", 0.97, 1.02, 3),
    Fact("volume_ratio_max", "largest volume over random poses", None, 1.06, 3),
    Fact("volume_gain_min", "least volume: gain by the pose blendshapes", 0.005, None, 3),
    Fact("stretch_low", "edge stretch, 0.1 %, mean over poses", 0.3, None, 2),
    Fact("stretch_high", "edge stretch, 99.9 %, mean over poses", None, 2.6, 2),
    Fact("accepted", "raw draws that the sampler accepts", 0.5, None, 2),
    Fact("closed", "closed fists among accepted poses", 0.10, None, 3),
    Fact(
        "overlap",
        f"sampled poses with digits over {OVERLAP_MM:g} mm inside each other",
        None,
        0.02,
        3,
    ),
)


def capped(faces: NDArray[np.integer[Any]], ring: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Faces with the open wrist closed by a fan of 14 triangles."""
    fan = [(ring[0], ring[i], ring[i + 1]) for i in range(1, len(ring) - 1)]
    return np.vstack([faces, fan]).astype(np.int64)


def volume_m3(verts: Array, closed_faces: NDArray[np.integer[Any]]) -> float:
    """Signed volume inside a closed surface."""
    corner = verts[closed_faces] - verts.mean(axis=0)
    return float(np.linalg.det(corner).sum() / 6)


def pose_verts(arrays: HandArrays, rotmats: Array, *, correctives: bool = True) -> Array:
    """Independent skinning in float64 numpy, an oracle for `HandModel`.

    Args:
        arrays: hand model, at zero betas.
        rotmats: [16, 3, 3].
        correctives: add the pose blendshapes.
    Returns: [V, 3] metres.
    """
    joints = arrays.J_regressor @ arrays.v_template
    rest = arrays.v_template
    if correctives:
        rest = rest + arrays.posedirs @ (rotmats[1:] - np.eye(3)).reshape(135)
    world, posed = (x[0] for x in chain(rotmats[None], joints))
    moved = np.einsum("jab,vjb->vja", world, rest[:, None] - joints) + posed
    return np.einsum("vj,vja->va", arrays.weights, moved)


def overlaps(arrays: HandArrays, rotmats: Array, depth_mm: float = OVERLAP_MM) -> bool:
    """Whether a vertex of one digit lies deeper than `depth_mm` inside the sculpt of another.

    Args:
        arrays: the stand-in.
        rotmats: [16, 3, 3], wrist identity.
        depth_mm: allowed depth.
    """
    rotvec = matrix_to_rotvec(rotmats[None])[0]
    skeleton = Skeleton().posed(_to_design_axes(rotvec))
    points = _to_design_axes((pose_verts(arrays, rotmats) - WRIST) * 1e3)
    share = arrays.weights[:, 1:].reshape(-1, 5, 3).sum(axis=2)
    owner = np.where(share.max(axis=1) > 0.9, share.argmax(axis=1), -1)
    return any(
        bool((digit(points[(owner >= 0) & (owner != k)], skeleton, k) < -depth_mm).any())
        for k in range(5)
    )


def _to_design_axes(v: Array) -> Array:
    """Model axes (x, y, z) to the design's (distal, radial, dorsal)."""
    return np.stack([-v[:, 0], v[:, 2], v[:, 1]], axis=1)


def _edges(faces: NDArray[np.integer[Any]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    pairs = np.sort(np.vstack([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    edges, counts = np.unique(pairs, axis=0, return_counts=True)
    return edges.astype(np.int64), counts


def _mesh(arrays: HandArrays) -> Iterator[tuple[str, float]]:
    verts, faces, ring = arrays.v_template, arrays.faces, arrays.extras["wrist_ring"]
    edges, counts = _edges(faces)
    yield "num_verts", len(verts)
    yield "num_faces", len(faces)
    yield "num_edges", len(edges)
    yield "num_rim_edges", int((counts == 1).sum())
    yield "num_non_manifold", int((counts > 2).sum())
    yield "euler", len(verts) - len(edges) + len(faces)
    part = np.arange(len(verts))
    while True:  # the smallest index spreads over each connected part
        low = part[edges].min(axis=1)
        new = part.copy()
        np.minimum.at(new, edges.ravel(), np.repeat(low, 2))
        if (new == part).all():
            break
        part = new
    yield "num_components", len(np.unique(part))
    closed = capped(faces, ring)
    # Closed and consistently oriented: every directed edge is met by its opposite exactly once.
    directed = np.vstack([closed[:, [0, 1]], closed[:, [1, 2]], closed[:, [2, 0]]])
    ahead = {(int(a), int(b)) for a, b in directed}
    unmet = sum((b, a) not in ahead for a, b in ahead) + len(directed) - len(ahead)
    yield "num_open_when_capped", unmet
    good = quality(verts, faces)
    yield "quality_min", float(good.min())
    yield "quality_p1", float(np.percentile(good, 1))
    yield "quality_median", float(np.median(good))
    valence = np.bincount(edges.ravel())
    yield "valence_min", int(valence.min())
    yield "valence_max", int(valence.max())
    length = np.linalg.norm(verts[edges[:, 0]] - verts[edges[:, 1]], axis=1) * 1e3
    yield "edge_min_mm", float(length.min())
    yield "edge_median_mm", float(np.median(length))
    yield "edge_max_mm", float(length.max())
    centres = _to_design_axes((verts[faces].mean(axis=1) - WRIST) * 1e3)
    normals = np.cross(
        verts[faces[:, 1]] - verts[faces[:, 0]], verts[faces[:, 2]] - verts[faces[:, 0]]
    )
    slope = gradient(centres, Skeleton())
    yield "num_faces_inside_out", int(((_to_design_axes(normals) * slope).sum(axis=1) < 0).sum())
    off = np.abs(sdf(centres, Skeleton()))
    yield "sculpt_mean_mm", float(off.mean())
    yield "sculpt_p99_mm", float(np.percentile(off, 99))


def _size(arrays: HandArrays) -> Iterator[tuple[str, float]]:
    joints, tips = arrays.extras["J"] * 1e3, arrays.extras["tips"] * 1e3
    verts = arrays.v_template * 1e3
    off = []
    for k, finger in enumerate(CHAIN_FINGERS):
        line = [*joints[1 + 3 * k : 4 + 3 * k], tips[k]]
        for i in range(3):
            yield f"bone_{finger}_{i + 1}_mm", float(np.linalg.norm(line[i + 1] - line[i]))
        off.append(np.linalg.norm(verts[TIP_SLOT[finger]] - tips[k]))
    yield "tip_max_mm", float(max(off))
    yield "hand_length_mm", float(np.linalg.norm(verts[TIP_SLOT["middle"]] - joints[0]))
    at_knuckles = np.abs(verts[:, 0] - (joints[0, 0] - 80)) < 8
    no_thumb = arrays.weights[:, 13:].sum(axis=1) < 0.3
    yield "knuckle_breadth_mm", float(np.ptp(verts[at_knuckles & no_thumb, 2]))
    ring = arrays.extras["wrist_ring"]
    rim = verts[np.append(ring, ring[0])]
    yield "wrist_perimeter_mm", float(np.linalg.norm(np.diff(rim, axis=0), axis=1).sum())
    yield "volume_cm3", volume_m3(arrays.v_template, capped(arrays.faces, ring)) * 1e6


def _rig(arrays: HandArrays) -> Iterator[tuple[str, float]]:
    regressor, weights = arrays.J_regressor, arrays.weights
    error = np.abs(regressor @ arrays.v_template - arrays.extras["J"])
    yield "regressor_error_mm", float(error.max() * 1e3)
    nonzeros = (regressor != 0).sum(axis=1)
    yield "regressor_nonzeros_min", int(nonzeros.min())
    yield "regressor_nonzeros_max", int(nonzeros.max())
    yield "regressor_least", float(regressor.min())
    yield "regressor_sum_error", float(np.abs(regressor.sum(axis=1) - 1).max())
    yield "weights_per_vertex_max", int((weights > 0).sum(axis=1).max())
    yield "weights_sum_error", float(np.abs(weights.sum(axis=1) - 1).max())
    yield "verts_per_joint_min", int(np.bincount(weights.argmax(axis=1), minlength=16).min())
    shapes = arrays.shapedirs.reshape(-1, 10)
    size = np.linalg.norm(shapes, axis=0)
    yield "shape_rank", int(np.linalg.matrix_rank(shapes / size))
    cosines = (shapes / size).T @ (shapes / size) - np.eye(10)
    yield "shape_cosine_max", float(np.abs(cosines).max())
    rms_mm = size / np.sqrt(len(arrays.v_template)) * 1e3
    yield "shape_first_mm", float(rms_mm[0])
    yield "shape_last_mm", float(rms_mm[-1])
    variance = np.cumsum(arrays.extras["hands_std"].astype(np.float64) ** 2)
    for num in (6, 15, 30):
        yield f"pose_variance_{num}", float(variance[num - 1] / variance[-1])


def _poses(arrays: HandArrays, num: int, seed: int) -> Iterator[tuple[str, float]]:
    sampler = PoseSampler.from_arrays(arrays)
    rng = np.random.default_rng(seed)
    raw = sampler.angles(4000, rng)
    yield "accepted", float((sampler.clearance_m(sampler.rotmats(raw)) > 0).mean())
    angles, rotmats = sampler.sample_angles(max(4000, num), rng)
    yield "closed", float((angles[:, [2, 5, 8, 11], 0] > CLOSED_PIP_DEG).all(axis=1).mean())
    closed = capped(arrays.faces, arrays.extras["wrist_ring"])
    edges, _ = _edges(arrays.faces)

    def lengths(verts: Array) -> Array:
        return np.linalg.norm(verts[edges[:, 0]] - verts[edges[:, 1]], axis=1)

    rest, length = volume_m3(arrays.v_template, closed), lengths(arrays.v_template)
    on, off, stretch, hits = [], [], [], 0
    for R in rotmats[:num]:
        verts = pose_verts(arrays, R)
        on.append(volume_m3(verts, closed) / rest)
        off.append(volume_m3(pose_verts(arrays, R, correctives=False), closed) / rest)
        stretch.append(np.percentile(lengths(verts) / length, [0.1, 99.9]))
        hits += overlaps(arrays, R)
    yield "volume_ratio_min", float(min(on))
    yield "volume_ratio_mean", float(np.mean(on))
    yield "volume_ratio_max", float(max(on))
    yield "volume_gain_min", float(min(on) - min(off))
    low, high = np.mean(stretch, axis=0)
    yield "stretch_low", float(low)
    yield "stretch_high", float(high)
    yield "overlap", hits / num


def measure(arrays: HandArrays, num_poses: int = 300, seed: int = 5) -> dict[str, float]:
    """All measures of `FACTS`.

    Args:
        arrays: the stand-in.
        num_poses: random poses for volume, stretch and overlap.
        seed: of the poses.
    """
    found = dict(_mesh(arrays))
    found |= dict(_size(arrays))
    found |= dict(_rig(arrays))
    found |= dict(_poses(arrays, num_poses, seed))
    return {fact.key: float(found[fact.key]) for fact in FACTS}
