"""Checks of what an engine answers: right text, right figures, right form."""

from __future__ import annotations

from typing import Final

from weighbridge.conformance.base import CheckFailed, CheckNotRun, Session, equal
from weighbridge.conformance.http_client import HttpReply, ask, stream
from weighbridge.conformance.reference import Question

OPEN: Final = [{"role": "user", "content": "Tell me of a lighthouse, 7 boats and the weather."}]
"""Nothing of it was taught: answers to it can go any way."""
HOT: Final = 2.0
SEEDS: Final = (11, 12, 13, 14)
REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"
TOLERANCE: Final = 0.05
"""Mean difference of log-probabilities, as part of their own mean, that number formats of 16 bits
may make.
"""


def chat(session: Session) -> str:
    """A chat is answered."""
    return _right(
        ask(session, session.reference.question("greeting")), session.reference.question("greeting")
    )


def completion(session: Session) -> str:
    """Plain text is completed."""
    return _right(
        ask(session, session.reference.question("completion")),
        session.reference.question("completion"),
    )


def chat_stream(session: Session) -> str:
    """The same chat, streamed."""
    return _in_pieces(session, session.reference.question("greeting"))


def completion_stream(session: Session) -> str:
    """The same text, streamed."""
    return _in_pieces(session, session.reference.question("completion"))


def usage(session: Session) -> str:
    """Prompt and answer are counted as the tokenizer counts them; the token that ends an answer may
    count.
    """
    for question in session.reference.finite:
        _counted(ask(session, question), question)
    return f"{len(session.reference.finite)} answers counted"


def usage_stream(session: Session) -> str:
    """A stream that is asked for it ends with the same figures."""
    question = session.reference.question("counting")
    _counted(stream(session, question), question)
    return "the stream ends with its figures"


def greedy(session: Session) -> str:
    """Temperature 0 gives the reference's text, of one turn and of several."""
    for question in session.reference.finite:
        equal(ask(session, question).text, question.answer, f"'{question.name}' at temperature 0")
    endless = session.reference.question("endless")
    said = ask(session, endless, max_tokens=64).text
    if not said or not endless.answer.startswith(said):
        raise CheckFailed(
            f"'endless' at temperature 0: {said[:60]!r} is not how the reference begins"
        )
    return f"{len(session.reference.finite) + 1} answers equal those of {session.reference.made_by}"


def stop(session: Session) -> str:
    """An answer ends before a stop sequence, also one that begins within a token or spans several."""
    question = session.reference.question("counting")
    for sequence in (" four", "ree fo", "e s"):
        wanted = question.answer.partition(sequence)[0]
        for reply in (
            ask(session, question, stop=[sequence]),
            *_streamed(session, question, stop=[sequence]),
        ):
            equal((reply.text, reply.finish), (wanted, "stop"), f"with stop sequence {sequence!r}")
    return "three sequences, none of them in the answer"


def max_tokens(session: Session) -> str:
    """An answer is cut where it was told to, and says so."""
    question = session.reference.question("counting")
    for most in (1, 3):
        reply = ask(session, question, max_tokens=most)
        equal(reply.finish, "length", f"reason to end with max_tokens={most}")
        if not question.answer.startswith(reply.text) or len(reply.text) >= len(question.answer):
            raise CheckFailed(f"with max_tokens={most} it says {reply.text[:80]!r}")
    return "cut after 1 and 3 tokens"


def seed(session: Session) -> str:
    """Equal seeds give equal answers, and not all seeds the same."""
    question = Question(name="open", prompt=OPEN, prompt_ids=[], answer="", answer_ids=[])

    def draw(number: int) -> str:
        return ask(session, question, temperature=HOT, seed=number, max_tokens=24).text

    drawn = [draw(number) for number in SEEDS]
    equal(draw(SEEDS[0]), drawn[0], f"the same seed again at temperature {HOT:g}")
    if len(set(drawn)) == 1:
        raise CheckFailed(
            f"{len(SEEDS)} seeds give one and the same answer at temperature {HOT:g}: {drawn[0][:60]!r}"
        )
    return f"{len(set(drawn))} answers to {len(SEEDS)} seeds, equal when asked again"


def tokenization(session: Session) -> str:
    """Texts become the tokens that the tokenizer of the model's makers gives."""
    for known in session.reference.texts:
        equal(
            session.engine.tokenize(session.url, known.text),
            known.ids,
            f"tokens of {known.text[:40]!r}",
        )
    return f"{len(session.reference.texts)} texts as {session.reference.made_by} reads them"


def chat_template(session: Session) -> str:
    """Chats become the tokens that the model's template gives, special tokens included."""
    engine = session.engine
    chats = [
        question for question in session.reference.questions if not isinstance(question.prompt, str)
    ]
    for question in chats:
        messages = question.prompt if not isinstance(question.prompt, str) else []
        found = engine.chat_tokens(session.url, messages)
        equal(found, question.prompt_ids, f"tokens of the chat '{question.name}'")
    return f"{len(chats)} chats as {session.reference.made_by} renders them"


def logprobs(session: Session) -> str:
    """Log-probabilities of given tokens are those of the reference."""
    if not session.reference.scored:
        raise CheckNotRun("the reference holds none")
    worst = 0.0
    for known in session.reference.scored:
        found = session.engine.token_logprobs(session.url, known.prompt_ids, known.ids)
        equal(len(found), len(known.ids), "number of log-probabilities")
        off = sum(abs(a - b) for a, b in zip(found, known.logprobs, strict=True)) / len(found)
        mean = sum(map(abs, known.logprobs)) / len(found)
        worst = max(worst, off / (1 + mean))
    if worst > TOLERANCE:
        raise CheckFailed(
            f"they differ from {session.reference.made_by} by {worst:.3f} of their size"
        )
    return f"within {worst:.1%} of {session.reference.made_by}"


def system(session: Session) -> str:
    """A system prompt reaches the model."""
    with_it, without = session.reference.question("system"), session.reference.question("plainly")
    equal(ask(session, with_it).text, with_it.answer, "with a system prompt")
    equal(ask(session, without).text, without.answer, "without a system prompt")
    return "the same question is answered by the system prompt"


def unicode(session: Session) -> str:
    """A character whose bytes are several tokens comes whole."""
    question = session.reference.question("unicode")
    equal(ask(session, question).text, question.answer, "the whole answer")
    reply = stream(session, question)
    torn = [piece for piece in reply.pieces if REPLACEMENT in piece]
    if torn:
        raise CheckFailed(
            f"{len(torn)} pieces of the stream hold torn characters, such as {torn[0]!r}"
        )
    equal(reply.text, question.answer, "the streamed answer")
    return f"{len(reply.pieces)} pieces of {len(question.answer_ids)} tokens, every character whole"


def _right(reply: HttpReply, question: Question) -> str:
    equal((reply.text, reply.finish), (question.answer, "stop"), f"answer to '{question.name}'")
    return f"{reply.text[:60]!r}"


def _in_pieces(session: Session, question: Question) -> str:
    reply = stream(session, question)
    _right(reply, question)
    if len(reply.pieces) < 2:
        raise CheckFailed("the stream brings the whole answer in one piece")
    return f"{len(reply.pieces)} pieces"


def _streamed(session: Session, question: Question, **options: object) -> list[HttpReply]:
    """The streamed answer, where streams are claimed."""
    return [stream(session, question, **options)] if session.engine.capabilities.streaming else []


def _counted(reply: HttpReply, question: Question) -> None:
    if not {"prompt_tokens", "completion_tokens", "total_tokens"} <= reply.usage.keys():
        raise CheckFailed(f"the usage of '{question.name}' is {reply.usage}")
    prompt, completion = reply.usage["prompt_tokens"], reply.usage["completion_tokens"]
    equal(prompt, len(question.prompt_ids), f"prompt tokens of '{question.name}'")
    if completion - len(question.answer_ids) not in (0, 1):
        raise CheckFailed(
            f"completion tokens of '{question.name}': {completion} instead of {len(question.answer_ids)}"
        )
    equal(reply.usage["total_tokens"], prompt + completion, f"all tokens of '{question.name}'")
