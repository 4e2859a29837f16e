"""The architecture's import rules, read from the source."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The doors through which memory_builder reaches cluster and trainer, each by lazy imports inside functions.
DOORS = {
    "memory_builder/commands/evaluating.py": {
        "trainer.react.load",
        "trainer.evaluate.with_memory.baseline_task",
        "trainer.evaluate.tasks.few_shot",
        "trainer.evaluate.numbers.metrics",
        "trainer.evaluate.with_memory.reco_task",
        "trainer.evaluate.report.write",
        "trainer.evaluate.results",
        "trainer.evaluate.config",
        "trainer.evaluate.tasks.shots",
        "trainer.evaluate.tasks.frozen",
    },
    "memory_builder/commands/running.py": {"cluster.runner", "trainer.loop.run_config"},
    "memory_builder/commands/serving.py": {
        "cluster.protocol",
        "cluster.replicas",
        "cluster.session",
        "cluster.service",
    },
    "memory_builder/commands/submitting.py": {"cluster.submit"},
    "memory_builder/commands/training.py": {
        "trainer.react.load",
        "trainer.react.export",
        "trainer.react.job",
        "trainer.react.released_checkpoint",
        "trainer.loop.launch",
        "trainer.loop.config",  # settings alone, so imported at once: it imports nothing itself
        "trainer.react.subset",
    },
    "memory_builder/commands/training_reco.py": {
        "trainer.reco.job",
        "trainer.reco.config",  # as trainer.settings
        "trainer.loop.launch",
        "trainer.loop.config",
        "trainer.reco.training_pairs",
    },
    "memory_builder/memory.py": {"cluster.search"},
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", sources("memory_builder"), ids=lambda p: str(p.relative_to(ROOT)))
def test_memory_builder_imports_no_ray_and_cluster_and_trainer_only_through_its_doors(path):
    doors = DOORS.get(str(path.relative_to(ROOT)), set())
    outside = {name for name in imports(path) if name.split(".")[0] in ("ray", "trainer", "cluster")}
    assert outside - doors == set()


@pytest.mark.parametrize("path", sources("trainer"), ids=lambda p: str(p.relative_to(ROOT)))
def test_trainer_imports_ray_only_in_run(path):
    assert path.name == "run.py" or not any(name.split(".")[0] == "ray" for name in imports(path))


def test_nothing_heavy_is_imported_for_help_and_local_commands_never_import_ray(tmp_path):
    memory = shutil.copytree(ROOT / "tests" / "fixtures" / "memory-v1", tmp_path / "memory")
    code = (
        "import sys\n"
        "from memory_builder.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'ray', 'torch', 'open_clip', 'autofaiss'}\n"
        "print('after help', sorted(heavy & set(sys.modules)))\n"
        "codes = [main([command, sys.argv[1]]) for command in ('info', 'verify', 'compact')]\n"
        "print('after all', codes, sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, memory], capture_output=True, text=True, check=True)
    said = [line for line in done.stdout.splitlines() if line.startswith("after ")]
    assert said == ["after help []", "after all [0, 0, 0] []"]


def test_public_names():
    import memory_builder

    assert sorted(memory_builder.__all__) == memory_builder.__all__
    for name in memory_builder.__all__:
        assert getattr(memory_builder, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = memory_builder.nonsense
