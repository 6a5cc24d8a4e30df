"""The TotalGPT API: OpenAI-style completions and chat in vLLM's vocabulary. Knows no other dialect."""

from serve_app.dialects.totalgpt.router import router

__all__ = ["router"]
