"""The canonical command that a completion or a chat completion becomes. Pure."""

from deployments.types import Prompt
from serve_app.config import TotalGPTConfig
from serve_app.dialects.totalgpt.call import Call
from serve_app.dialects.totalgpt.fields import SamplingFields
from serve_app.dialects.totalgpt.sampling import to_sampling_params, to_seed
from serve_app.use_cases.generate import GenerateCommand


def make_command(
    fields: SamplingFields,
    call: Call,
    config: TotalGPTConfig,
    *,
    prompts: tuple[Prompt, ...],
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None,
) -> GenerateCommand:
    """Raises InvalidParameter. `truncate_prompt_tokens` -1 cuts as much of a prompt as its answer needs."""
    fits_prompt = fields.truncate_prompt_tokens == -1
    return GenerateCommand(
        caller=call.caller,
        model=call.model.id,
        prompts=prompts,
        sampling=to_sampling_params(fields, logprobs=logprobs, prompt_logprobs=prompt_logprobs),
        max_tokens=max_tokens,
        seed=to_seed(fields.seed),
        bad_words=tuple(fields.bad_words),
        n=fields.n,
        best_of=fields.best_of,
        truncate_prompt_tokens=None if fits_prompt else fields.truncate_prompt_tokens,
        overflow="truncate" if fits_prompt else config.overflow,
    )
