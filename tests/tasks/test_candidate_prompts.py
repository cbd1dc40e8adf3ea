"""Prompts that no prefix cache answers."""

from weighbridge.tasks.candidate_prompts import prompts_of_level, with_own_beginning


def test_every_prompt_begins_with_a_number_of_its_own() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    assert with_own_beginning({"prompt": "Why?"}, 7) == {"prompt": "7 Why?"}
    assert with_own_beginning({"messages": messages}, 8) == {
        "messages": [{"role": "system", "content": "8 Be brief."}, messages[1]]
    }
    assert messages[0]["content"] == "Be brief."


def test_each_level_begins_at_prompts_of_its_own_and_takes_them_again_where_there_are_too_few() -> (
    None
):
    payloads = [{"prompt": name} for name in "abcd"]

    def names(number: int, least: int) -> str:
        return "".join(one["prompt"] for one in prompts_of_level(payloads, number, 2, least))

    assert (names(0, 2), names(1, 2)) == ("abcd", "cdab")
    assert names(1, 6) == "cdabcd"
