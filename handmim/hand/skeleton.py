"""Names, orders and indices of a hand's joints. Facts only: no maths, no files.

Canonical order (FreiHAND, OpenPose): wrist, then thumb, index, middle, ring, little, each from base
to tip.
"""

FINGERS = ("thumb", "index", "middle", "ring", "little")
JOINT_NAMES = ("wrist", *(f"{finger}_{i}" for finger in FINGERS for i in (1, 2, 3, "tip")))
NUM_JOINTS = len(JOINT_NAMES)

# Middle knuckle: the joint FreiHAND hangs its mesh on, near the centre of the hand, so that
# root-relative errors and the depth that weak perspective ignores stay small.
ROOT_JOINT = JOINT_NAMES.index("middle_1")

BONES = tuple(
    (0 if i == 0 else 4 * f + i, 4 * f + i + 1) for f in range(len(FINGERS)) for i in range(4)
)

# MANO's kinematic chain: wrist, index 1-3, middle 1-3, little 1-3, ring 1-3, thumb 1-3.
CHAIN_PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)
CHAIN_FINGERS = ("index", "middle", "little", "ring", "thumb")

# HO-3D keeps the 16 chain joints and appends the tips thumb, index, middle, ring, little.
CANONICAL_FROM_HO3D = (0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20)
HO3D_FROM_CANONICAL = tuple(CANONICAL_FROM_HO3D.index(i) for i in range(NUM_JOINTS))
# The same order serves [16 chain joints, 5 tips] of any model.
CANONICAL_FROM_CHAIN_AND_TIPS = CANONICAL_FROM_HO3D

# Vertices that stand for the fingertips (thumb .. little) differ between sources: never mix them.
FINGERTIP_VERTS = {
    "standin": (744, 320, 443, 554, 671),
    "smplx": (744, 320, 443, 554, 671),
    "freihand": (744, 320, 443, 555, 672),
    "ho3d": (744, 333, 444, 555, 672),
    "manopth": (745, 317, 444, 556, 673),
}
