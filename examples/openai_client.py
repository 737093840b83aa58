"""Asks a running SLOT server with the stock openai client.

slot-vllm serve "$(slot-vllm get-model smollm2-135m)"  # any model; this one is fetched once
python examples/openai_client.py [URL]
"""

import sys

import openai

PROBLEM = (
    "There are 42 coins in the box of Kira. Then 8 coins are added. Kira sells 5 coins. "
    "How many coins does Kira have in the end? Give the answer as a number."
)


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    model = client.models.list().data[0].id

    # SLOT is chosen per request.
    for settings in ({"slot_steps": 0}, {"slot_steps": 5, "slot_lr": 0.01}):
        answer = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": PROBLEM}],
            temperature=0,
            max_tokens=64,
            stop="\n",
            extra_body={"vllm_xargs": settings},
        )
        print(f"{settings}: {answer.choices[0].message.content}")

    # The samples of one prompt share its delta; a stream works as ever.
    print("stream:", end=" ")
    for chunk in client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": PROBLEM}],
        temperature=0,
        max_tokens=64,
        stop="\n",
        stream=True,
        extra_body={"vllm_xargs": {"slot_steps": 5, "slot_lr": 0.01}},
    ):
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()

    # What cannot be is refused before a stream begins.
    try:
        client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": PROBLEM}],
            stream=True,
            extra_body={"vllm_xargs": {"slot_steps": -1}},
        )
    except openai.BadRequestError as error:
        print(f"refused: {error.body['message'] if isinstance(error.body, dict) else error}")


if __name__ == "__main__":
    main()
