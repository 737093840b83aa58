"""``ceval``: C-Eval's questions, answered in the model's own words, scored by the letter it gives;
``ceval:SUBJECT`` is one of its 52 subjects.

lighteval has C-Eval by log-likelihoods only, which SLOT does not touch. Subjects, groups and the
Hard subset: Huang et al. 2023, arXiv 2305.08322. The answers of its test split are not public, so
``val`` is asked.
"""

# ruff: noqa: RUF001

import re
import unicodedata
from pathlib import Path
from typing import Any

from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc

from slot_vllm.evaluation import columns, data_files
from slot_vllm.evaluation.benchmarks.raw_text import metric
from slot_vllm.evaluation.data_files import Item, Row
from slot_vllm.evaluation.errors import ConfigError

REPO = "ceval/ceval-exam"
SPLIT = "val"
GROUPS = {
    "STEM": """computer_network operating_system computer_architecture college_programming
        college_physics college_chemistry advanced_mathematics probability_and_statistics
        discrete_mathematics electrical_engineer metrology_engineer high_school_mathematics
        high_school_physics high_school_chemistry high_school_biology middle_school_mathematics
        middle_school_biology middle_school_physics middle_school_chemistry veterinary_medicine""",
    "Social Science": """college_economics business_administration marxism mao_zedong_thought
        education_science teacher_qualification high_school_politics high_school_geography
        middle_school_politics middle_school_geography""",
    "Humanities": """modern_chinese_history ideological_and_moral_cultivation logic law
        chinese_language_and_literature art_studies professional_tour_guide legal_professional
        high_school_chinese high_school_history middle_school_history""",
    "Other": """civil_servant sports_science plant_protection basic_medicine clinical_medicine
        urban_and_rural_planner accountant fire_engineer environmental_impact_assessment_engineer
        tax_accountant physician""",
}
SUBJECTS = {name: group for group, names in GROUPS.items() for name in names.split()}
HARD = {
    *("advanced_mathematics", "discrete_mathematics", "probability_and_statistics"),
    *("college_chemistry", "college_physics"),
    *("high_school_mathematics", "high_school_chemistry", "high_school_physics"),
}
LETTERS = ("A", "B", "C", "D")

_PROMPT = """请先思考，再回答下面的单项选择题。最后一行须写成“答案：X”，X 为所选的字母。

{question}

A. {A}
B. {B}
C. {C}
D. {D}"""

_END = r"(?![A-Za-z])"
_OPEN = r"(?:\\boxed\{)?(?:\\text\{)?"
# Where a letter is the answer, the surest first; each alternative has one group.
_STATED = (
    re.compile(
        rf"(?i:答案|answer)[^A-Za-z\n]{{0,12}}(?:is[^A-Za-z\n]{{1,8}})?{_OPEN}([A-D]){_END}"
        rf"|答案[^A-Za-z\n]{{0,12}}{_OPEN}([a-d]){_END}"
        r"|(?i:answer)\s?[:*][^\w\n]{0,6}([a-d])(?=[^\w\n]*(?:\n|$))"
        rf"|而是[^\w\n]{{0,4}}([A-D]){_END}"
    ),
    re.compile(rf"\\boxed\{{(?:\\text\{{)?\W{{0,2}}([A-D]){_END}"),
    re.compile(rf"选(?:择|的?是|为)?[^\w\n]{{0,4}}([A-D]){_END}"),
    re.compile(
        rf"正确的?(?:选项|说法)?应?该?(?:是|为)[^\w\n]{{0,4}}([A-D]){_END}"
        r"|(?<![A-Za-z])([A-D])[^\w\n,;.。!?]{0,2}选?项?(?:是|为)?(?:正确|对的)"
    ),
    re.compile(rf"(?<![A-Za-z])([A-D]){_END}"),
)
_DENIED = re.compile(
    r"(?:不是|不为|非|不能?选择?|不应该?选择?|排除|\bnot)[^\w\n]{0,4}\Z", re.IGNORECASE
)
_WRONG = re.compile(
    r"[^\w\n,;.。!?]{0,3}(?:选?项)?(?:的说法)?(?:显然)?(?:是|为)?(?:错|不正确|不对|不符|有误|排除)"
    r"|[^\w\n,;.。!?]{0,3} is (?:wrong|incorrect|false|not)\b"
)


def letter(text: str) -> str | None:
    """The letter that an answer gives, its reasoning left out; the last one where it gives
    several. One that is denied (``不是 A``, ``A 错``) is not given."""
    answer = unicodedata.normalize("NFKC", text.rpartition("</think>")[2])
    if "<think>" in answer:  # cut off while reasoning
        return None
    for pattern in _STATED:
        for found in reversed(list(pattern.finditer(answer))):
            group = found.lastindex or 0
            start, end = found.span(group)
            if not _DENIED.search(answer[:start]) and not _WRONG.match(answer, end):
                return found[group].upper()
    return None


def prompt(line: dict[str, Any], task_name: str = "") -> Doc:
    return Doc(
        task_name=task_name,
        query=_PROMPT.format(**{name: line[name] for name in ("question", *LETTERS)}),
        choices=list(LETTERS),
        gold_index=LETTERS.index(line["answer"].strip().upper()),
    )


def read(path: Path, subject: str | None) -> list[Row]:
    """Local data, of one subject or of all that are there. Raises ConfigError.

    A file, or a directory as published (``val/SUBJECT_val.csv``) or as on the hub
    (``SUBJECT/val-*.parquet``). A column ``subject``, the file's name or its directory's says which
    subject it is. The other splits of a directory that has ``val`` are left out; a file that is of
    none is an error there.
    """
    files = [path] if path.is_file() else data_files.files(path)
    splits = {file: _split(file, path) for file in files}
    if SPLIT in splits.values():
        stray = next((file for file, split in splits.items() if split is None), None)
        if stray is not None:
            raise ConfigError(f"{stray}: it is of no split, beside files of {SPLIT!r}")
        files = [file for file, split in splits.items() if split == SPLIT]
    items = [item for file in files for item in _items(file)]
    rows = columns.checked(items, columns.of("ceval"))
    for item, row in zip(items, rows, strict=True):
        if row["answer"].strip().upper() not in LETTERS:
            raise ConfigError(f"{item.place}: answer={row['answer']!r}; allowed: A, B, C, D")
    chosen = [row for row in rows if subject in (None, row["subject"])]
    if not chosen:
        raise ConfigError(f"{path}: no questions{f' of {subject}' if subject else ''}")
    return chosen


def download(subject: str | None) -> list[Row]:
    """The hub's data, of one subject or of all. Raises whatever the hub's client does."""
    import datasets

    subjects = [subject] if subject else list(SUBJECTS)
    return [
        {**row, **_groups(name)}
        for name in subjects
        for row in datasets.load_dataset(REPO, name, split=SPLIT)
    ]


def _items(file: Path) -> list[Item]:
    named = [
        re.sub(r"[_-](val|dev|test).*", "", data_files.stem(file)),
        *(p.name for p in file.parents),
    ]
    of_file = next((name for name in named if name in SUBJECTS), None)
    items = []
    for place, row in data_files.read(file):
        subject = row.get("subject", of_file)
        if subject not in SUBJECTS:
            raise ConfigError(
                f"{place}: subject={subject!r}; required: one of C-Eval's 52, in a column "
                "`subject` or as the name of the file or its directory"
            )
        items.append(Item(place, {**row, **_groups(subject)}))
    return items


def _groups(subject: str) -> Row:
    hard = {"subset": "Hard"} if subject in HARD else {}
    return {"subject": subject, "group": SUBJECTS[subject], **hard}


def _split(file: Path, root: Path) -> str | None:
    words = re.split(r"[_-]", data_files.stem(file)) + list(file.relative_to(root).parts[:-1])
    return next((word for word in words if word in ("val", "dev", "test")), None)


def _task(name: str, subset: str) -> LightevalTaskConfig:
    return LightevalTaskConfig(
        name=name,
        prompt_function=prompt,
        hf_repo=REPO,
        hf_subset=subset,
        hf_avail_splits=["dev", SPLIT, "test"],
        evaluation_splits=[SPLIT],
        generation_size=4096,
        metrics=[metric("letter", lambda text, doc: letter(text) == doc.get_golds()[0])],
    )


WHOLE = _task("ceval", "")
TASKS_TABLE = [_task(f"ceval:{subject}", subject) for subject in SUBJECTS]
