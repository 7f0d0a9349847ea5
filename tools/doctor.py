"""Check environment, hand model and datasets, and say how to mend what is wrong.

python tools/doctor.py                                              # this machine and the stand-in
python tools/doctor.py hand=mano hand.path=MANO_RIGHT.pkl freihand=FreiHAND_pub_v2
python tools/doctor.py hand=mano hand.path=MANO_RIGHT.pkl ho3d_v2=HO3D_v2 ho3d_v3=HO3D_v3
python tools/doctor.py keypoints.root=DIR keypoints.annotations=FILE.json crops=DIR
python tools/doctor.py freihand=DIR full=true                        # decodes every image

Nothing is written unless report=FILE.json. The exit status is 1 when there is an error.
"""

from handmim.cli import main

if __name__ == "__main__":
    main("doctor")
