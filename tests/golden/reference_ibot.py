"""iBOT's training step once more, slow and plain: an oracle for the gathered code.

Student and teacher run their heads on all tokens, all logits exist, masks come last. Optimiser,
centres and teacher are written out. Only the transformer itself is borrowed: any function of
(weights, images, mask) that returns (class tokens [n, D], patch tokens [n, N, D]).
"""

from dataclasses import dataclass, field

import torch

STUDENT_TEMP = 0.1
CENTRE_MOMENTUM = 0.9
NO_DECAY = ("pos_embed", "cls_token", "mask_token")


@dataclass
class Knobs:
    """What the schedules say in one step."""

    lr: float
    weight_decay: float
    momentum: float
    class_temp: float
    patch_temp: float
    frozen: bool


@dataclass
class State:
    """Weights by name: backbone.*, projection.*, perhaps class_projection.*."""

    student: dict
    teacher: dict
    class_centre: torch.Tensor
    patch_centre: torch.Tensor
    moments: dict = field(default_factory=dict)


def under(weights, prefix):
    return {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}


def head(weights, name, x):
    """Linear layers with GELU between, unit length, unit prototypes times gain."""
    w = under(weights, f"{name}.")
    layers = sorted({int(k.split(".")[1]) for k in w if k.startswith("mlp.")})
    for i, layer in enumerate(layers):
        x = x @ w[f"mlp.{layer}.weight"].T + w[f"mlp.{layer}.bias"]
        if i + 1 < len(layers):
            x = 0.5 * x * (1 + torch.erf(x / 2**0.5))
    x = x / x.norm(dim=-1, keepdim=True)
    prototypes = w["prototypes"] / w["prototypes"].norm(dim=-1, keepdim=True)
    return x @ (prototypes * w["gain"][:, None]).T


def cross_entropy(target, logits):
    scaled = logits / STUDENT_TEMP
    return (target * (torch.logsumexp(scaled, -1, keepdim=True) - scaled)).sum(-1)


def class_head_of(weights):
    return "class_projection" if any(k.startswith("class_") for k in weights) else "projection"


def losses(state, student, backbone, views, masks, local_views, knobs):
    """Class and patch term of views [B, G, ...], and the teacher's logits."""
    num, g = views.shape[:2]
    flat, hidden = views.flatten(0, 1), masks.flatten(0, 1)
    with torch.no_grad():
        cls, patches = backbone(under(state.teacher, "backbone."), flat, None)
        t_cls = head(state.teacher, class_head_of(state.teacher), cls).unflatten(0, (num, g))
        t_patch = head(state.teacher, "projection", patches).unflatten(0, (num, g))
        p_cls = ((t_cls - state.class_centre) / knobs.class_temp).softmax(-1)
        p_patch = ((t_patch - state.patch_centre) / knobs.patch_temp).softmax(-1)
    cls, patches = backbone(under(student, "backbone."), flat, hidden)
    s_cls = list(head(student, class_head_of(student), cls).unflatten(0, (num, g)).unbind(1))
    s_patch = head(student, "projection", patches).unflatten(0, (num, g))
    for i in range(0 if local_views is None else local_views.shape[1]):
        cls, _ = backbone(under(student, "backbone."), local_views[:, i], None)
        s_cls.append(head(student, class_head_of(student), cls))

    class_loss, class_terms = 0.0, 0
    for q in range(g):
        for v in range(len(s_cls)):
            if v != q:
                class_loss = class_loss + cross_entropy(p_cls[:, q], s_cls[v]).mean()
                class_terms += 1
    patch_loss = 0.0
    for v in range(g):
        mask = masks[:, v].to(views.dtype)
        each = cross_entropy(p_patch[:, v], s_patch[:, v])  # [B, N]
        patch_loss = patch_loss + ((each * mask).sum(1) / mask.sum(1).clamp(min=1)).mean() / g
    return class_loss / class_terms, patch_loss, t_cls, t_patch


def adamw(state, grads, knobs, betas=(0.9, 0.999), eps=1e-8):
    for name, grad in grads.items():
        if knobs.frozen and name.endswith((".prototypes", ".gain")):
            continue  # iBOT drops the last layer's gradient
        t, m, v = state.moments.get(name, (0, torch.zeros_like(grad), torch.zeros_like(grad)))
        t, m = t + 1, betas[0] * m + (1 - betas[0]) * grad
        v = betas[1] * v + (1 - betas[1]) * grad**2
        state.moments[name] = (t, m, v)
        weight = state.student[name]
        if weight.ndim > 1 and not name.endswith(NO_DECAY):
            weight = weight * (1 - knobs.lr * knobs.weight_decay)
        m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
        state.student[name] = weight - knobs.lr * m_hat / (v_hat.sqrt() + eps)


def step(state, backbone, views, masks, local_views, knobs, centre_over="all"):
    """One update in place; (class loss, patch loss)."""
    student = {k: v.detach().clone().requires_grad_() for k, v in state.student.items()}
    found = losses(state, student, backbone, views, masks, local_views, knobs)
    class_loss, patch_loss, t_cls, t_patch = found
    grads = torch.autograd.grad(class_loss + patch_loss, list(student.values()))
    adamw(state, dict(zip(student, grads, strict=True)), knobs)
    for name, weight in state.student.items():
        old = state.teacher[name]
        state.teacher[name] = knobs.momentum * old + (1 - knobs.momentum) * weight
    keep, new = CENTRE_MOMENTUM, 1 - CENTRE_MOMENTUM
    state.class_centre = keep * state.class_centre + new * t_cls.flatten(0, 1).mean(0)
    counted = t_patch[masks] if centre_over == "masked" else t_patch.flatten(0, 2)
    if len(counted):
        state.patch_centre = keep * state.patch_centre + new * counted.mean(0)
    return float(class_loss.detach()), float(patch_loss.detach())
