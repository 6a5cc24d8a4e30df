"""Webhooks as pure values and rules: events, signatures, retry schedule, which addresses may be called."""
