"""Modules of an environment are compiled, and the same file once for all environments."""

import sys
from importlib.util import cache_from_source
from pathlib import Path

from tests.made_up_index import Index
from tests.wheels import make_wheel
from weighbridge.core.bytecode import compile_modules
from weighbridge.core.environments import ensure


def compiled(lock: Path, module: str, cache: Path) -> Path:
    """The compiled form of a module in a lock's environment."""
    [source] = ensure(lock, cache).path.glob(f"lib/python3.*/site-packages/{module}.py")
    return Path(cache_from_source(str(source)))


def test_what_another_environment_has_compiled_of_the_same_file_is_linked(
    index: Index, tmp_path: Path
) -> None:
    alpha, beta = (make_wheel(index.wheels, name) for name in ("alpha", "beta"))
    newer = make_wheel(index.wheels, "alpha", "2.0")
    locks = {name: tmp_path / f"{name}.lock" for name in ("first", "second", "third")}
    for name, text in (("first", alpha), ("second", alpha + beta), ("third", newer)):
        locks[name].write_text(text)
    cache = tmp_path / "cache"
    first = compiled(locks["first"], "alpha", cache)
    assert compiled(locks["second"], "alpha", cache).samefile(first)
    assert compiled(locks["second"], "beta", cache).exists()
    assert not compiled(locks["third"], "alpha", cache).samefile(first)


def test_a_file_of_another_language_takes_no_module_its_compiled_form(
    index: Index, tmp_path: Path
) -> None:
    broken = make_wheel(index.wheels, "alpha", source="{{ a template }}\n")
    lock = tmp_path / "tool.lock"
    lock.write_text(broken + make_wheel(index.wheels, "beta"))
    assert not compiled(lock, "alpha", tmp_path / "cache").exists()
    assert compiled(lock, "beta", tmp_path / "cache").exists()


def test_tests_of_packages_and_architectures_are_compiled_when_they_are_imported(
    tmp_path: Path,
) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    wanted = ["tests.py", "transformers/trainer.py", "vllm/models/registry.py"]
    left_out = [
        "pandas/tests/test_frame.py",
        "torch/testing/_internal/common.py",
        "transformers/models/llama/modeling_llama.py",
        "vllm/model_executor/models/llama.py",
    ]
    for name in (*wanted, *left_out):
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).touch()
    assert compile_modules(tmp_path, Path(sys.executable), []) == ""
    compiled = [
        name for name in (*wanted, *left_out) if Path(cache_from_source(packages / name)).exists()
    ]
    assert compiled == wanted
