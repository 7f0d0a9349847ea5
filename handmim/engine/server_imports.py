"""What the server process of `engine.workers` imports before workers are forked from it.

Import it nowhere else: it allows every library one thread, and that has to be said before they are
imported. A thread that the server had started would be missing in its forks.
"""

import importlib
import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_name] = "1"
for _name in ("cv2", "torch", "handmim.engine.prefetch"):
    importlib.import_module(_name)
