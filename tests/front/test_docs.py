"""The examples of the documentation run as they stand, but for the names of the models."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_python_page(tiny_llama, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("model.gguf", "small.gguf"):
        (tmp_path / name).symlink_to(tiny_llama)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "python.md").read_text(), re.DOTALL)
    assert len(blocks) >= 6
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "python.md", "exec"), names)
    assert names["answer"] is not None
    assert re.fullmatch(r"[1-9](\+[1-9]){1,3}", names["total"])
    assert capsys.readouterr().out
