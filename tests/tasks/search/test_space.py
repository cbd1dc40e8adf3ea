"""The space of a search: what is in it, what is refused, and in which words."""

import pytest

from weighbridge.core.errors import BadInput
from weighbridge.tasks.search.space import Branch, space_of, without

BRANCH = Branch("llama_cpp/Q8_0", {"flash_attn": ["on", "off"], "cache_type_v": ["f16", "q8_0"]})
OTHER = Branch("vllm/whole", {"max_num_seqs": [8, 16]})


def test_it_holds_every_combination_with_the_defaults_of_each_candidate() -> None:
    space = space_of([BRANCH, OTHER])
    assert len(space.settings) == 6
    assert [space.settings[number]["candidate"] for number in space.defaults] == [
        "llama_cpp/Q8_0",
        "vllm/whole",
    ]
    assert space.codes()[-1] == [1, -1, -1, 1]
    assert space.overrides(3) == 2


def test_values_that_are_not_to_meet_are_left_out() -> None:
    space = space_of([BRANCH], [{"flash_attn": "off", "cache_type_v": ["q8_0", "q4_0"]}])
    assert len(space.settings) == 3
    assert not any(
        setting["flash_attn"] == "off" and setting["cache_type_v"] == "q8_0"
        for setting in space.settings
    )


def test_the_defaults_stay_whatever_is_left_out() -> None:
    assert len(space_of([BRANCH], [{"flash_attn": ["on", "off"]}]).settings) == 1


def test_a_space_without_a_setting_that_can_work_is_refused() -> None:
    space = space_of([OTHER])
    with pytest.raises(BadInput, match="none of its 2 settings can work: too large") as caught:
        without(space, {0: "too large", 1: "too large"})
    assert "\n" not in str(caught.value)


def test_the_defaults_are_found_again_where_others_before_them_are_refused() -> None:
    space = without(space_of([BRANCH, OTHER]), {0: "too large", 2: "too large"})
    assert [space.settings[number] for number in space.defaults] == [
        {"candidate": "vllm/whole", "max_num_seqs": 8}
    ]


def test_a_space_of_more_settings_than_can_be_thought_about_is_refused() -> None:
    huge = Branch("a", {str(number): list(range(10)) for number in range(6)})
    with pytest.raises(BadInput, match="1,000,000 settings, and 20,000 are the most"):
        space_of([huge])
