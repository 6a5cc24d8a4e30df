"""Training data, checkpoints and adapters in an object store: content-addressed, verified, whole or not at all."""
