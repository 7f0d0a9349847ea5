"""Area under the share of points whose error is below a rising threshold (PCK)."""

import math

import numpy as np
import torch
from torch import Tensor

from handmim.utils.kernels import njit

AUC_MAX_M = 0.05
AUC_STEPS = 100
_THRESHOLDS_M = np.linspace(0.0, AUC_MAX_M, AUC_STEPS)
# What a point adds whose error is a hit from threshold i on, in trapezoids: whole steps after it
# and half a step before it, but for the first.
_AREAS = np.minimum(AUC_STEPS - 0.5 - np.arange(AUC_STEPS), AUC_STEPS - 1) / (AUC_STEPS - 1)


def sample_auc(errors_m: Tensor) -> Tensor:
    """Area under the share of hits over 100 thresholds, evenly from 0 to 50 mm inclusive.

    A hit is `<=`; trapezoids, divided by 50 mm. The area is a mean over points, and that of a set
    the mean over its samples. A perfect score is 1, but an exact fit that leaves 1e-17 misses the
    threshold 0 and scores 1 - 1/198. Compiled; errors of other devices are copied to the CPU and
    the answer back.

    Args:
        errors_m: [n, P] metres; a NaN is no hit.
    Returns: [n] float64.
    """
    errors = errors_m.detach().to("cpu", torch.float64).contiguous().numpy()
    areas = np.empty(len(errors))
    _mean_areas(errors, _THRESHOLDS_M, _AREAS, areas)
    return torch.from_numpy(areas).to(errors_m.device)


def pck_auc(errors_m: Tensor) -> Tensor:
    """`sample_auc` of a whole set: [n, P] metres -> scalar."""
    return sample_auc(errors_m).mean()


@njit(cache=True, nogil=True)
def _mean_areas(errors_m, thresholds_m, areas, out):  # type: ignore[no-untyped-def]
    last = len(thresholds_m) - 1
    per_m = last / thresholds_m[last]
    for n in range(errors_m.shape[0]):
        total = 0.0
        for error in errors_m[n]:
            if error <= thresholds_m[last]:
                first = max(math.ceil(error * per_m), 0)  # but for rounding: the loops
                while first > 0 and error <= thresholds_m[first - 1]:
                    first -= 1
                while error > thresholds_m[first]:
                    first += 1
                total += areas[first]
        out[n] = total / errors_m.shape[1]
