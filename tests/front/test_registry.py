"""Models by name: fetched through pip from a folder of wheels, checked, and never left half written."""

import hashlib
import os
import resource
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

import pykvq
from pykvq import registry

CONTENT = bytes(range(256)) * 8000  # 2 MB


@pytest.fixture
def wheels(tmp_path, monkeypatch) -> Path:
    """A folder that pip takes packages from, and nowhere else."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_model/model.gguf", CONTENT)
        wheel.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        wheel.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PYKVQ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def tiny(wheels, cache, monkeypatch) -> registry.Entry:
    """A list with one model, `tiny`, that can be fetched."""
    entry = registry.Entry(
        name="tiny",
        title="Tiny",
        origin="tests",
        licence="Apache-2.0",
        n_bytes=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        requirement="tiny-model==1.0",
        member="tiny_model/model.gguf",
        n_download_bytes=(wheels / "tiny_model-1.0-py3-none-any.whl").stat().st_size,
    )
    monkeypatch.setattr(registry, "entries", lambda: {"tiny": entry})
    return entry


def change(monkeypatch, entry: registry.Entry, **members) -> None:
    monkeypatch.setattr(registry, "entries", lambda: {"tiny": replace(entry, **members)})


def test_the_list_is_complete():
    entries = registry.entries()
    assert entries["smollm2"].licence == "Apache-2.0"
    for entry in entries.values():
        assert len(entry.sha256) == 64
        assert "==" in entry.requirement
        assert entry.member.endswith(".gguf")
        assert entry.n_bytes > 0
        assert entry.n_download_bytes > 0


def test_cache_folder(monkeypatch):
    monkeypatch.setenv("PYKVQ_CACHE", "/a")
    assert registry.cache_folder() == Path("/a/models")
    monkeypatch.delenv("PYKVQ_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert registry.cache_folder() == Path("/b/pykvq/models")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/c")
    assert registry.cache_folder() == Path("/c/.cache/pykvq/models")


def test_pull(tiny, cache):
    seen = []
    path = registry.pull("tiny", lambda done, total: seen.append((done, total)))
    assert Path(path).read_bytes() == CONTENT
    assert os.listdir(cache) == ["tiny.gguf"]
    assert seen[-1] == (tiny.n_download_bytes, tiny.n_download_bytes)
    assert seen == sorted(seen)


def test_second_pull_fetches_nothing(tiny, wheels):
    path = registry.pull("tiny")
    (wheels / "tiny_model-1.0-py3-none-any.whl").unlink()
    assert registry.pull("tiny") == registry.locate("tiny") == path


def test_pull_repairs_what_has_changed(tiny):
    path = Path(registry.pull("tiny"))
    path.write_bytes(bytes(len(CONTENT)))  # same size
    registry.pull("tiny")
    assert path.read_bytes() == CONTENT


def test_first_use_pulls(tiny, cache):
    with pytest.raises(pykvq.FormatError):  # it is no GGUF file, but it was fetched
        pykvq.Model.open("tiny")
    assert os.listdir(cache) == ["tiny.gguf"]


def test_name_wins_over_a_file(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert registry.locate("tiny") == str(tiny.path)
    assert registry.locate("./tiny") == "./tiny"


def test_leftovers_of_a_killed_pull_are_removed(tiny, cache):
    (cache / "tiny.part").mkdir(parents=True)
    (cache / "tiny.part" / "model.gguf").write_bytes(b"half")
    registry.pull("tiny")
    assert os.listdir(cache) == ["tiny.gguf"]


def test_many_at_once(tiny, cache, monkeypatch):
    fetches = []
    fetch = registry._fetch
    monkeypatch.setattr(registry, "_fetch", lambda *args: (fetches.append(1), fetch(*args)))
    threads = [threading.Thread(target=registry.pull, args=("tiny",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetches) == 1
    assert tiny.path.read_bytes() == CONTENT


def test_wrong_hash_is_refused_and_both_are_named(tiny, cache, monkeypatch):
    change(monkeypatch, tiny, sha256="0" * 64)
    with pytest.raises(pykvq.FormatError, match=f"sha256 of the download is {tiny.sha256}, expected {'0' * 64}"):
        registry.pull("tiny")
    assert os.listdir(cache) == []


def test_package_without_the_file(tiny, cache, monkeypatch):
    change(monkeypatch, tiny, member="tiny_model/other.gguf")
    with pytest.raises(pykvq.FormatError, match="tiny: the downloaded package is damaged.*other.gguf"):
        registry.pull("tiny")
    assert os.listdir(cache) == []


def test_damaged_package(tiny, cache, wheels):
    wheel = wheels / "tiny_model-1.0-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes()[:1_000_000])
    with pytest.raises((pykvq.FormatError, pykvq.FileError), match="tiny: "):
        registry.pull("tiny")
    assert os.listdir(cache) == []


def test_package_that_cannot_be_found(tiny, cache, monkeypatch):
    change(monkeypatch, tiny, requirement="tiny-model==2.0")
    with pytest.raises(pykvq.FileError, match=r"is the network reachable\? pip says: .*tiny-model==2.0"):
        registry.pull("tiny")
    assert os.listdir(cache) == []


def test_no_pip(tiny, monkeypatch):
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(pykvq.FileError, match="python -m ensurepip"):
        registry.pull("tiny")


def test_disk_too_full_to_begin(tiny, cache, monkeypatch):
    usage = registry.shutil.disk_usage("/")
    monkeypatch.setattr(registry.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(pykvq.FileError, match=r"has 1,000 bytes free, 4,.* are needed"):
        registry.pull("tiny")
    assert os.listdir(cache) == []


def test_disk_full_on_the_way(tiny, cache, monkeypatch):
    """A limit on the size of files stands in for a full disk: writes fail in the middle."""
    download = registry._download

    def then_fill_the_disk(*args):
        wheel = download(*args)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
        return wheel

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(registry, "_download", then_fill_the_disk)
    try:
        with pytest.raises(pykvq.FileError, match="tiny: "):
            registry.pull("tiny")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(cache) == []


def test_cache_folder_that_cannot_be_made(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PYKVQ_CACHE", str(tmp_path / "file"))
    with pytest.raises(pykvq.FileError, match="tiny: .*Not a directory"):
        registry.pull("tiny")


def test_interrupted_pull_leaves_nothing(tiny, cache):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        registry.pull("tiny", interrupt)
    assert os.listdir(cache) == []


@pytest.mark.parametrize("name", ["tinny", "nothing"])
def test_misspelled_name(tiny, name):
    hint = "did you mean tiny" if name == "tinny" else "known are: tiny"
    with pytest.raises(pykvq.FileError, match=f"{name}: no such file, no model of that name in the list; {hint}"):
        registry.locate(name)
    with pytest.raises(pykvq.ArgumentError, match=hint):
        registry.pull(name)


def test_paths_are_paths(tiny):
    for path in ("missing.gguf", "./tinny", "/a/tinny"):
        assert registry.locate(path) == path


# ---- the hub


class Hub:
    """Stands in for huggingface_hub."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.asked = error, []

    def hf_hub_download(self, repo: str, file: str) -> str:
        self.asked.append((repo, file))
        if self.error:
            raise self.error
        return f"/hub/{file}"


def use_hub(monkeypatch, hub: Hub) -> Hub:
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: object())
    return hub


def test_hub_file(monkeypatch):
    hub = use_hub(monkeypatch, Hub())
    assert registry.locate("hf:owner/repo/sub/model.gguf") == "/hub/sub/model.gguf"
    assert hub.asked == [("owner/repo", "sub/model.gguf")]


def test_hub_fetches_all_shards(monkeypatch):
    hub = use_hub(monkeypatch, Hub())
    assert registry.locate("hf:o/r/m-00001-of-00003.gguf") == "/hub/m-00001-of-00003.gguf"
    assert [file for _, file in hub.asked] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]


def test_hub_failure_is_a_sentence(monkeypatch):
    use_hub(monkeypatch, Hub(RuntimeError("404 not found\nlong story")))
    with pytest.raises(pykvq.FileError, match="hf:o/r/m.gguf: the download failed: 404 not found$"):
        registry.locate("hf:o/r/m.gguf")


def test_hub_missing(monkeypatch):
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(pykvq.UnsupportedError, match=r"pip install 'pykvq\[hub\]'"):
        registry.locate("hf:o/r/m.gguf")


@pytest.mark.parametrize("name", ["hf:", "hf:owner", "hf:owner/repo", "hf://m.gguf", "hf:owner/repo/"])
def test_hub_names(name):
    with pytest.raises(pykvq.ArgumentError, match="expected hf:owner/repo/file.gguf"):
        registry.locate(name)


def test_interrupt_of_the_command_ends_pip(tiny, cache, tmp_path, monkeypatch):
    """Ctrl-C while pip hangs: pip is ended too, and nothing stays behind."""
    pip = tmp_path / "pip"
    pip.mkdir()
    (pip / "__init__.py").touch()
    (pip / "__main__.py").write_text(
        "import os, time; open(os.environ['PID_FILE'], 'w').write(str(os.getpid())); time.sleep(60)"
    )
    monkeypatch.setenv("PID_FILE", str(tmp_path / "pid"))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")

    def interrupt(done, total):
        if (tmp_path / "pid").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        registry.pull("tiny", interrupt)
    pid = (tmp_path / "pid").read_text()
    assert subprocess.run(["kill", "-0", pid], capture_output=True, check=False).returncode != 0
    assert os.listdir(cache) == []
