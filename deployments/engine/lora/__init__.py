"""LoRA adapters: reading them from files, and computing them in torch. The native kernels have their own form."""
