"""The CPU path of the engine for the Llama family: int8 kernels in C++, and what prepares and runs them."""
