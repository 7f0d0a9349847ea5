"""Z-buffer rasterisation on the CPU, compiled."""

import math

from handmim.utils.kernels import njit

# Division by zero gives infinity, as in numpy: a test for it in every loop would keep compilers
# from working on several pixels at once.
compiled = njit(cache=True, fastmath=True, nogil=True, error_model="numpy")


@compiled
def rasterise(x_px, y_px, inv_z, faces, facing, inv_depth, face_id):
    """Nearest face [H, W] int32 and 1 / its depth [H, W] of every pixel, -1 and 0 where there is
    none, of projected vertices [V]; the first pixel's centre is (0.5, 0.5). `facing` 1 or -1 draws
    only faces of that sign of area (y down): all that is seen of closed surfaces; 0 draws all."""
    height, width = face_id.shape
    inv_depth[:] = 0.0
    face_id[:] = -1
    for t in range(faces.shape[0]):
        a, b, c = faces[t, 0], faces[t, 1], faces[t, 2]
        x0, y0, x1, y1, x2, y2 = x_px[a], y_px[a], x_px[b], y_px[b], x_px[c], y_px[c]
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if area * facing < 0 or abs(area) < 1e-9:
            continue
        qa, qb, qc = inv_z[a], inv_z[b], inv_z[c]
        if qa <= 0 or qb <= 0 or qc <= 0:
            continue
        left = max(0, math.ceil(min(x0, x1, x2) - 0.5))
        right = min(width - 1, math.floor(max(x0, x1, x2) - 0.5))
        top = max(0, math.ceil(min(y0, y1, y2) - 0.5))
        low = min(height - 1, math.floor(max(y0, y1, y2) - 0.5))
        # Weights of the corners, and 1 / depth, at the leftmost centre and per step to the right.
        k = 1.0 / area
        b_right, c_right = (y2 - y0) * k, (y0 - y1) * k
        a_right = -b_right - c_right
        q_right = a_right * qa + b_right * qb + c_right * qc
        dx = left + 0.5 - x0
        for i in range(top, low + 1):
            dy = i + 0.5 - y0
            wb, wc = (dx * (y2 - y0) - (x2 - x0) * dy) * k, ((x1 - x0) * dy - dx * (y1 - y0)) * k
            wa = 1 - wb - wc
            q = wa * qa + wb * qb + wc * qc
            first, last = 0.0, float(right - left)
            for w, w_right in ((wa, a_right), (wb, b_right), (wc, c_right)):
                if w_right > 0:
                    first = max(first, -w / w_right)
                elif w_right < 0:
                    last = min(last, -w / w_right)
                elif w < 0:
                    last = -1.0
            for n in range(math.ceil(first), math.floor(last) + 1):
                j, here = left + n, q + n * q_right
                nearer = here > inv_depth[i, j]
                inv_depth[i, j] = here if nearer else inv_depth[i, j]
                face_id[i, j] = t if nearer else face_id[i, j]


@compiled
def corner_weights(px, py, q, a, b, c, x_px, y_px, inv_z):
    """Perspective-correct weights of corners b and c of a face at (px, py) of 1 / depth q."""
    ux, uy, vx, vy = x_px[b] - x_px[a], y_px[b] - y_px[a], x_px[c] - x_px[a], y_px[c] - y_px[a]
    dx, dy = px - x_px[a], py - y_px[a]
    k = 1.0 / ((ux * vy - vx * uy) * q)
    return (dx * vy - vx * dy) * k * inv_z[b], (ux * dy - dx * uy) * k * inv_z[c]


@compiled
def vertex_normals(verts, faces, normals):
    """Area-weighted vertex normals, not yet of unit length: [V, 3], [F, 3] -> [V, 3] out."""
    normals[:] = 0.0
    for t in range(faces.shape[0]):
        a, b, c = faces[t, 0], faces[t, 1], faces[t, 2]
        ux, uy, uz = verts[b, 0] - verts[a, 0], verts[b, 1] - verts[a, 1], verts[b, 2] - verts[a, 2]
        vx, vy, vz = verts[c, 0] - verts[a, 0], verts[c, 1] - verts[a, 1], verts[c, 2] - verts[a, 2]
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for k in range(3):
            normals[faces[t, k], 0] += nx
            normals[faces[t, k], 1] += ny
            normals[faces[t, k], 2] += nz
