"""Training: one loop for SFT and DPO, sharded over ranks."""
