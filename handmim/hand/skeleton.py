"""Names, orders and indices of a hand's joints: wrist, then thumb, index, middle, ring, little,
each from base to tip (FreiHAND, OpenPose, COCO hands, MediaPipe)."""

from collections.abc import Mapping
from typing import NamedTuple

FINGERS = ("thumb", "index", "middle", "ring", "little")
JOINT_NAMES = ("wrist", *(f"{finger}_{i}" for finger in FINGERS for i in (1, 2, 3, "tip")))
NUM_JOINTS = len(JOINT_NAMES)

# Middle knuckle: the joint FreiHAND hangs its mesh on, near the centre of the hand, so that
# root-relative errors and the depth that weak perspective ignores stay small.
ROOT_JOINT = JOINT_NAMES.index("middle_1")

BONES = tuple(
    (0 if i == 0 else 4 * f + i, 4 * f + i + 1) for f in range(len(FINGERS)) for i in range(4)
)

# Lengths of BONES of an average hand in mm; only their proportions are used.
BONE_MM = (34, 44, 33, 27, 94, 38, 24, 22, 92, 43, 27, 24, 85, 41, 26, 23, 82, 32, 20, 20)

# MANO's kinematic chain: wrist, index 1-3, middle 1-3, little 1-3, ring 1-3, thumb 1-3.
CHAIN_PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)
CHAIN_FINGERS = ("index", "middle", "little", "ring", "thumb")

# HO-3D keeps the 16 chain joints and appends the tips thumb, index, middle, ring, little, an order
# that serves the chain and tips of any model.
CANONICAL_FROM_HO3D = (0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20)
HO3D_FROM_CANONICAL = tuple(CANONICAL_FROM_HO3D.index(i) for i in range(NUM_JOINTS))
CHAIN_FROM_CANONICAL = HO3D_FROM_CANONICAL[:16]

# canonical[i] = theirs[order[i]] for every order in which 21 joints are met.
SKELETONS: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("canonical", "freihand", "openpose", "mediapipe", "coco"), tuple(range(21))),
    **dict.fromkeys(("ho3d", "mano"), CANONICAL_FROM_HO3D),
    # MobRecon's "MANO order": as HO-3D, but tips index, middle, ring, little, thumb
    "mobrecon": (0, 13, 14, 15, 20, 1, 2, 3, 16, 4, 5, 6, 17, 10, 11, 12, 18, 7, 8, 9, 19),
    # PeCLR: all knuckles from thumb to little, then all second joints, ...
    "ait": (0, *(1 + 5 * level + finger for finger in range(5) for level in range(4))),
    # InterHand: tip to base, the wrist last
    "interhand": (20, *(4 * finger + 3 - i for finger in range(5) for i in range(4))),
}
# Orders that labels and predictions are mistaken for.
FOREIGN_ORDERS = ("ho3d", "mobrecon", "ait", "interhand")


# Further orders of home-made label files; canonical[i] = theirs[order[i]] as above.
LABEL_ORDERS: Mapping[str, tuple[int, ...]] = {
    "canonical": SKELETONS["canonical"],
    **{name: SKELETONS[name] for name in FOREIGN_ORDERS},
    "wrist last": (20, *range(20)),
    "little finger first": (0, *(4 * k + i for k in (4, 3, 2, 1, 0) for i in (1, 2, 3, 4))),
    "thumb last": (0, *(4 * k + i for k in (4, 0, 1, 2, 3) for i in (1, 2, 3, 4))),
    "tip to base": (0, *(4 * k + i for k in range(5) for i in (4, 3, 2, 1))),
}

# Vertices that stand for the fingertips (thumb .. little) differ between sources: never mix them.
FINGERTIP_VERTS = {
    "standin": (744, 320, 443, 554, 671),
    "smplx": (744, 320, 443, 554, 671),
    "freihand": (744, 320, 443, 555, 672),
    "ho3d": (744, 333, 444, 555, 672),
    "manopth": (745, 317, 444, 556, 673),
    "manopth_left": (745, 317, 445, 556, 673),
}


class JointConvention(NamedTuple):
    """How a source's 21 joints follow from a posed hand."""

    regressed: bool  # the 16 joints from posed vertices; else those of the kinematic chain
    tip_verts: tuple[int, ...] | None  # thumb .. little; None takes the hand model's own


# A batch names the convention of every sample by its index in this list.
JOINT_CONVENTIONS: Mapping[str, JointConvention] = {
    "model": JointConvention(regressed=False, tip_verts=None),
    "freihand": JointConvention(regressed=True, tip_verts=FINGERTIP_VERTS["freihand"]),
    "ho3d": JointConvention(regressed=False, tip_verts=FINGERTIP_VERTS["ho3d"]),
    "manopth": JointConvention(regressed=False, tip_verts=FINGERTIP_VERTS["manopth"]),
}
CONVENTION_NAMES = tuple(JOINT_CONVENTIONS)


def joint_order(source: str, target: str) -> tuple[int, ...]:
    """Indices with `target[i] = source[order[i]]`; ValueError listing the orders there are."""
    for name in (source, target):
        if name not in SKELETONS:
            raise ValueError(f"no joint order {name!r}; there are {sorted(SKELETONS)}")
    to_canonical, from_target = SKELETONS[source], SKELETONS[target]
    return tuple(to_canonical[from_target.index(i)] for i in range(NUM_JOINTS))
