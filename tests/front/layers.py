"""What may include and import what, and the checks of it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

# A folder of native/src (or api.c) -> the folders it may include from, besides its own
NATIVE = {
    "base": set(),
    "quant": {"base"},
    "gguf": {"base", "quant"},
    "kv": {"base"},
    "backend": {"base", "quant", "kv"},
    "cpu": {"base", "quant", "kv", "backend"},
    "model": {"base", "quant", "kv", "gguf", "backend"},
    "engine": {"base", "quant", "kv", "gguf", "backend", "model"},
    "api.c": {"base", "quant", "kv", "gguf", "backend", "cpu", "model", "engine"},
}
# Modules of pykvq from the bottom to the top; a module may import from the lines below its own, and from its own line
PYTHON = [
    {"errors", "_native"},
    {"_ffi"},
    {"gguf", "kv", "device", "results", "sampling", "registry", "weights"},
    {"gguf_writer", "tokenizer", "fallback_templates"},
    {"chat_template"},
    {"model"},
    {"engine", "grammar"},
    {"speculative"},
    {"generate", "imatrix", "quantize", "convert", "evaluation", "bench", "capacity", "plots"},
    {"chat"},
    {"__init__"},
    {"cli"},
    {"__main__"},
]
APART = {"ref"}  # the float64 oracle: imports nothing of pykvq, and nothing imports it
FOREIGN = {"torch", "transformers"}  # for tests and tools
WEIGHT_TYPES = {"q8_0", "q4_0", "nvfp4"}  # KV types that share their name with a type of weights,
OF_WEIGHTS = {"convert", "quantize"}  # which these modules mean


def native_faults(root: Path) -> Iterator[str]:
    """Includes of native/src that point upward."""
    source = root / "native" / "src"
    for path in sorted(source.rglob("*.[ch]")):
        layer = path.relative_to(source).parts[0]
        for target in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.MULTILINE):
            below = target.split("/")[0]
            if target != "pykvq.h" and below != layer and below not in NATIVE[layer]:
                yield f"{path.relative_to(root)}: includes {target}"


def python_faults(root: Path) -> Iterator[str]:
    """Imports of pykvq/ that point upward, or bring in what only tests and tools may use."""
    rank = {module: i for i, line in enumerate(PYTHON) for module in line}
    for path in sorted((root / "pykvq").rglob("*.py")):
        module = path.relative_to(root / "pykvq").parts[0].removesuffix(".py")
        if module not in rank and module not in APART:
            yield f"{path.relative_to(root)}: has no line in {Path(__file__).name}"
            continue
        for target in _imports(path, root):
            name = f"{path.relative_to(root)}: imports {target}"
            first, _, rest = target.partition(".")
            if first in FOREIGN:
                yield name
            if first != "pykvq":
                continue
            below = rest.split(".")[0] or "__init__"
            if below == "_native" and module != "_ffi":
                yield name
            elif module in APART or below in APART:
                if module != below:
                    yield name
            elif rank.get(below, 0) > rank[module]:
                yield name


def _imports(path: Path, root: Path) -> Iterator[str]:
    """Dotted names of all modules that a file imports to run, those for type checkers aside."""
    tree = ast.parse(path.read_text())
    checking = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for statement in block.body
        for node in ast.walk(statement)
    }
    package = [*path.relative_to(root).parent.parts]
    for node in ast.walk(tree):
        if id(node) in checking:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            full = ".".join([*base, *([node.module] if node.module else [])])
            is_package = not node.module and node.level
            names = [a.name for a in node.names] if is_package else [""]
            for name in names:
                is_module = (root / Path(*full.split("."), f"{name}.py")).exists() or (
                    root / Path(*full.split("."), name)
                ).is_dir()
                yield f"{full}.{name}" if name and is_module else full


def kv_type_names(root: Path) -> list[str]:
    """The names in the table of KV types, but f16, which is also the storage form of sinks and tails."""
    table = (root / "native/src/kv/table.c").read_text()
    return [name for name in re.findall(r'\{"(\w[\w.]*)",', table) if name != "f16"]


def codec_name_faults(root: Path, names: list[str]) -> Iterator[str]:
    """String literals that are a KV type's name, outside native/src/kv, the oracle, and kernel files of its family."""
    for path in sorted((root / "native/src").rglob("*.[ch]")):
        if path.relative_to(root / "native/src").parts[0] == "kv":
            continue
        code = re.sub(r"/\*.*?\*/|//[^\n]*", "", path.read_text(), flags=re.DOTALL)
        for name in names:
            family = re.match(r"[a-z]+", name)[0]
            if f'"{name}"' in code and family not in path.stem:
                yield f"{path.relative_to(root)}: names {name}"
    for path in sorted((root / "pykvq").rglob("*.py")):
        module = path.relative_to(root / "pykvq").parts[0].removesuffix(".py")
        if module in APART or module == "kv":  # whose Literal a test holds to the table
            continue
        literals = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        if module in OF_WEIGHTS:
            literals -= WEIGHT_TYPES
        yield from (f"{path.relative_to(root)}: names {name}" for name in names if name in literals)
