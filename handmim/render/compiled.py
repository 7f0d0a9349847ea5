"""How the renderer's kernels are compiled."""

from handmim.utils.kernels import njit

# Division by zero gives infinity, as in numpy: a test for it in every loop would keep compilers
# from working on several pixels at once.
compiled = njit(cache=True, fastmath=True, nogil=True, error_model="numpy")
