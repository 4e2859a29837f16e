"""The rooms, the order in which they may import each other, and what must not be imported at all."""

import ast
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from helpers.bundled import MODEL, ROOT

# A room may import those on the lines above its own, and on its own line only itself.
LAYERS = [
    {"memory_builder.errors"},
    {"memory_builder.base"},
    {"memory_builder.storage", "memory_builder.model"},
    {"memory_builder.readers"},
    {"memory_builder.catalog"},
    {"memory_builder.ann", "memory_builder.embedding"},
    {"memory_builder.search"},
    {"memory_builder.memory", "memory_builder.remote"},
    {"memory_builder.indexing", "memory_builder.export", "memory_builder.retrieval", "trainer.loop"},
    {"memory_builder.maintenance", "trainer.react", "trainer.reco"},
    {"trainer.evaluate", "cluster"},
    {"memory_builder.demo", "memory_builder.commands"},
    {"memory_builder.cli", "memory_builder.customise", "memory_builder.serving", "memory_builder.ray_runner"},
]
LAYER = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("memory_builder", "trainer", "cluster")
    for path in sorted((ROOT / package).rglob("*.py"))
}


def room_of(module: str) -> str:
    return "cluster" if module.startswith("cluster") else ".".join(module.split(".")[:2])


def eager_imports(nodes: list[ast.stmt]) -> set[str]:
    """Modules imported as the file is, not inside its functions nor for types alone."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (inner & MODULES.keys()) or {node.module}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif (isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.dump(node.test)) or isinstance(
            node, ast.ClassDef | ast.Try | ast.With
        ):
            names |= eager_imports(node.body)
    return names


IMPORTS = {module: eager_imports(ast.parse(path.read_text()).body) for module, path in MODULES.items()}


@pytest.mark.parametrize("module", MODULES)
def test_rooms_import_one_way(module: str) -> None:
    if module in ("memory_builder", "trainer"):
        return
    own = room_of(module)
    others = {room_of(name) for name in IMPORTS[module] & MODULES.keys()} - {own, "memory_builder", "trainer"}
    assert {room for room in others if LAYER[room] >= LAYER[own]} == set()


def test_no_chain_of_imports_is_longer_than_fourteen_files() -> None:
    length: dict[str, int] = {}

    def measure(module: str) -> int:
        if module not in length:
            length[module] = 1 + max((measure(name) for name in IMPORTS[module] & MODULES.keys() - {module}), default=0)
        return length[module]

    assert max(map(measure, MODULES)) <= 14


def test_ray_is_imported_in_cluster_and_the_launcher_of_training_alone() -> None:
    importing = {
        module
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ray")
        or (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "ray" for alias in node.names))
    }
    assert {room_of(module) for module in importing} <= {"cluster", "trainer.loop"}
    assert {module for module in importing if module.startswith("trainer")} == {"trainer.loop.launch"}


def test_nothing_heavy_is_imported_for_help_and_local_commands_never_import_ray(tmp_path) -> None:
    memory = shutil.copytree(ROOT / "tests" / "fixtures" / "memory-v1", tmp_path / "memory")
    code = (
        "import sys\n"
        "from memory_builder.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'ray', 'torch', 'torchvision', 'open_clip', 'autofaiss'}\n"
        "print('after help', sorted(heavy & set(sys.modules)))\n"
        "codes = [main([command, sys.argv[1]]) for command in ('info', 'verify', 'compact')]\n"
        "print('after all', codes, sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, memory], capture_output=True, text=True, check=True)
    said = [line for line in done.stdout.splitlines() if line.startswith("after ")]
    assert said == ["after help []", "after all [0, 0, 0] []"]


def test_encoding_imports_neither_torchs_compiler_nor_timm_until_a_timm_tower_is_made() -> None:
    code = (
        "import sys\n"
        "from memory_builder.model.encoder import Encoder, EncoderConfig\n"
        "from memory_builder.model.open_clip_import import import_open_clip\n"
        "encoder = Encoder(EncoderConfig(model=sys.argv[1]))\n"
        "assert encoder.encode_texts(['a cat']).shape == (1, encoder.d)\n"
        "print('before', sorted({'torch._dynamo', 'timm'} & set(sys.modules)))\n"
        "tower = import_open_clip().create_model('vit_medium_patch16_gap_256').visual\n"
        "print('after', type(tower).__name__, 'timm' in sys.modules)\n"
        "import torch, torchvision\n"
        "box = torch.tensor([[0, 1.0, 1.0, 5.0, 5.0]])\n"
        "print('roi', list(torchvision.ops.roi_align(torch.rand(1, 1, 8, 8), box, (2, 2)).shape))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, MODEL], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["before []", "after TimmModel True", "roi [1, 1, 2, 2]"]


def test_a_search_by_vector_imports_neither_torch_nor_pandas(tmp_path) -> None:
    memory = shutil.copytree(ROOT / "tests" / "fixtures" / "memory-v1", tmp_path / "memory")
    np.save(tmp_path / "query.npy", np.ones((1, 192), np.float32))
    code = (
        "import sys\n"
        "from memory_builder.cli import main\n"
        "assert main(['search', sys.argv[1], '--vector', sys.argv[2], '-k', '3', '--json']) == 0\n"
        "print('imported', sorted({'torch', 'pandas', 'open_clip', 'ray', 'PIL.Image'} & set(sys.modules)))\n"
    )
    arguments = [sys.executable, "-c", code, memory, tmp_path / "query.npy"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "imported ['PIL.Image']"


def test_public_names() -> None:
    import memory_builder

    assert sorted(memory_builder.__all__) == memory_builder.__all__
    for name in memory_builder.__all__:
        assert getattr(memory_builder, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = memory_builder.nonsense


def test_the_files_that_the_architecture_page_names_are_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    files = {path.relative_to(ROOT).as_posix() for path in MODULES.values()}
    folders = {name.rsplit("/", 1)[0] + "/" for name in files}
    for named in re.findall(r"`([\w/]+(?:\.py|/))`", page.split("## Words")[0]):
        known = files if named.endswith(".py") else folders
        others = (
            "tests/test_imports.py",
            "rejects/",
            "img_emb/",
            "text_emb/",
            "metadata/",
            "rows/",
            "commits/",
            "checkpoints/",
        )
        assert any(f"/{name}".endswith(f"/{named}") for name in known) or named in others, named
