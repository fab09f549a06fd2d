"""RMSNorm (arXiv 1910.07467) behind a residual connection, forward and backward. Shapes: t tokens, d hidden_size."""

import torch
from torch import Tensor


def add_norm(
    x_td: Tensor, update_td: Tensor | None, weight_d: Tensor, eps: float, triton: bool = False
) -> tuple[Tensor, Tensor]:
    """y = x + update, or x, and n weight with n = y / sqrt(mean(y^2) + eps), statistics in fp32; both in x's dtype."""
    if not triton:
        return _AddNorm.apply(x_td, update_td, weight_d, eps, forward, backward)
    from kernels import norm_triton

    return _AddNorm.apply(x_td, update_td, weight_d, eps, norm_triton.forward, norm_triton.backward)


class _AddNorm(torch.autograd.Function):
    """Keeps y alone, and s = 1 / sqrt(mean(y^2) + eps). For incoming gradients g of the norm and h of y:

    dweight = sum_t g n        dx = dupdate = h + s (g weight - n mean(g weight n))
    """

    @staticmethod
    def forward(ctx, x_td, update_td, weight_d, eps, forward, backward):
        y_td, out_td, scale_t1 = forward(x_td, update_td, weight_d, eps)
        ctx.save_for_backward(y_td, weight_d, scale_t1)
        ctx.set_materialize_grads(False)
        ctx.function, ctx.added = backward, update_td is not None
        return y_td, out_td

    @staticmethod
    def backward(ctx, grad_y_td, grad_td):
        weighted = ctx.needs_input_grad[2]
        grad_x_td, grad_weight_d = ctx.function(grad_y_td, grad_td, *ctx.saved_tensors, weighted)
        return grad_x_td, grad_x_td if ctx.added else None, grad_weight_d, None, None, None


def forward(x_td: Tensor, update_td: Tensor | None, weight_d: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """y, its norm, and s [t, 1], fp32."""
    y_td = x_td if update_td is None else x_td + update_td
    y = y_td.float()
    scale_t1 = torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    return y_td, weight_d * (y * scale_t1).to(y_td.dtype), scale_t1


def backward(
    grad_y_td: Tensor | None, grad_td: Tensor, y_td: Tensor, weight_d: Tensor, scale_t1: Tensor, weighted: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Gradients of x and, if `weighted`, of the weight; without the gradient of y where nothing else uses y."""
    normal_td, grad = y_td.float() * scale_t1, grad_td.float()
    grad_weight_d = (grad * normal_td).sum(0).to(weight_d.dtype) if weighted else None
    grad = grad * weight_d
    mean_t1 = torch.linalg.vecdot(grad, normal_td)[..., None] / y_td.shape[-1]
    grad_x_td = torch.addcmul(grad, normal_td, mean_t1, value=-1).mul_(scale_t1).to(y_td.dtype)
    return grad_x_td if grad_y_td is None else grad_x_td + grad_y_td, grad_weight_d
