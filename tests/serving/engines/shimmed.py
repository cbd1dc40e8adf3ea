"""What every engine on `weighbridge.serving.shim` must do with the tiny model, whichever library
holds it.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import httpx
import pytest

from weighbridge.serving.engine_process import Running
from weighbridge.serving.engines.shim_engine import ShimEngine
from weighbridge.serving.openai_client import Client

TEXTS = [
    "Hello, my kettle is broken.",
    '{"team": "billing", "product": "lamp"}',
    "naïve café 🙂 — 3.14\n\n\tend",
]
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "grüße 🙂"}]

Transformer = tuple[Any, Any]
"""Model and tokenizer as transformers loads them."""


def expected(transformer: Transformer, text: str, count: int) -> str:
    """What transformers' greedy search says after a plain prompt."""
    import torch

    model, tokenizer = transformer
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        whole = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False
        )[0]
    return str(tokenizer.decode(whole[ids.shape[1] :], skip_special_tokens=True))


@pytest.mark.slow
class Shimmed:
    """Inherit, name the engine, and have a fixture `running` that serves the model as `tiny`."""

    engine: ClassVar[ShimEngine]

    def test_it_answers_chats_and_prompts_streamed_and_not(self, running: Running) -> None:
        client = Client(running.url)
        assert client.models() == ["tiny"]
        for prompt in (CHAT, "Hello"):
            answer = client.ask(prompt, max_tokens=9)
            assert "".join(client.stream(prompt, max_tokens=9)) == answer.text
            assert (answer.completion_tokens, answer.finish_reason) == (9, "length")

    def test_usage_counts_the_tokens_of_the_chat_template(
        self, running: Running, transformer: Transformer
    ) -> None:
        ids = transformer[1].apply_chat_template(
            CHAT, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        assert self.engine.chat_tokens(running.url, CHAT) == ids
        assert Client(running.url).ask(CHAT, max_tokens=1).prompt_tokens == len(ids)

    def test_many_at_once_say_what_transformers_says_to_each_alone(
        self, running: Running, transformer: Transformer
    ) -> None:
        prompts = [f"{text} {number}" for number in range(4) for text in TEXTS]
        lengths = [5 + 7 * (place % 4) for place in range(len(prompts))]
        client = Client(running.url)
        with ThreadPoolExecutor(len(prompts)) as pool:
            said = list(pool.map(lambda p, n: client.ask(p, max_tokens=n).text, prompts, lengths))
        assert said == [expected(transformer, p, n) for p, n in zip(prompts, lengths, strict=True)]

    def test_an_answer_ends_before_its_stop_sequence(self, running: Running) -> None:
        client = Client(running.url)
        whole = client.ask("Hello", max_tokens=30).text
        stop = whole[len(whole) // 2 :][:3]
        answer = client.ask("Hello", max_tokens=30, stop=[stop])
        assert (answer.text, answer.finish_reason) == (whole[: whole.index(stop)], "stop")

    def test_seeds_repeat_what_was_drawn(self, running: Running) -> None:
        client = Client(running.url)
        first, again, other = (
            client.ask("Hello", max_tokens=20, temperature=1.5, seed=seed, top_p=0.9).text
            for seed in (1, 1, 2)
        )
        assert first == again
        assert first != other

    @pytest.mark.parametrize("text", [*TEXTS, "<|im_start|>user\nhi<|im_end|>\n"])
    def test_its_tokens_are_the_tokenizers(
        self, text: str, running: Running, transformer: Transformer
    ) -> None:
        assert (
            self.engine.tokenize(running.url, text)
            == transformer[1](text, add_special_tokens=False)["input_ids"]
        )

    @pytest.mark.parametrize("text", TEXTS)
    def test_log_probabilities_are_those_of_transformers(
        self, text: str, running: Running, transformer: Transformer
    ) -> None:
        import torch

        model, tokenizer = transformer
        prompt = tokenizer("<|im_start|>user\nhi<|im_end|>\n", add_special_tokens=False)[
            "input_ids"
        ]
        completion = tokenizer(text + "<|im_end|>", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
        wanted = [
            float(logits[len(prompt) - 1 + place, token]) for place, token in enumerate(completion)
        ]
        assert self.engine.token_logprobs(running.url, prompt, completion) == pytest.approx(
            wanted, abs=1e-3
        )
        assert self.engine.token_logprobs(running.url, prompt[:1], completion[:1]) != []

    def test_clients_that_leave_free_their_places(self, running: Running) -> None:
        for _ in range(6):
            body = {"prompt": "Hello", "max_tokens": 450, "stream": True}
            with httpx.stream("POST", f"{running.url}/v1/completions", json=body) as response:
                next(response.iter_lines())
        answers = [Client(running.url).ask("Hello", max_tokens=3) for _ in range(2)]
        assert answers[0].completion_tokens == 3
        assert answers[0].text == answers[1].text
