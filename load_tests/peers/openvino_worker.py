"""Runs in OpenVINO's environment: its continuous batching pipeline in the closed loop of `load_tests.worker_loop`."""

import sys
from typing import Any

import numpy
import openvino
import openvino_genai

from load_tests.worker_loop import serve


class OpenVinoLoop:
    """The pipeline, with 2 GiB of KV cache and prompts in pieces of 512 tokens."""

    def __init__(self, model: str, max_num_seqs: int) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = 2
        scheduler.max_num_seqs = max_num_seqs
        scheduler.max_num_batched_tokens = 512
        scheduler.enable_prefix_caching = False
        scheduler.dynamic_split_fuse = True
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(model, scheduler, "CPU", {}, {})
        self._tokenizer = self._pipeline.get_tokenizer()
        self._handles: dict[int, Any] = {}
        self._num_added = 0

    def encode(self, text: str) -> list[int]:
        token_ids: list[int] = self._tokenizer.encode(text).input_ids.data[0].tolist()
        return token_ids

    def add(self, key: int, token_ids: list[int], max_tokens: int) -> None:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = max_tokens
        config.ignore_eos = config.do_sample = True
        config.temperature, config.top_p = 0.8, 0.9
        config.apply_chat_template = False
        ids = openvino.Tensor(numpy.array([token_ids], dtype=numpy.int64))
        self._handles[key] = self._pipeline.add_request(self._num_added, ids, config)
        self._num_added += 1

    def step(self) -> dict[int, tuple[int, bool]]:
        self._pipeline.step()
        arrived = {}
        for key, handle in list(self._handles.items()):
            num_tokens = 0
            if handle.can_read():
                num_tokens = sum(len(output.generated_ids) for output in handle.read().values())
            ended = handle.get_status() != openvino_genai.GenerationStatus.RUNNING
            if ended:
                del self._handles[key]
            if num_tokens or ended:
                arrived[key] = (num_tokens, ended)
        return arrived


if __name__ == "__main__":
    serve(OpenVinoLoop(sys.argv[1], int(sys.argv[2])))
