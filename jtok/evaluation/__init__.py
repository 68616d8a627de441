"""What a model costs and what it is worth: FLOPs, latency, memory, and the front between cost and accuracy."""
