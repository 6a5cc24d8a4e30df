"""Makes the environments of peers, and the model in their formats: `python -m load_tests.peers.install vllm`."""

import argparse

from load_tests.peers import llamacpp, openvino, transformers_serve, vllm

_PEERS = {"llamacpp": llamacpp, "openvino": openvino, "transformers-serve": transformers_serve, "vllm": vllm}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peers", nargs="+", choices=sorted(_PEERS))
    parser.add_argument("--torch", default="torch==2.13.0", help="which torch, where a peer needs it")
    arguments = parser.parse_args()
    for name in arguments.peers:
        _PEERS[name].ENVIRONMENT.install(arguments.torch)
        _PEERS[name].prepare()


if __name__ == "__main__":
    main()
