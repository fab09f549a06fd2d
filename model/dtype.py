"""The dtype of matrix products: the fastest that the processor has and the use allows."""

import torch

from stages.command import UserError


def generation_dtype(setting: str, device: torch.device) -> torch.dtype:
    """The setting's; for "auto" the first native one of bfloat16, int8, float32. `UserError` for int8 that is not."""
    int8 = device.type == "cpu" and int8_is_native()
    if setting == "int8" and not int8:
        where = "CUDA" if device.type == "cuda" else "this processor, which lacks VNNI"
        raise UserError(f'[model] dtype = "int8" is not for {where}; set it to "auto"')
    dtype = training_dtype(setting, device)
    return torch.int8 if setting == "int8" or (setting == "auto" and int8 and dtype == torch.float32) else dtype


def training_dtype(setting: str, device: torch.device) -> torch.dtype:
    """The setting's; for "auto" bfloat16 if native, else float32; for "int8", which only generation uses, float32."""
    if setting != "auto":
        return torch.float32 if setting == "int8" else getattr(torch, setting)
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = _has("avx512_bf16", "amx_bf16", "amx_tile", "bf16")
    return torch.bfloat16 if native else torch.float32


def int8_is_native() -> bool:
    """Whether the processor multiplies int8 natively (VNNI)."""
    return _has("avx512_vnni", "avx_vnni")


def _has(*names: str) -> bool:
    return any(map(torch.cpu.get_capabilities().get, names))
