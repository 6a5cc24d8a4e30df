"""The prompts of a completion as the text that `echo` puts before the answer. Knows no HTTP."""

import asyncio
from collections.abc import Sequence

from deployments.graph import Tokenizer
from deployments.types import Prompt, TextPrompt, TokenLogprob
from serve_app.dialects.totalgpt.completion_choices import EchoedPrompt


async def echo_prompts(
    tokenizer: Tokenizer,
    model_id: str,
    prompts: Sequence[Prompt],
    prompt_token_ids: Sequence[tuple[int, ...]],
    *,
    is_truncated: bool,
) -> list[EchoedPrompt]:
    """Text is echoed as it came, unless it may have been cut; what came as token ids, as their text."""

    async def text_of(prompt: Prompt, token_ids: tuple[int, ...]) -> str:
        if isinstance(prompt, TextPrompt) and not is_truncated:
            return prompt.text
        return await tokenizer.decode(model_id, token_ids)

    first_ids = tuple(token_ids[0] for token_ids in prompt_token_ids)
    first_texts = await tokenizer.token_texts(model_id, first_ids)
    texts = await asyncio.gather(
        *(text_of(prompt, token_ids) for prompt, token_ids in zip(prompts, prompt_token_ids, strict=True)),
    )
    return [
        EchoedPrompt(text, TokenLogprob(first_id, 0.0, first_text))
        for text, first_id, first_text in zip(texts, first_ids, first_texts, strict=True)
    ]
