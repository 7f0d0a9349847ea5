"""Plausible poses and shapes: kinematics, clearance between digits, samplers.

The last two finger joints are coupled after Lin, Wu & Huang 2000, Modeling the constraints of human
hand motion. Breadths after Garrett 1971, Human Factors 13 (rounded to 0.5 mm)."""

import math

import numpy as np
from numpy.typing import NDArray

from handmim.geometry.rotation_numpy import rotvec_to_matrix
from handmim.hand.io import HandArrays
from handmim.hand.skeleton import CHAIN_FINGERS, CHAIN_PARENTS
from handmim.utils.kernels import njit

Array = NDArray[np.floating]

# Breadth in mm at the middle and the last joint (thumb: at its second and last).
BREADTH_MM = {
    "index": (20.0, 17.0),
    "middle": (20.0, 17.0),
    "ring": (19.0, 16.5),
    "little": (16.5, 14.5),
    "thumb": (22.0, 20.5),
}
# While the fingers close, abduction and twist bring them from their fan to parallel: degrees at
# full closure for index, middle, little, ring, in the chain's order (some two fifths of what a
# search for the widest gaps gives, inside the limits).
CLOSED_ABDUCTION_DEG = np.array([7.0, 0.9, -7.0, -2.9])
CLOSED_TWIST_DEG = np.array([4.0, 2.0, -4.0, -0.5])
# Shares of draws.
FINGER_MODES = (0.18, 0.17, 0.27, 0.16, 0.22)  # fist, together, each on its own, uniform, relaxed
THUMB_MODES = (0.4, 0.4, 0.2)  # open, across the palm, anywhere between
# Beads of a digit: the bones that they lie on, and where.
BEAD_BONES = np.repeat([0, 1, 2], [3, 4, 4])
BEAD_SHARES = np.array([0.45, 0.63, 0.82, 0.0, 0.25, 0.5, 0.75, 0.0, 0.25, 0.5, 0.72])
HEEL_RADIUS_M = 0.0045  # of the palm's beads
HEEL_SHARES = np.array([0.12, 0.35, 0.6])  # from the knuckles of the fingers to the wrist


def chain(rotmats: Array, joints: Array) -> tuple[Array, Array]:
    """Forward kinematics: relative rotations [n, 16, 3, 3], wrist first, and rest joints [16, 3] or
    [n, 16, 3] to world rotations [n, 16, 3, 3] and posed joints [n, 16, 3]."""
    world, posed = np.empty(rotmats.shape), np.empty(rotmats.shape[:-1])
    rest = np.broadcast_to(joints, posed.shape)
    world[:, 0], posed[:, 0] = rotmats[:, 0], rest[:, 0]
    offsets = (rest[:, 1:] - rest[:, list(CHAIN_PARENTS[1:])])[..., None]
    for level in range(1, 4):  # all digits at once: joints 1, 4, 7, ... hang from the wrist
        here, parents = slice(level, None, 3), slice(level - 1, None, 3) if level > 1 else slice(1)
        np.matmul(world[:, parents], rotmats[:, here], out=world[:, here])
        moved = (world[:, parents] @ offsets[:, level - 1 :: 3])[..., 0]
        posed[:, here] = posed[:, parents] + moved
    return world, posed


@njit(cache=True, nogil=True, error_model="numpy")
def least_gaps_m(beads, radii, heel, heel_radius, tips):
    """Least gap between beads of different digits, and between the last `tips` beads of every digit
    and the palm's: [n, D, B, 3] centres, [D, B] radii, [n, H, 3] centres -> [n], negative where two
    overlap."""
    digits, num = radii.shape
    gaps = np.empty(len(beads))
    for n in range(len(beads)):
        least = np.inf
        for a in range(digits):
            for i in range(num):
                x, y, z, r = beads[n, a, i, 0], beads[n, a, i, 1], beads[n, a, i, 2], radii[a, i]
                for b in range(a + 1, digits):
                    for j in range(num):
                        dx, dy = x - beads[n, b, j, 0], y - beads[n, b, j, 1]
                        dz = z - beads[n, b, j, 2]
                        d = math.sqrt(dx * dx + dy * dy + dz * dz) - r - radii[b, j]
                        least = min(least, d)
                if i >= num - tips:
                    for j in range(heel.shape[1]):
                        dx, dy, dz = x - heel[n, j, 0], y - heel[n, j, 1], z - heel[n, j, 2]
                        d = math.sqrt(dx * dx + dy * dy + dz * dz) - r - heel_radius
                        least = min(least, d)
        gaps[n] = least
    return gaps


class PoseSampler:
    """Random articulations within the joint limits [16, 3, 2] in which digits keep clear. `axes`
    [16, 3, 3] are unit vectors of flexion, abduction and twist, `tips_m` [5, 3] ends of digits."""

    BATCH = 2048  # raw draws at a time
    CHUNK = 128  # that are posed and tested together

    def __init__(self, axes: Array, joints_m: Array, tips_m: Array, limits_deg: Array) -> None:
        self.axes, self.limits_deg = axes.astype(np.float64), limits_deg.astype(np.float64)
        self.joints_m, self.tips_m = joints_m.astype(np.float64), tips_m.astype(np.float64)

    @classmethod
    def from_arrays(cls, arrays: HandArrays) -> "PoseSampler":
        """Sampler of a model that carries its joint axes, as MANO's own do not (ValueError)."""
        names = ("axes", "J", "tips", "limits")
        if missing := [name for name in names if name not in arrays.extras]:
            raise ValueError(f"{arrays.name} has no {missing}: poses are sampled for the stand-in")
        return cls(*(arrays.extras[name] for name in names))

    def rotmats(self, angles_deg: Array) -> Array:
        """[n, 16, 3] degrees to [n, 16, 3, 3], twist applied first; wrist identity."""
        about = rotvec_to_matrix(np.radians(angles_deg)[..., None] * self.axes)  # [n, 16, 3, 3, 3]
        return about[:, :, 0] @ about[:, :, 1] @ about[:, :, 2]

    def angles(self, num: int, rng: np.random.Generator) -> Array:
        """Raw draws [num, 16, 3] in degrees, not yet tested for clearance: fingers by
        FINGER_MODES, the thumb by THUMB_MODES."""
        a = np.zeros((num, 16, 3))
        mode = rng.choice(5, (num, 1), p=FINGER_MODES)
        fist = np.clip(rng.normal(0.93, 0.06, (num, 1)) + rng.normal(0, 0.03, (num, 4)), 0, 1)
        shared = np.clip(rng.beta(1.0, 0.9, (num, 1)) + rng.normal(0, 0.07, (num, 4)), 0, 1)
        bimodal = np.where(
            rng.random((num, 4)) < 0.5, rng.beta(0.6, 2.5, (num, 4)), rng.beta(2.5, 0.9, (num, 4))
        )
        relaxed = np.clip(rng.normal(0.22, 0.12, (num, 1)) + rng.normal(0, 0.05, (num, 4)), 0, 1)
        curl = np.choose(mode, [fist, shared, bimodal, rng.random((num, 4)), relaxed])
        steady = np.where(mode[:, 0] == 0, 0.35, 1.0)  # a fist has less play

        def within(joint: int, share: Array, axis: int = 0) -> Array:
            low, high = self.limits_deg[joint, axis]
            return low + (high - low) * np.clip(share, 0, 1)

        fan = rng.normal(0, 4.5, (num, 1)) * np.array([1.0, 0.2, -1.0, -0.45])
        for k in range(4):
            j, c = 1 + 3 * k, curl[:, k]
            m = np.clip(c + rng.normal(0, 0.12, num) * steady, 0, 1)
            a[:, j, 0] = within(j, 0.07 + 0.93 * m**1.2)
            a[:, j + 1, 0] = within(j + 1, c + rng.normal(0, 0.12, num) * steady)
            a[:, j + 2, 0] = 0.64 * a[:, j + 1, 0] + rng.normal(0, 6, num) * steady
            free = 1 - m**1.5
            a[:, j, 1] = (fan[:, k] + rng.normal(0, 5, num)) * free + CLOSED_ABDUCTION_DEG[k] * m
            a[:, j, 1] += rng.normal(0, 0.6, num)
            a[:, j, 2] = rng.normal(0, 2, num) * free + CLOSED_TWIST_DEG[k] * m
        # A thumb that crosses the palm stays low over it.
        thumb = rng.choice(3, num, p=THUMB_MODES)
        t = np.choose(thumb, [rng.beta(1.0, 2.5, num), rng.beta(3.0, 1.0, num), rng.random(num)])
        a[:, 13, 0] = within(13, t + rng.normal(0, 0.12, num))
        a[:, 13, 1] = within(13, 0.55 - 0.4 * t + rng.normal(0, 0.25, num), axis=1)
        a[:, 13, 2] = rng.uniform(-14, 20, num)
        a[:, 14, 0] = within(14, 0.9 * t + rng.normal(0, 0.2, num))
        a[:, 15, 0] = within(15, 0.2 + 0.7 * t + rng.normal(0, 0.25, num))
        return np.clip(a, self.limits_deg[..., 0], self.limits_deg[..., 1])

    def clearance_m(self, rotmats: Array) -> Array:
        """Least gap between chains of digits and between fingertips and palm: [n] metres."""
        world, posed = chain(rotmats, self.joints_m)
        ends = self.tips_m - self.joints_m[3::3]
        ends = posed[:, 3::3] + (world[:, 3::3] @ ends[..., None])[..., 0]
        line = np.concatenate([posed[:, 1:].reshape(-1, 5, 3, 3), ends[:, :, None]], axis=2)
        bone, share = BEAD_BONES, BEAD_SHARES
        beads = line[:, :, bone] + (line[:, :, bone + 1] - line[:, :, bone]) * share[:, None]
        breadths = np.array([BREADTH_MM[finger] for finger in CHAIN_FINGERS])
        first, last = breadths.T[..., None] * 0.5e-3
        radii = first + (last - first) * ((bone + share) / 3)
        up = (world[:, 0] @ np.array([0.0, 1.0, 0.0]))[:, None, None]
        knuckles = posed[:, 1:13:3, None]
        heel = knuckles + (posed[:, :1, None] - knuckles) * HEEL_SHARES[:, None] - up * 0.003
        heel = heel.reshape(len(posed), -1, 3)
        gaps: Array = least_gaps_m(beads, radii, heel, HEEL_RADIUS_M, 3)
        return gaps

    def sample_angles(self, num: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Accepted draws: angles [num, 16, 3] in degrees and rotations [num, 16, 3, 3]."""
        angles, rotmats = list[Array](), list[Array]()
        while sum(map(len, angles)) < num:
            raw = self.angles(min(self.BATCH, 2 * num + 16), rng)
            for some in np.split(raw, range(self.CHUNK, len(raw), self.CHUNK)):
                posed = self.rotmats(some)
                ok = self.clearance_m(posed) > 0.0
                angles.append(some[ok])
                rotmats.append(posed[ok])
                if sum(map(len, angles)) >= num:
                    break
        return np.concatenate(angles)[:num], np.concatenate(rotmats)[:num]

    def sample(self, num: int, rng: np.random.Generator) -> Array:
        """[num, 15, 3, 3] absolute finger rotations."""
        return self.sample_angles(num, rng)[1][:, 1:]


def sample_betas(num: int, num_betas: int, rng: np.random.Generator) -> Array:
    """[num, num_betas] shape coefficients from N(0, 1), cut at 2.5."""
    return np.clip(rng.normal(0, 1, (num, num_betas)), -2.5, 2.5)
