"""The AITextGen API: generate, fine-tune, webhooks. Knows no other dialect."""

from serve_app.dialects.aitextgen.router import router

__all__ = ["router"]
