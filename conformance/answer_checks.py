"""Checks of what an engine answers: right text, right figures, right form."""

from __future__ import annotations

from typing import Final

from weighbridge.conformance.base import CheckFailed, CheckNotRun, Session, equal
from weighbridge.conformance.http_client import HttpReply, ask, stream
from weighbridge.conformance.reference import Question
from weighbridge.core.formatting import quoted

UNTAUGHT_CHAT: Final = [
    {"role": "user", "content": "Tell me of a lighthouse, 7 boats and the weather."}
]
"""Nothing of it was taught: answers to it can go any way."""
# So high that a model which is sure of every token does not say the same to all seeds.
HIGH_TEMPERATURE: Final = 2.0
SEEDS: Final = (11, 12, 13, 14)
REPLACEMENT_CHARACTER: Final = "\N{REPLACEMENT CHARACTER}"
TOLERANCE: Final = 0.05
"""Mean difference of log-probabilities, as part of their own mean, that number formats of 16 bits
may make.
"""


def chat(session: Session) -> str:
    """Check that a chat is answered."""
    return _expect_answer(
        ask(session, session.reference.question("greeting")), session.reference.question("greeting")
    )


def completion(session: Session) -> str:
    """Check that plain text is completed."""
    return _expect_answer(
        ask(session, session.reference.question("completion")),
        session.reference.question("completion"),
    )


def chat_stream(session: Session) -> str:
    """Check that the same chat is answered in a stream."""
    return _expect_pieces(session, session.reference.question("greeting"))


def completion_stream(session: Session) -> str:
    """Check that the same text is completed in a stream."""
    return _expect_pieces(session, session.reference.question("completion"))


def usage(session: Session) -> str:
    """Check that prompt and answer are counted as the tokenizer counts them.

    The token that ends an answer may count or not.
    """
    for question in session.reference.finite:
        _expect_usage(ask(session, question), question)
    return f"{len(session.reference.finite)} answers counted"


def usage_stream(session: Session) -> str:
    """Check that a stream that is asked for it ends with the same figures."""
    question = session.reference.question("counting")
    _expect_usage(stream(session, question), question)
    return "the stream ends with its figures"


def greedy(session: Session) -> str:
    """Check that temperature 0 gives the reference's text, in chats of one turn and of several."""
    for question in session.reference.finite:
        equal(ask(session, question).text, question.answer, f"'{question.name}' at temperature 0")
    endless = session.reference.question("endless")
    text = ask(session, endless, max_tokens=64).text
    # The reference goes on to the end of the context, where no engine needs to follow it.
    if not text or not endless.answer.startswith(text):
        raise CheckFailed(
            f"'endless' at temperature 0: {quoted(text[:60])} is not how the reference begins"
        )
    return f"{len(session.reference.finite) + 1} answers equal those of {session.reference.made_by}"


def stop(session: Session) -> str:
    """Check that an answer ends before a stop sequence.

    Also before one that begins within a token, and one that spans several.
    """
    question = session.reference.question("counting")
    for sequence in (" four", "ree fo", "e s"):
        expected = question.answer.partition(sequence)[0]
        for reply in (
            ask(session, question, stop=[sequence]),
            *_streamed_if_claimed(session, question, stop=[sequence]),
        ):
            equal(
                (reply.text, reply.finish),
                (expected, "stop"),
                f"with stop sequence {quoted(sequence)}",
            )
    return "three sequences, none of them in the answer"


def max_tokens(session: Session) -> str:
    """Check that an answer is cut where it was told to, and says so."""
    question = session.reference.question("counting")
    for most in (1, 3):
        reply = ask(session, question, max_tokens=most)
        equal(reply.finish, "length", f"reason to end with max_tokens={most}")
        if not question.answer.startswith(reply.text) or len(reply.text) >= len(question.answer):
            raise CheckFailed(f"with max_tokens={most} it says {quoted(reply.text[:80])}")
    return "cut after 1 and 3 tokens"


def seed(session: Session) -> str:
    """Check that equal seeds give equal answers, and not all seeds the same."""
    question = Question(name="open", prompt=UNTAUGHT_CHAT, prompt_ids=[], answer="", answer_ids=[])

    def draw(number: int) -> str:
        return ask(session, question, temperature=HIGH_TEMPERATURE, seed=number, max_tokens=24).text

    answers = [draw(number) for number in SEEDS]
    equal(draw(SEEDS[0]), answers[0], f"the same seed again at temperature {HIGH_TEMPERATURE:g}")
    if len(set(answers)) == 1:
        raise CheckFailed(
            f"{len(SEEDS)} seeds give one and the same answer at temperature "
            f"{HIGH_TEMPERATURE:g}: {quoted(answers[0][:60])}"
        )
    return f"{len(set(answers))} answers to {len(SEEDS)} seeds, equal when asked again"


def tokenization(session: Session) -> str:
    """Check that texts become the tokens that the tokenizer of the model's makers gives."""
    for sample in session.reference.texts:
        equal(
            session.engine.tokenize(session.url, sample.text),
            sample.ids,
            f"tokens of {quoted(sample.text[:40])}",
        )
    return f"{len(session.reference.texts)} texts as {session.reference.made_by} reads them"


def chat_template(session: Session) -> str:
    """Check that chats become the tokens that the model's template gives, special ones included."""
    engine = session.engine
    chats = [
        question for question in session.reference.questions if not isinstance(question.prompt, str)
    ]
    for question in chats:
        messages = question.prompt if not isinstance(question.prompt, str) else []
        tokens = engine.chat_tokens(session.url, messages)
        equal(tokens, question.prompt_ids, f"tokens of the chat '{question.name}'")
    return f"{len(chats)} chats as {session.reference.made_by} renders them"


def logprobs(session: Session) -> str:
    """Check that log-probabilities of given tokens are those of the reference."""
    if not session.reference.scored:
        raise CheckNotRun("the reference holds none")
    worst = 0.0
    for scored in session.reference.scored:
        values = session.engine.token_logprobs(session.url, scored.prompt_ids, scored.ids)
        equal(len(values), len(scored.ids), "number of log-probabilities")
        pairs = zip(values, scored.logprobs, strict=True)
        difference = sum(abs(value - reference) for value, reference in pairs) / len(values)
        mean = sum(map(abs, scored.logprobs)) / len(values)
        # Plus 1: of tokens that are nearly certain the mean is nearly 0.
        worst = max(worst, difference / (1 + mean))
    if worst > TOLERANCE:
        raise CheckFailed(
            f"they differ from {session.reference.made_by} by {worst:.3f} of their size"
        )
    return f"within {worst:.1%} of {session.reference.made_by}"


def system(session: Session) -> str:
    """Check that a system prompt reaches the model."""
    with_it, without = map(session.reference.question, ("system", "plainly"))
    equal(ask(session, with_it).text, with_it.answer, "with a system prompt")
    equal(ask(session, without).text, without.answer, "without a system prompt")
    return "the same question is answered by the system prompt"


def unicode(session: Session) -> str:
    """Check that a character whose bytes are several tokens comes whole."""
    question = session.reference.question("unicode")
    equal(ask(session, question).text, question.answer, "the whole answer")
    reply = stream(session, question)
    torn = [piece for piece in reply.pieces if REPLACEMENT_CHARACTER in piece]
    if torn:
        raise CheckFailed(
            f"{len(torn)} pieces of the stream hold torn characters, such as {quoted(torn[0])}"
        )
    equal(reply.text, question.answer, "the streamed answer")
    return f"{len(reply.pieces)} pieces of {len(question.answer_ids)} tokens, every character whole"


def _expect_answer(reply: HttpReply, question: Question) -> str:
    equal((reply.text, reply.finish), (question.answer, "stop"), f"answer to '{question.name}'")
    return quoted(reply.text[:60])


def _expect_pieces(session: Session, question: Question) -> str:
    reply = stream(session, question)
    _expect_answer(reply, question)
    if len(reply.pieces) < 2:
        raise CheckFailed("the stream brings the whole answer in one piece")
    return f"{len(reply.pieces)} pieces"


def _streamed_if_claimed(
    session: Session, question: Question, **options: object
) -> list[HttpReply]:
    """Return the streamed answer, where the engine claims to stream."""
    return [stream(session, question, **options)] if session.engine.capabilities.streaming else []


def _expect_usage(reply: HttpReply, question: Question) -> None:
    if not {"prompt_tokens", "completion_tokens", "total_tokens"} <= reply.usage.keys():
        raise CheckFailed(f"the usage of '{question.name}' is {reply.usage}")
    prompt, completion = reply.usage["prompt_tokens"], reply.usage["completion_tokens"]
    equal(prompt, len(question.prompt_ids), f"prompt tokens of '{question.name}'")
    if completion - len(question.answer_ids) not in (0, 1):
        raise CheckFailed(
            f"completion tokens of '{question.name}': {completion} instead of "
            f"{len(question.answer_ids)}"
        )
    equal(reply.usage["total_tokens"], prompt + completion, f"all tokens of '{question.name}'")
