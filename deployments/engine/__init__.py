"""The inference engine: scheduling as bookkeeping over integers, tensors in the model runner and the sampler only."""
