"""Benchmarks as this project defines them, in lighteval's terms. A user names them in a run's file;
lighteval itself takes them by ``--custom-tasks slot_vllm.evaluation.benchmarks``, if it is online:
it imports all of its own tasks, and some of those download."""

from slot_vllm.evaluation.benchmarks import ceval, gsm8k, published

TASKS_TABLE = [*published.TASKS_TABLE, *gsm8k.TASKS_TABLE, *ceval.TASKS_TABLE]

# By the first part of a task's name: what reads its data in place of lighteval.
SOURCES = {"ceval": ceval}

# By task: what a run's prompts begin with where its file gives no system prompt.
SYSTEM_PROMPTS = {gsm8k.TASK.name: gsm8k.SYSTEM_PROMPT}
