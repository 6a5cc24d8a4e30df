"""OpenAI's fine-tuning API: files and jobs. Knows no other dialect."""

from serve_app.dialects.fine_tuning.router import router

__all__ = ["router"]
