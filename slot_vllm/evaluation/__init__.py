"""Evaluation: a YAML file -> lighteval's tasks on a vLLM engine -> results and samples."""
