"""RMSNorm with a backward pass by hand, which keeps the input alone: autograd would keep four tensors of its size.

Shapes: t tokens, d hidden_size.
"""

import torch
from torch import Tensor


def rms_norm(x_td: Tensor, weight_d: Tensor, eps: float) -> Tensor:
    """n weight with n = x / sqrt(mean(x^2) + eps) (arXiv 1910.07467), statistics in fp32; [t, d] in x's dtype.

    For an incoming gradient g, and s = 1 / sqrt(mean(x^2) + eps):

        dweight = sum_t g n        dx = s (g weight - n mean(g weight n))
    """
    return _RMSNorm.apply(x_td, weight_d, eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_td, weight_d, eps):
        x = x_td.float()
        scale_t1 = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x_td, weight_d, scale_t1)
        return weight_d * (x * scale_t1).to(x_td.dtype)

    @staticmethod
    def backward(ctx, grad_td):
        x_td, weight_d, scale_t1 = ctx.saved_tensors
        normal_td, grad = x_td.float() * scale_t1, grad_td.float()
        grad_weight_d = (grad * normal_td).sum(0).to(weight_d.dtype)
        grad = grad * weight_d
        mean_t1 = torch.linalg.vecdot(grad, normal_td)[:, None] / x_td.shape[-1]
        grad_x_td = torch.addcmul(grad, normal_td, mean_t1, value=-1).mul_(scale_t1)
        return grad_x_td.to(x_td.dtype), grad_weight_d, None
