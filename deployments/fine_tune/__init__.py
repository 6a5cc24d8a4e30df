"""Training of LoRA adapters: data, trainer, checkpoints. Knows no job, no database and no Ray."""
