"""The schema's history: one file under `versions` for each change, run in order. A file never changes once released."""
