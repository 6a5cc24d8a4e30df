"""The InferKit API: generate, custom generators. Knows no other dialect."""

from serve_app.dialects.inferkit.router import router

__all__ = ["router"]
