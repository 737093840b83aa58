"""In the workers: what happens in a step of the model runner."""
