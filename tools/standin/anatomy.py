"""Anthropometric measures of an average adult hand and the skeleton they make.

Facts only, mean of men and women. Bone lengths [BK] were compared with a second transcription of
the paper; [GA], [AN] and [KA] measures are rounded averages.
[BK] Buryanov & Kotiuk 2010, Proportions of hand segments, Int. J. Morphol. 28(3): bone lengths and
pulp thickness.
[GA] Garrett 1971, The adult human hand, Human Factors 13: breadth and depth of the finger joints,
to 0.5 mm.
[AN] Gordon et al. 2014, ANSUR II: hand length and breadth, wrist circumference.
[KA] Kapandji, The physiology of the joints, vol. 1: ranges of motion, arches of the palm, axes of
the thumb.

Design frame, millimetres, wrist joint at the origin: u distal, r to the thumb's side, d dorsal.
Model frame (MANO's),
metres: x = WRIST.x - u, y = WRIST.y + d, z = WRIST.z + r; fingers along -x, palm to -y, thumb to
    +z.
"""

import numpy as np

from handmim.geometry.rotation_numpy import rotvec_to_matrix
from handmim.hand.poses import chain
from handmim.hand.skeleton import CHAIN_FINGERS as FINGERS
from standin.mesh import unit

BONES = dict(
    index=(39.8, 22.4, 15.8),
    middle=(44.6, 26.3, 17.4),
    ring=(41.4, 25.7, 17.3),
    little=(32.7, 18.1, 16.0),
    thumb=(46.2, 31.6, 21.7),
)  # [BK] thumb: metacarpal first
METACARPAL = dict(index=68.1, middle=64.6, ring=58.0, little=53.7)  # [BK]
PULP = dict(index=3.8, middle=4.0, ring=4.0, little=3.7, thumb=5.7)  # [BK] bone end to skin
DEPTH_RATIO = 0.92  # [GA] depth / breadth of a finger
WRIST_HALF = (27.5, 18.5)  # [AN] half breadth, half depth
# carpometacarpal bases and metacarpal directions: (u, r, d) and (degrees to radial, degrees to
# dorsal)     [KA]
CMC = dict(
    index=(25.5, 12.5, 1.0),
    middle=(29.5, 3.0, 2.0),
    ring=(27.5, -6.0, 0.5),
    little=(25.5, -14.5, -2.0),
    thumb=(21.0, 19.0, -9.0),
)
MC_DIR = dict(index=(9.0, -0.5), middle=(-0.3, 1.0), ring=(-10.5, 0.3), little=(-23.5, -3.0))
# rest pose: fan angle of the finger, roll of its dorsal side to radial, droop of the three
# phalanges (degrees)
FAN = dict(
    index=(6.0, 4.0, (1.5, 5.0, 7.0)),
    middle=(-2.0, 0.0, (2.0, 5.5, 8.0)),
    ring=(-10.5, -3.0, (2.0, 5.5, 8.0)),
    little=(-19.0, -8.0, (2.0, 6.0, 8.0)),
)
THUMB_DIRS = (
    (0.77, 0.50, -0.40),
    (0.83, 0.52, -0.22),
    (0.84, 0.53, -0.12),
)  # metacarpal, proximal, distal
THUMB_DORSAL = (-0.40, 0.66, 0.64)
WRIST = np.array([0.0957, 0.0064, 0.0062])  # where MANO keeps its wrist
CUT_U = -21.0  # the open end
NV, NB = 778, 16
TIP_SLOT = dict(
    thumb=744, index=320, middle=443, ring=554, little=671
)  # customary fingertip vertices
TIP_NEAR = dict(
    thumb=(745, 746, 743),
    index=(317, 319, 318),
    middle=(444, 445, 442),
    ring=(555, 556, 553),
    little=(672, 673, 670),
)
RING_SLOT = (
    38,
    122,
    118,
    117,
    119,
    120,
    108,
    79,
    78,
    121,
    214,
    215,
    279,
    239,
    234,
    92,
)  # customary wrist ring
# shape parameters: factor on the named quantity, and the standard deviation used for one unit of
# beta
SHAPE_SD = dict(
    size=0.055,
    finger_length=0.05,
    palm_breadth=0.045,
    finger_girth=0.07,
    palm_depth=0.09,
    thumb_length=0.05,
    index_over_ring=0.025,
    little_length=0.05,
    muscle=0.15,
    wrist_girth=0.08,
)


def transforms(R, J):
    """Relative bone transforms [16, 3, 4] and posed joints [16, 3] for rotations R [16, 3, 3], rest
    joints J."""
    world, posed = (x[0] for x in chain(R[None], J))
    shift = posed - np.einsum("jab,jb->ja", world, J)
    return np.concatenate([world, shift[..., None]], axis=2), posed


class Skeleton:
    """Joint positions J (16,3), tips (5,3) and frames R (16,3,3) whose columns are distal,
    radial-lateral, dorsal."""

    def __init__(self, **shape):
        self.shape = dict.fromkeys(SHAPE_SD, 1.0)
        self.shape.update(shape)
        h, size = self.shape, self.shape["size"]
        self.J, self.R, self.tip = np.zeros((16, 3)), np.stack([np.eye(3)] * 16), np.zeros((5, 3))
        self.base, self.cmc = {}, {}
        wide = np.array([1, h["palm_breadth"], 1])
        for k, f in enumerate(FINGERS):
            scale = h["thumb_length"] if f == "thumb" else h["finger_length"]
            scale *= {
                "index": h["index_over_ring"],
                "ring": 1 / h["index_over_ring"],
                "little": h["little_length"],
            }.get(f, 1)
            base = np.array(CMC[f]) * wide
            if f == "thumb":
                p, dirs, dorsal = base, unit(THUMB_DIRS), unit(THUMB_DORSAL)
            else:
                a, e = np.radians(MC_DIR[f])
                p = (
                    base
                    + METACARPAL[f]
                    * np.array([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)])
                    * wide
                )
                fan, roll, droop = FAN[f]
                fan, roll, droop = np.radians(fan), np.radians(roll), np.radians(droop)
                flat = np.array([np.cos(fan), np.sin(fan), 0.0])
                side = np.array([-np.sin(fan), np.cos(fan), 0.0])
                dorsal = np.cos(roll) * np.array([0, 0, 1.0]) + np.sin(roll) * side
                dirs = [np.cos(x) * flat - np.sin(x) * dorsal for x in droop]
            self.base[f] = base * size
            for i in range(3):
                j = 1 + 3 * k + i
                n = unit(dorsal - dirs[i] * (dorsal @ dirs[i]))
                self.R[j] = np.stack([dirs[i], np.cross(n, dirs[i]), n], 1)
                self.J[j] = p
                p = p + dirs[i] * BONES[f][i] * scale
            self.tip[k] = p + dirs[2] * PULP[f] * scale
        self.J *= size
        self.tip *= size
        self.rest_R = self.R.copy()

    def end(self, j):
        """The far end of bone j."""
        return self.J[4] if j == 0 else (self.tip[j // 3 - 1] if j % 3 == 0 else self.J[j + 1])

    def posed(self, rotvec):
        """A copy with every joint rotated by rotvec (16,3), given in the design frame."""
        q = object.__new__(Skeleton)
        q.__dict__.update(self.__dict__)
        A, q.J = transforms(rotvec_to_matrix(rotvec), self.J)
        q.R = A[:, :3, :3] @ self.R
        q.tip = np.stack(
            [
                A[3 * k + 3, :3, :3] @ (self.tip[k] - self.J[3 * k + 3]) + q.J[3 * k + 3]
                for k in range(5)
            ]
        )
        return q
