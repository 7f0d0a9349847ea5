"""Triangle meshes with one boundary loop: edge collapse to an exact count, flips, averaging. Build
time only."""

import heapq

import numpy as np


def unit(v):
    """Vectors over their lengths."""
    v = np.asarray(v, float)
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


class Collapser:
    """Edge collapse to an exact vertex count on a surface with one boundary loop."""

    def __init__(self, V, F, goal):
        self.V, self.F, self.goal = V.copy(), F.copy(), goal.copy()
        self.vf = [set() for _ in V]
        for i, t in enumerate(F.tolist()):
            for v in t:
                self.vf[v].add(i)
        self.alive, self.n, self.stamp = np.ones(len(F), bool), len(V), np.zeros(len(V), int)
        self.gone, self.fixed = np.zeros(len(V), bool), set()

    def nb(self, v):
        """Neighbouring vertices of v."""
        return {int(w) for f in self.vf[v] for w in self.F[f]} - {v}

    def loop(self):
        """The boundary, in order."""
        nxt = {}
        for f in np.where(self.alive)[0]:
            t = self.F[f].tolist()
            for i in range(3):
                if len(self.vf[t[i]] & self.vf[t[(i + 1) % 3]]) == 1:
                    nxt[t[i]] = t[(i + 1) % 3]
        out = [next(iter(nxt))]
        while nxt[out[-1]] != out[0]:
            out.append(nxt[out[-1]])
        return out

    def compact(self, lp):
        """Vertices, faces and boundary without the collapsed ones."""
        keep = np.where(~self.gone)[0]
        new = np.full(len(self.V), -1)
        new[keep] = np.arange(len(keep))
        return self.V[keep].copy(), new[self.F[self.alive]], [int(new[v]) for v in lp]

    def collapse(self, a, b, x, cos=0.2, quality=0.15):
        """Merge b into a at x if that keeps a clean disc; returns success."""
        e, na, nb = self.vf[a] & self.vf[b], self.nb(a), self.nb(b)
        if len(na & nb) != len(e) or len(na | nb) - 2 > 9:
            return False
        for f in (self.vf[a] | self.vf[b]) - e:
            t = self.F[f].tolist()
            if self.fixed and all((a if v == b else v) in self.fixed for v in t):
                return False  # no face with three corners on the rim
            p0 = self.V[t]
            p1 = np.array([x if v in (a, b) else self.V[v] for v in t])
            n0, n1 = np.cross(p0[1] - p0[0], p0[2] - p0[0]), np.cross(p1[1] - p1[0], p1[2] - p1[0])
            l1 = np.sqrt(n1 @ n1)
            if (
                n0 @ n1 < cos * np.sqrt(n0 @ n0) * l1
                or 3.464 * l1 < quality * ((p1 - np.roll(p1, 1, 0)) ** 2).sum()
            ):
                return False
        for f in e:
            self.alive[f] = False
            for v in self.F[f].tolist():
                self.vf[v].discard(f)
        for f in list(self.vf[b]):
            self.F[f][self.F[f] == b] = a
            self.vf[a].add(f)
        self.vf[b], self.V[a], self.gone[b] = set(), x, True
        self.goal[a] = 0.5 * (self.goal[a] + self.goal[b])
        self.stamp[a] += 1
        self.n -= 1
        return True

    def run(self, target, fixed, rim=()):
        """Collapse relatively shortest edges first.  `fixed` vertices stay; `rim` vertices only
        merge along the rim."""
        rim, self.fixed = set(rim), set(fixed)

        def cost(a, b):
            return float(np.linalg.norm(self.V[a] - self.V[b]) / (self.goal[a] + self.goal[b]))

        heap = []

        def push(a, b):
            if not (a in fixed and b in fixed):
                heapq.heappush(
                    heap, (cost(a, b), min(a, b), max(a, b), self.stamp[a] + self.stamp[b])
                )

        last = self.n + 1
        while self.n > target:
            if not heap:  # refused edges may have become possible
                if self.n == last:
                    raise RuntimeError(f"no edge left to collapse at {self.n} vertices")
                last = self.n
                for t in self.F[self.alive].tolist():
                    for i in range(3):
                        if len(self.vf[t[i]] & self.vf[t[i - 1]]) == 1 or t[i] < t[i - 1]:
                            push(t[i], t[i - 1])
            _, a, b, st = heapq.heappop(heap)
            if self.gone[a] or self.gone[b] or st != self.stamp[a] + self.stamp[b]:
                continue
            if b in fixed or (b in rim and a not in rim):
                a, b = b, a
            x = self.V[a] if a in fixed or (a in rim) != (b in rim) else (self.V[a] + self.V[b]) / 2
            if a in rim and b in rim and len(self.vf[a] & self.vf[b]) != 1:
                continue
            if self.collapse(a, b, x):
                for w in self.nb(a):
                    push(a, w)


def loop_resample(P, n):
    """n points evenly spaced on the closed polygon P, starting at its most radial point."""
    P = np.roll(P, -int(np.argmax(P[:, 1])), 0)
    Q = np.vstack([P, P[:1]])
    c = np.r_[0, np.cumsum(np.linalg.norm(np.diff(Q, axis=0), axis=1))]
    t = np.arange(n) / n * c[-1]
    return np.stack([np.interp(t, c, Q[:, k]) for k in range(3)], 1)


def flips(V, F, goal, boundary):
    """Edge flips that raise the smaller of the two triangle qualities; keeps the counts."""
    F = F.copy()

    def q(t):
        return quality(V, np.array([t]))[0]

    def nrm(t):
        return np.cross(V[t[1]] - V[t[0]], V[t[2]] - V[t[0]])

    val = np.bincount(F.ravel(), minlength=len(V))
    owner = {}
    for i, t in enumerate(F.tolist()):
        for k in range(3):
            owner[t[k], t[(k + 1) % 3]] = i
    done = 0
    for a, b in list(owner):
        if a > b or (b, a) not in owner or (a, b) not in owner:
            continue
        f, g = owner[a, b], owner[b, a]
        c = next(v for v in F[f].tolist() if v not in (a, b))
        d = next(v for v in F[g].tolist() if v not in (a, b))
        if (
            (c, d) in owner
            or (d, c) in owner
            or val[a] < 5
            or val[b] < 5
            or val[c] > 7
            or val[d] > 7
        ):
            continue
        t0, t1, u0, u1 = [a, b, c], [b, a, d], [a, d, c], [d, b, c]
        n0, n1, m0, m1 = unit(np.stack([nrm(t) for t in (t0, t1, u0, u1)]))
        if m0 @ m1 < min(0.5, n0 @ n1 - 0.05) or m0 @ (n0 + n1) < 0.2 or m1 @ (n0 + n1) < 0.2:
            continue

        def dev(*x):
            return sum((val[v] + o - (4 if v in boundary else 6)) ** 2 for v, o in x)

        gain = min(q(u0), q(u1)) - min(q(t0), q(t1))
        gain += 0.02 * (dev((a, 0), (b, 0), (c, 0), (d, 0)) - dev((a, -1), (b, -1), (c, 1), (d, 1)))
        if gain <= 0.02:
            continue
        for x, y in ((a, b), (b, a), (b, c), (c, a), (a, d), (d, b)):
            owner.pop((x, y), None)
        F[f], F[g] = u0, u1
        for i, t in ((f, u0), (g, u1)):
            for k in range(3):
                owner[t[k], t[(k + 1) % 3]] = i
        val[[a, b]] -= 1
        val[[c, d]] += 1
        done += 1
    return F, done


def quality(V, F):
    """4 sqrt(3) area / sum of squared edges: 1 for equilateral, 0 for degenerate."""
    t = V[F]
    a = np.linalg.norm(np.cross(t[:, 1] - t[:, 0], t[:, 2] - t[:, 0]), axis=1)
    return 2 * np.sqrt(3) * a / ((t - np.roll(t, 1, 1)) ** 2).sum((1, 2))


def neighbours(F):
    """[V, V] adjacency."""
    n = F.max() + 1
    A = np.zeros((n, n), bool)
    for i in range(3):
        A[F[:, i], F[:, i - 1]] = A[F[:, i - 1], F[:, i]] = True
    return A


def diffuse(x, F, share=0.5):
    """One step of averaging over mesh neighbours."""
    A = neighbours(F)
    return (1 - share) * x + share * np.tensordot(A / A.sum(1, keepdims=True), x, 1)
