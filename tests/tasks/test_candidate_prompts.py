"""Prompts that no prefix cache answers."""

from weighbridge.tasks.candidate_prompts import with_own_beginning


def test_every_prompt_begins_with_a_number_of_its_own() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    assert with_own_beginning({"prompt": "Why?"}, 7) == {"prompt": "7 Why?"}
    assert with_own_beginning({"messages": messages}, 8) == {
        "messages": [{"role": "system", "content": "8 Be brief."}, messages[1]]
    }
    assert messages[0]["content"] == "Be brief."
