"""Whose words stand where, in the ways in which popular chat templates write it."""

from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer

from slot_vllm.chat_turns import ChatTurns, UndeterminedError

# Written for these tests, after the marks that the models' own templates write.
TEMPLATES = {
    # A system message of its own where there is none.
    "smollm2": (
        "{% if messages[0].role != 'system' %}"
        "<|im_start|>system\nYou are kind.<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    # Tools behind the system message, their answers in a user's turn.
    "qwen2.5": (
        "<|im_start|>system\n"
        "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% else %}Be of use."
        "{% endif %}{% if tools %}\n\n# Tools\n{{ tools | tojson }}{% endif %}<|im_end|>\n"
        "{% for m in messages %}{% if m.role == 'tool' %}"
        "{% if messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}"
        "\n<tool_response>\n{{ m.content }}\n</tool_response>"
        "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}"
        "{% elif m.role == 'assistant' and m.tool_calls %}<|im_start|>assistant"
        "{% for c in m.tool_calls %}\n<tool_call>\n{{ c | tojson }}\n</tool_call>{% endfor %}"
        "<|im_end|>\n"
        "{% elif not (loop.first and m.role == 'system') %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    # The day in every system turn, tools in the first user's turn, messages without white space
    # around them.
    "llama3": (
        "{% macro head(role) %}<|start_header_id|>{{ role }}<|end_header_id|>\n\n{% endmacro %}"
        "<|begin_of_text|>{{ head('system') }}Today: {{ strftime_now('%d %b %Y') }}\n\n"
        "{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}{% endif %}<|eot_id|>"
        "{% for m in messages %}{% if m.role == 'tool' %}"
        "{{ head('ipython') }}{{ m.content | tojson }}<|eot_id|>"
        "{% elif m.tool_calls %}{{ head('assistant') }}{{ m.tool_calls | tojson }}<|eot_id|>"
        "{% elif not (loop.first and m.role == 'system') %}"
        "{{ head(m.role) }}"
        "{% if tools and loop.index0 == (messages[0].role == 'system') | int %}"
        "You may call:\n{{ tools | tojson }}\n\n{% endif %}"
        "{{ m.content | trim }}<|eot_id|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ head('assistant') }}{% endif %}"
    ),
    # A system message in the user's turn, roles that alternate, another name for the model.
    "gemma3": (
        "<bos>{% set first = messages[0].role == 'system' %}"
        "{% for m in messages %}{% if not (first and loop.first) %}"
        "{% if (m.role == 'user') != ((loop.index0 - first | int) % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{% if first and loop.index0 == 1 %}{{ messages[0].content }}\n\n{% endif %}"
        "{{ m.content | trim }}<end_of_turn>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
    "llama2": (
        "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] "
        "{% if loop.index0 == 1 and messages[0].role == 'system' %}"
        "<<SYS>>\n{{ messages[0].content }}\n<</SYS>>\n\n{% endif %}{{ m.content }} [/INST]"
        "{% elif m.role == 'assistant' %} {{ m.content }} </s>{% elif not loop.first %}"
        "{{ raise_exception('no') }}{% endif %}{% endfor %}"
    ),
    # No mark after a turn.
    "glm4": (
        "[gMASK]<sop>{% for m in messages %}"
        "<|{{ 'observation' if m.role == 'tool' else m.role }}|>\n"
        "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% else %}{{ m.content }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
    # Another mark after the last answer.
    "harmony": (
        "{% for m in messages %}<|start|>{{ m.role }}<|message|>"
        "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% else %}{{ m.content }}{% endif %}"
        "{% if loop.last and m.role == 'assistant' %}<|return|>{% else %}<|end|>{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
    ),
    # No blank where the model is to go on.
    "plain": (
        "{% for m in messages %}{{ m.role | upper }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
}
SPECIAL = (
    *("<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<bos>", "<s>"),
    *("<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "</s>"),
)
SYSTEM, USER, SHOT, ANSWER, LATE, TOOL = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Two plus\ntwo?"},
    {"role": "user", "content": "One plus one?"},
    {"role": "assistant", "content": "Two."},
    {"role": "system", "content": "Answer in words."},
    {"role": "tool", "content": "rain", "tool_call_id": "call00007", "name": "weather"},
)
CALLED = {"name": "weather", "arguments": {"at": "home"}}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "call00007", "type": "function", "function": CALLED}],
}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]


@pytest.fixture(scope="module", params=TEMPLATES)
def tokenizer(request: pytest.FixtureRequest, tiny_model: str) -> Any:
    loaded = AutoTokenizer.from_pretrained(tiny_model)
    loaded.add_tokens([AddedToken(text, special=True) for text in SPECIAL], special_tokens=True)
    loaded.chat_template = TEMPLATES[request.param]
    loaded.name = request.param
    return loaded


def words(
    tokenizer: Any, role: str, *chat: dict[str, Any], ends: bool = True, **options: Any
) -> Any:
    text = tokenizer.apply_chat_template(
        list(chat), tokenize=False, add_generation_prompt=ends, **options
    )
    return [text[turn.start : turn.stop] for turn in ChatTurns(tokenizer).of(text, [role])]


@pytest.mark.parametrize("ends", [True, False])
def test_each_role_s_words(tokenizer: Any, ends: bool) -> None:
    shots = (SYSTEM, SHOT, ANSWER, USER)
    assert words(tokenizer, "assistant", *shots, ends=ends) == ["Two."]
    assert words(tokenizer, "user", SHOT, ANSWER, USER, ends=ends) == [
        "One plus one?",
        "Two plus\ntwo?",
    ]
    if tokenizer.name == "gemma3":
        # What it holds cannot be taken apart, and is not called the system's.
        assert words(tokenizer, "user", *shots, ends=ends)[0] == "Be brief.\n\nOne plus one?"
        with pytest.raises(UndeterminedError, match="a system message into the user's turn"):
            words(tokenizer, "system", *shots, ends=ends)
        return
    (system,) = words(tokenizer, "system", *shots, ends=ends)
    assert system.endswith("Be brief.")
    assert system.startswith("Today: " if tokenizer.name == "llama3" else "Be brief.")
    assert words(tokenizer, "user", *shots, ends=ends) == ["One plus one?", "Two plus\ntwo?"]


def test_a_role_without_a_turn(tokenizer: Any) -> None:
    with pytest.raises(UndeterminedError, match="no assistant turn"):
        words(tokenizer, "assistant", USER)
    if tokenizer.name in ("llama2", "glm4", "harmony", "plain"):
        with pytest.raises(UndeterminedError, match="no system turn"):
            words(tokenizer, "system", USER)
    with pytest.raises(UndeterminedError, match="no user or assistant turn"):
        ChatTurns(tokenizer).of("What is two plus two?", ["user", "assistant"])


@pytest.mark.parametrize("ends", [True, False])
def test_a_system_message_after_the_user_s(tokenizer: Any, ends: bool) -> None:
    if tokenizer.name in ("gemma3", "llama2"):
        pytest.skip("the template refuses it")
    assert words(tokenizer, "user", USER, LATE, ends=ends) == ["Two plus\ntwo?"]
    assert words(tokenizer, "system", USER, LATE, ends=ends)[-1] == "Answer in words."


@pytest.mark.parametrize(
    "content", [" hi", "\n\n  hi", "hi\n", "user\nhi", "a\nb: c", "f <| x", "hü 😀"]
)
def test_a_message_keeps_its_own_characters(tokenizer: Any, content: str) -> None:
    trims = tokenizer.name in ("llama3", "gemma3")
    kept = content.strip() if trims else content
    if tokenizer.name == "plain":  # its turns end with a line
        kept = kept.rstrip()
    assert words(tokenizer, "user", {"role": "user", "content": content}) == [kept]


def test_tools(tokenizer: Any) -> None:
    if tokenizer.name in ("gemma3", "llama2"):
        pytest.skip("the template has no tools")
    for called in ((TOOL,), (TOOL, TOOL)):
        chat = (SYSTEM, SHOT, CALL, *called, ANSWER, USER)
        first, last = words(tokenizer, "user", *chat, tools=TOOLS)
        assert last == "Two plus\ntwo?"
        if tokenizer.name == "llama3":
            assert first.startswith("You may call:") and first.endswith("\n\nOne plus one?")
        else:
            assert first == "One plus one?"
        assert words(tokenizer, "assistant", *chat, tools=TOOLS)[-1] == "Two."
        (system,) = words(tokenizer, "system", *chat, tools=TOOLS)
        assert "Be brief." in system
        assert ("weather" in system) == (tokenizer.name == "qwen2.5")


def test_what_the_model_goes_on_with_is_no_turn(tokenizer: Any) -> None:
    begun = {"role": "assistant", "content": "Let me"}
    text = tokenizer.apply_chat_template(
        [SHOT, ANSWER, USER, begun], tokenize=False, continue_final_message=True
    )
    assert text.endswith("Let me")
    turns = ChatTurns(tokenizer).of(text, ["assistant"])
    assert [text[turn.start : turn.stop] for turn in turns] == ["Two."]


def test_a_system_message_that_nothing_marks(tiny_model: str) -> None:
    loaded = AutoTokenizer.from_pretrained(tiny_model)
    loaded.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}### Instruction:\n"
        "{% elif m.role == 'assistant' %}### Response:\n{% endif %}{{ m.content }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}### Response:{% endif %}"
    )
    with pytest.raises(UndeterminedError, match="does not mark system turns"):
        words(loaded, "system", SYSTEM, USER)
    # Or what a system message says after them would be taken for theirs.
    for role in ("user", "assistant"):
        with pytest.raises(UndeterminedError, match=f"does not mark where {role} turns end"):
            words(loaded, role, SHOT, ANSWER, USER, LATE)


def test_marks_that_two_roles_share(tiny_model: str) -> None:
    loaded = AutoTokenizer.from_pretrained(tiny_model)
    loaded.chat_template = "{% for m in messages %}<|turn|>{{ m.content }}<|over|>{% endfor %}"
    for role in ("user", "assistant"):
        with pytest.raises(UndeterminedError, match=f"does not mark {role} turns"):
            words(loaded, role, SHOT, ANSWER, USER)


def test_templates_without_marks(tiny_model: str) -> None:
    bare = AutoTokenizer.from_pretrained(tiny_model)
    bare.chat_template = None
    with pytest.raises(UndeterminedError, match="no chat template"):
        ChatTurns(bare).of("text", ["user"])
    bare.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(UndeterminedError, match="does not mark where user turns end"):
        ChatTurns(bare).of("text", ["user"])
    bare.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(UndeterminedError, match="does not mark user turns"):
        ChatTurns(bare).of("text", ["user"])
