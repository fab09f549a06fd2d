"""The dtype of matrix products: the fastest that the processor has and the use allows."""

import torch

from stages.files import UserError


def generation_dtype(setting: str, device: torch.device) -> torch.dtype:
    """The dtype of generation's matrix products: the setting, or for "auto" bfloat16 if it is native, else on a CPU
    int8 if that is native, else float32.

    Raises `UserError` for int8 on CUDA, or on a processor without such instructions.
    """
    if setting != "auto":
        if setting == "int8" and (device.type != "cpu" or not int8_is_native()):
            where = "CUDA" if device.type == "cuda" else "this processor, which lacks VNNI"
            raise UserError(f'[model] dtype = "int8" is not for {where}; set it to "auto"')
        return getattr(torch, setting)
    if device.type == "cpu" and not _bfloat16_is_native(device) and int8_is_native():
        return torch.int8
    return training_dtype(setting, device)


def held_dtype(products: torch.dtype) -> torch.dtype:
    """The dtype of everything but these products, in which weights are loaded before they are packed."""
    return torch.float32 if products == torch.int8 else products


def training_dtype(setting: str, device: torch.device) -> torch.dtype:
    """The dtype of training's matrix products, also for the log-probabilities of its data: the setting, or for "auto"
    bfloat16 if it is native, else float32. "int8", which only generation can use, is float32 here."""
    if setting in ("float32", "bfloat16"):
        return getattr(torch, setting)
    return torch.bfloat16 if setting == "auto" and _bfloat16_is_native(device) else torch.float32


def int8_is_native() -> bool:
    """Whether the processor multiplies int8 natively (VNNI)."""
    return _has("avx512_vnni", "avx_vnni")


def _bfloat16_is_native(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return _has("avx512_bf16", "amx_bf16", "amx_tile", "bf16")


def _has(*names: str) -> bool:
    """Whether the processor has one of these capabilities."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in names)
