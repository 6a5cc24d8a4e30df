"""The steps of choosing a token: edits of the logits, truncation, the draw and log-probabilities; knows no model."""
