"""What must never be in the code, is not."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Each call in the product's code, with its file and the name that is called."""
    for path in sorted([*(ROOT / "farm").rglob("*.py"), *(ROOT / "workers").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                yield str(path.relative_to(ROOT)), ast.unparse(node.func), node


def test_nothing_is_unpickled() -> None:
    forbidden = {"torch.load", "pickle.load", "pickle.loads", "joblib.load", "numpy.load", "np.load", "eval", "exec"}
    found = list(calls())
    assert len(found) > 1000
    unpickling = [(path, ast.unparse(call)) for path, name, call in found if name in forbidden]
    # But for the converter, whose reader knows tensors, numbers and containers alone.
    assert unpickling == [("workers/convert.py", "torch.load(source, map_location='cpu', weights_only=True)")]
    imports = [
        (path.name, alias.name)
        for path in [*(ROOT / "farm").rglob("*.py"), *(ROOT / "workers").rglob("*.py")]
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    ]
    assert not [found for found in imports if found[1].split(".")[0] in {"pickle", "joblib", "dill", "marshal"}]


def test_no_remote_code_is_trusted() -> None:
    words = [
        (path, ast.unparse(keyword.value))
        for path, _, call in calls()
        for keyword in call.keywords
        if keyword.arg == "trust_remote_code"
    ]
    assert {value for _, value in words} <= {"False"}


def test_pretrained_weights_are_read_as_safetensors_and_from_this_machine() -> None:
    for path, name, call in calls():
        if path.startswith("workers/demo") or not name.endswith(".from_pretrained"):
            continue
        told = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        spread = None in told  # further arguments in a dict, which the same file fills
        assert spread or told.get("local_files_only") == "True", (path, name)
        if not any(word in name for word in ("Processor", "extractor", "tokenizer", "type(")):
            assert spread or told.get("use_safetensors") == "True", (path, name)
