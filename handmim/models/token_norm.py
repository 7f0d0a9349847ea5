"""Tokens standardised by the statistics of the domain that their images come from."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handmim.models.layers import BatchNorm1d
from handmim.types import Tokens
from handmim.utils.arguments import one_of

LABELLED, UNLABELED = DOMAINS = ("labelled", "unlabeled")
TOKENS = ("patches", "all")


class TokenNorm(nn.Module):
    """Every channel of the tokens with mean 0 and deviation 1 over the images and positions of a
    domain: labelled images, or unlabeled ones as they are to be predicted (AdaBN, Li et al. 2016,
    arXiv 1603.04779; domain-specific batch norm, Chang et al. 2019, arXiv 1906.03950). It has no
    weights. Training takes the moments of the batch, prediction those that `measure` has set.

    tokens: "patches", of the last block and of taps, or "all", the class token too."""

    adapted: Tensor

    def __init__(self, dim: int, tokens: str, num_taps: int = 0) -> None:
        super().__init__()
        one_of("token_norm", tokens, TOKENS)
        self.with_cls = tokens == "all"
        self.norms = nn.ModuleDict()
        for domain in DOMAINS:
            num = 1 + num_taps + self.with_cls
            each = (BatchNorm1d(dim, affine=False) for _ in range(num))
            self.norms[domain] = nn.ModuleList(each)
        # Whether unlabeled images were measured: then their moments predict. On the host too, for
        # a prediction must not wait for the device.
        self.register_buffer("adapted", torch.zeros((), dtype=torch.bool))
        self.is_adapted = False
        self.register_load_state_dict_post_hook(self._read_flag)

    @staticmethod
    def _read_flag(norm: Any, _: Any) -> None:
        norm.is_adapted = bool(norm.adapted)

    def _parts(self, tokens: Tokens) -> list[Tensor]:
        return [*tokens.taps, tokens.patches, *([tokens.cls] if self.with_cls else [])]

    def forward(self, tokens: Tokens, domain: str | None = None, of_batch: bool = False) -> Tokens:
        """Standardise the tokens of images of one domain; None is the unlabeled one where it was
        measured. `of_batch` takes the moments of these tokens in eval mode too."""
        if domain is None:
            domain = UNLABELED if self.is_adapted else LABELLED
        each = []
        norms: Any = self.norms[domain]
        for norm, part in zip(norms, self._parts(tokens), strict=True):
            rows = part.flatten(0, -2)
            if of_batch and not self.training:
                rows = F.batch_norm(rows.float(), None, None, training=True, eps=norm.eps)
            else:
                rows = norm(rows)
            each.append(rows.view_as(part))
        cls = each.pop() if self.with_cls else tokens.cls
        *taps, patches = each
        return tokens._replace(cls=cls, patches=patches, taps=tuple(taps))

    @torch.no_grad()
    def measure(self, domain: str, batches: Iterable[Tokens]) -> None:
        """Set the moments of a domain to those of all tokens of its images."""
        totals: list[Tensor] = []  # of each part: number of tokens, sums, sums of squares
        for tokens in batches:
            rows = [part.flatten(0, -2).double() for part in self._parts(tokens)]
            sums = [torch.stack([torch.ones_like(x), x, x.square()]).sum(dim=1) for x in rows]
            totals = [t + s for t, s in zip(totals, sums, strict=True)] if totals else sums
        if not totals:
            raise ValueError(f"no {domain} image can be read, to measure task.token_norm by")
        norms: Any = self.norms[domain]
        for norm, (num, first, second) in zip(norms, totals, strict=True):
            mean = first / num
            norm.running_mean.copy_(mean)
            norm.running_var.copy_((second / num - mean.square()).clamp(min=1e-6))
        if domain == UNLABELED:
            self.adapted.fill_(True)
            self.is_adapted = True
