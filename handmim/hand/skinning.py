"""Blend skinning by itself: coefficients and transforms to vertices, with a backward pass of its
own that keeps little and stays in the cache."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class BlendSkinning(torch.autograd.Function):
    """v = sum_j w_j A_j (template + [betas, features] blendshapes), the vertex axis last.

    Unposed vertices and transforms are saved for the backward pass; the transforms blended for
    every vertex, three times as much, are made again. Both passes take a batch in chunks, since a
    cache holds those. There is no second derivative, and torch.func does not see through it.

    Args (of `apply`):
        betas: [B, S] coefficients of the first blendshapes.
        features: [B, K - S] of the others.
        transforms: [B, J, 3, 4] from the rest pose.
        template: [3V], x of all vertices first.
        blendshapes: [K, 3V].
        weights: [J, V].
        tip_ids: [P] vertices to be given a second time, without a second gradient of all.
        chunk_size: samples at a time.
    Rerotations: vertices [B, 3, V] and those of `tip_ids`, [B, 3, P].
    """

    @staticmethod
    def forward(
        ctx: Any,
        betas: Tensor,
        features: Tensor,
        transforms: Tensor,
        template: Tensor,
        blendshapes: Tensor,
        weights: Tensor,
        tip_ids: Tensor,
        chunk_size: int,
    ) -> tuple[Tensor, Tensor]:
        """See the class."""
        b, (num_joints, num_verts) = len(betas), weights.shape
        coefficients = torch.cat([betas, features], dim=1)
        rest = torch.addmm(template, coefficients, blendshapes).view(b, 3, num_verts)
        columns = transforms.permute(0, 3, 2, 1).contiguous()  # [B, 4, 3, J]
        rotation, shift = columns[:, :3], columns[:, 3]
        verts = (shift.reshape(3 * b, num_joints) @ weights).view_as(rest)
        for part in _chunks(b, chunk_size):
            blended = _blended(rotation[part], weights)
            for i in range(3):
                verts[part].addcmul_(blended[:, i], rest[part, i, None])
        ctx.save_for_backward(rotation, rest, blendshapes, weights, tip_ids)
        ctx.chunk_size, ctx.num_betas = chunk_size, betas.shape[1]
        ctx.set_materialize_grads(False)
        return verts, verts.index_select(2, tip_ids)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_tips: Tensor | None) -> tuple[Any, ...]:
        """Gradients of betas, features and transforms."""
        rotation, rest, blendshapes, weights, tip_ids = ctx.saved_tensors
        b, (num_joints, num_verts) = len(rest), weights.shape
        with torch.autocast(rest.device.type, enabled=False):
            if grad is None:
                grad = torch.zeros_like(rest)
            elif grad_tips is None:
                grad = grad.contiguous()
            else:  # of our own, to add to
                grad = grad.clone(memory_format=torch.contiguous_format)
            if grad_tips is not None:
                grad.index_add_(2, tip_ids, grad_tips)
            grad_rest = torch.empty_like(rest)
            grad_columns = rest.new_empty(b, 4, 3, num_joints)
            for part in _chunks(b, ctx.chunk_size):
                blended, g = _blended(rotation[part], weights), grad[part]
                torch.mul(blended[:, :, 0], g[:, :1], out=grad_rest[part])
                for i in (1, 2):
                    grad_rest[part].addcmul_(blended[:, :, i], g[:, i, None])
                torch.mul(g.unsqueeze(1), rest[part].unsqueeze(2), out=blended)  # serves again
                summed = blended.view(9 * len(g), num_verts) @ weights.t()
                grad_columns[part, :3] = summed.view(len(g), 3, 3, num_joints)
            summed = grad.view(3 * b, num_verts) @ weights.t()
            grad_columns[:, 3] = summed.view(b, 3, num_joints)
            betas, features = _needed_grads(ctx, grad_rest.flatten(1), blendshapes)
        transforms = grad_columns.permute(0, 3, 2, 1)
        return betas, features, transforms, None, None, None, None, None


def _chunks(num: int, size: int) -> Iterator[slice]:
    return (slice(i, min(i + size, num)) for i in range(0, num, size))


def _blended(rotation: Tensor, weights: Tensor) -> Tensor:
    """[n, 3, 3, J] rotations, column by column, to [n, 3, 3, V], those of every vertex."""
    n, (num_joints, num_verts) = len(rotation), weights.shape
    return (rotation.reshape(9 * n, num_joints) @ weights).view(n, 3, 3, num_verts)


def _needed_grads(
    ctx: Any, grad_rest: Tensor, blendshapes: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of betas and features in one product, over the rows that are needed."""
    betas, features = ctx.needs_input_grad[:2]
    rows = slice(0 if betas else ctx.num_betas, None if features else ctx.num_betas)
    found = grad_rest @ blendshapes[rows].t()
    split = ctx.num_betas if betas else 0
    return found[:, :split] if betas else None, found[:, split:] if features else None
