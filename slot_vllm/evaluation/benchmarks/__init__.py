"""Benchmarks as this project defines them, in lighteval's terms. A user names them in a run's file;
lighteval itself takes them by ``--custom-tasks slot_vllm.evaluation.benchmarks``."""

from slot_vllm.evaluation.benchmarks import gsm8k, published

TASKS_TABLE = [*published.TASKS_TABLE, *gsm8k.TASKS_TABLE]

# By task: what a run's prompts begin with where its file gives no system prompt.
SYSTEM_PROMPTS = {gsm8k.TASK.name: gsm8k.SYSTEM_PROMPT}
