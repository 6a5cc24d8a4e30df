"""Prints how soon a fine-tuned model answers: from the end of its training to its first token, on a running service.

The training is asked for and waited for as a client does, and the model is asked for text as soon as it is told. The
end of the training is when the database has the model; the service must run on this machine, for its clock.
"""

import argparse
import statistics
import time
from datetime import datetime

import httpx

from load_tests.engine_speed import print_line

_DOCUMENTS = [f"Keeper {number} of the lighthouse is called Ottoline." for number in range(8)]


def first_token_s(client: httpx.Client, model: str) -> float:
    """Unix time of the first token of a streamed answer."""
    body = {"model": model, "prompt": "The keeper of the", "max_tokens": 4, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as answer:
        answer.raise_for_status()
        next(answer.iter_lines())
        return time.time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--key", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    from_end: list[float] = []
    from_answer: list[float] = []
    base: list[float] = []
    headers = {"Authorization": f"Bearer {arguments.key}"}
    with httpx.Client(base_url=arguments.url, headers=headers, timeout=600) as client:
        for seed in range(arguments.rounds):
            began_at = time.time()
            base.append(first_token_s(client, "standard") - began_at)
            body = {"training_data": _DOCUMENTS, "epochs": 1, "seed": seed}
            model = client.post("/v1/aitextgen/finetune", json=body).raise_for_status().json()["model_id"]
            answered_at = time.time()
            told_at = first_token_s(client, model)
            jobs = client.get("/v1/aitextgen/finetune").raise_for_status().json()["data"]
            [finished] = [job["finished_at"] for job in jobs if job["model_id"] == model]
            from_answer.append(told_at - answered_at)
            from_end.append(told_at - datetime.fromisoformat(finished).timestamp())
    print_line("to the first token, ms", "median", "each")
    for name, seconds in (("from the end of training", from_end), ("from the answer", from_answer), ("base", base)):
        each = ", ".join(f"{one * 1000:.0f}" for one in seconds)
        print_line(name, f"{statistics.median(seconds) * 1000:.0f}", each)


if __name__ == "__main__":
    main()
