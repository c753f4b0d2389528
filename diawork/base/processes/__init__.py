"""Several processes that train one model: what each knows of the others, BatchNorm over them all, and their start."""
