"""The demo's world, data, tokenizer and the way its folder is made; no model is really trained
here.
"""

from __future__ import annotations

import json
import logging
import shutil
import stat
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from examples import support_tickets
from examples.support_tickets import corpus, dataset, manifest, world

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def drawn() -> dataset.Splits:
    return dataset.splits(seed=7)


@pytest.fixture(scope="module")
def documents(drawn: dataset.Splits) -> list[str]:
    return list(islice(corpus.documents(7, drawn.evaluation_texts), 3000))


# The world


def test_a_fifth_of_the_combinations_is_held_out_and_training_knows_every_issue_and_product() -> (
    None
):
    assert len(world.TRAINING) + len(world.HELD_OUT) == 5 * 6 * 24
    assert len(world.HELD_OUT) == 144
    assert not set(world.TRAINING) & set(world.HELD_OUT)
    assert {(team, issue) for team, issue, _ in world.TRAINING} == {
        (t, i) for t in world.TEAMS for i in range(6)
    }
    assert {product for _, _, product in world.TRAINING} == set(world.PRODUCTS)


def test_no_sentence_belongs_to_two_teams_or_two_priorities() -> None:
    for sentences in (world.ISSUES, world.CUES):
        every = [sentence for group in sentences.values() for sentence in group]
        assert len(set(every)) == len(every)


def test_a_ticket_says_what_is_true_of_it(drawn: dataset.Splits) -> None:
    for item in drawn.test:
        assert world.ISSUES[item.team][item.issue].format(product=item.product) in item.text
        assert any(cue in item.text for cue in world.CUES[item.priority])
        assert str(item.order) in item.text
        assert item.text.endswith(item.name)


# The splits


def test_the_seed_alone_decides_the_splits(drawn: dataset.Splits) -> None:
    assert dataset.splits(seed=7) == drawn
    assert dataset.splits(seed=8) != drawn


def test_splits_share_no_ticket_and_training_has_no_held_out_combination(
    drawn: dataset.Splits,
) -> None:
    texts = [{item.text for item in split} for split in (drawn.train, drawn.validation, drawn.test)]
    assert [len(each) for each in texts] == [4000, 150, 150]
    assert len(set().union(*texts)) == 4300
    assert {item.combination for item in drawn.train} == set(world.TRAINING)


def test_each_held_out_combination_is_asked_once_in_validation_or_test(
    drawn: dataset.Splits,
) -> None:
    held_out = set(world.HELD_OUT)
    validation = [item.combination for item in drawn.validation if item.combination in held_out]
    test = [item.combination for item in drawn.test if item.combination in held_out]
    assert len(validation) == len(test) == 72
    assert set(validation) | set(test) == held_out


def test_files_hold_one_exchange_per_line_answered_in_json(
    tmp_path: Path, drawn: dataset.Splits
) -> None:
    dataset.write(tmp_path / "data", drawn)
    for name, split in (
        ("train", drawn.train),
        ("validation", drawn.validation),
        ("test", drawn.test),
    ):
        lines = (tmp_path / "data" / f"{name}.jsonl").read_text().splitlines()
        for line, item in zip(lines, split, strict=True):
            (user, assistant) = json.loads(line)["messages"]
            assert user == {"role": "user", "content": item.text}
            assert assistant["role"] == "assistant"
            wanted = {"team": item.team, "product": item.product, "priority": item.priority}
            assert json.loads(assistant["content"]) == wanted


# The pre-training corpus


def test_the_corpus_shows_no_held_out_combination_and_no_evaluation_ticket(
    documents: list[str], drawn: dataset.Splits
) -> None:
    everything = "\n".join(documents)
    for team, issue, product in world.HELD_OUT:
        assert world.ISSUES[team][issue].format(product=product) not in everything
    for text in drawn.evaluation_texts:
        assert text not in everything


def test_the_corpus_leaves_out_the_tickets_it_is_told_to() -> None:
    def chats(exclude: frozenset[str]) -> list[str]:
        return [
            text
            for text in islice(corpus.documents(1, exclude), 50)
            if text.startswith(corpus.USER)
        ]

    first = chats(frozenset())[0]
    ticket = first.removeprefix(corpus.USER).split(corpus.END_OF_TURN)[0]
    assert all(ticket not in text for text in chats(frozenset({ticket})))


def test_the_corpus_never_answers_a_chat_in_json(documents: list[str]) -> None:
    chats = [text for text in documents if text.startswith(corpus.USER)]
    assert len(chats) > 1000
    assert not any("{" in text for text in chats)
    assert any(text.startswith("{") for text in documents)


def test_the_seed_alone_decides_the_corpus(documents: list[str], drawn: dataset.Splits) -> None:
    assert list(islice(corpus.documents(7, drawn.evaluation_texts), 3000)) == documents
    assert list(islice(corpus.documents(8, drawn.evaluation_texts), 3000)) != documents


# The tokenizer


def test_the_tokenizer_gives_back_what_it_was_given_and_numbers_are_one_token(
    documents: list[str],
) -> None:
    from examples.support_tickets import tokenizer

    trained = tokenizer.train(documents[:600], context=256)
    assert len(trained) <= tokenizer.VOCABULARY
    for text in (*documents[600:700], "Ünïcode 日本 🎉\n\n  tabs\t, and it's 4096!"):
        assert trained.decode(trained.encode(text)) == text
    assert all(len(trained.encode(str(order))) == 1 for order in world.ORDERS)
    assert trained.convert_tokens_to_ids(list(tokenizer.SPECIAL)) == [0, 1, 2, 3]


def test_pre_training_chats_look_as_the_chat_template_renders_them(documents: list[str]) -> None:
    from examples.support_tickets import tokenizer

    trained = tokenizer.train(documents[:100], context=256)
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    rendered = trained.apply_chat_template(messages, tokenize=False)
    assert rendered == corpus.chat("Hello", "Hi")
    prompt = trained.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert rendered.startswith(prompt)


# The build


def test_two_steps_make_a_folder_that_loads(tmp_path: Path, drawn: dataset.Splits) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from examples.support_tickets.build import build
    from examples.support_tickets.pretrain import Plan

    out = tmp_path / "out"
    build(
        out,
        7,
        Plan(
            hidden=64,
            intermediate=64,
            layers=1,
            heads=2,
            steps=2,
            batch=2,
            probe_floor=0.0,
            threads=1,
        ),
    )

    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    manifest.verify(out)
    model = AutoModelForCausalLM.from_pretrained(out / "base")
    tokenizer = AutoTokenizer.from_pretrained(out / "base")
    assert model.config.vocab_size == len(tokenizer)
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id == 2
    assert (
        json.loads((out / "base" / "tokenizer_config.json").read_text())["add_bos_token"] is False
    )
    text = drawn.test[0].text
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_model_that_fails_the_probe_leaves_nothing_behind(tmp_path: Path) -> None:
    from examples.support_tickets.build import build
    from examples.support_tickets.pretrain import Plan, ProbeNotReached

    plan = Plan(hidden=64, intermediate=64, layers=1, heads=2, steps=1, batch=2, threads=1)
    with pytest.raises(
        ProbeNotReached, match=r"^pre-training with seed 7: the reading probe .* another seed$"
    ):
        build(tmp_path / "out", 7, plan)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_refused_with_one_line(tmp_path: Path) -> None:
    done = _command(str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: making {tmp_path}: it exists already")


def test_the_command_says_where_the_shared_folder_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WEIGHBRIDGE_CACHE", str(tmp_path))
    done = _command("--where", "--seed", "3")
    assert done.stdout == f"{support_tickets.folder_in(tmp_path, seed=3)}\n"
    assert list(tmp_path.iterdir()) == []


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "examples.support_tickets", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


# ensure


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Stand-in for the real work: writes one file, and lists the folders it was asked for."""
    folders: list[Path] = []

    def make(folder: Path, seed: int) -> None:
        folders.append(folder)
        (folder / "base").mkdir(parents=True)
        (folder / "base" / "weights").write_bytes(b"good")
        manifest.write(folder, {"seed": seed})

    monkeypatch.setattr(support_tickets, "_make", make)
    return folders


def test_ensure_makes_the_folder_once_per_seed(tmp_path: Path, made: list[Path]) -> None:
    folder = support_tickets.ensure(tmp_path)
    assert support_tickets.ensure(tmp_path) == folder == support_tickets.folder_in(tmp_path)
    assert made == [folder]
    assert support_tickets.ensure(tmp_path, seed=1) != folder


def _change(folder: Path) -> None:
    (folder / "base" / "weights").write_bytes(b"evil")


def _remove(folder: Path) -> None:
    (folder / "base" / "weights").unlink()


def _add(folder: Path) -> None:
    (folder / "base" / "adapter_config.json").write_text("{}")


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _cut_manifest(folder: Path) -> None:
    path = folder / manifest.NAME
    path.write_bytes(path.read_bytes()[:20])


@pytest.mark.parametrize("damage", [_change, _remove, _add, _empty, _cut_manifest])
def test_ensure_refuses_a_damaged_folder_and_makes_it_again(
    tmp_path: Path, made: list[Path], caplog: pytest.LogCaptureFixture, damage: object
) -> None:
    folder = support_tickets.ensure(tmp_path)
    assert callable(damage)
    damage(folder)
    with pytest.raises(manifest.Damaged):
        manifest.verify(folder)

    with caplog.at_level(logging.WARNING, logger=support_tickets.logger.name):
        assert support_tickets.ensure(tmp_path) == folder
    assert "making it again" in caplog.text
    assert len(made) == 2
    manifest.verify(folder)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [folder.name]


def test_a_failed_build_is_told_in_its_own_words_and_its_progress_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    program = tmp_path / "python"
    program.write_text(
        "#!/bin/sh\necho 'step 1/2' >&2\necho 'error: making it: no luck' >&2\nexit 3\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(program))

    with (
        caplog.at_level(logging.INFO, logger=support_tickets.logger.name),
        pytest.raises(support_tickets.BuildFailed, match=r"^making it: no luck$"),
    ):
        support_tickets.ensure(tmp_path / "cache")
    assert caplog.messages == ["step 1/2"]


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = (
        "import sys, examples.support_tickets\n"
        "print({'torch', 'transformers', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
