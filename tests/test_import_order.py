"""The sources are read, not run: every import of this package, inside functions too, goes to the left."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "anysam"

# As in docs/design.md. Units of one rank do not import each other.
RANKS = [
    ["errors"],
    ["unpickling"],
    ["atomic"],
    ["weights_files"],
    ["rle"],
    ["tracing"],
    ["masks"],
    ["prompts"],
    ["images"],
    ["rasters"],
    ["results", "catalogue"],
    ["derived_prompts"],
    ["preprocess", "letterbox", "metrics", "datasets"],
    ["models"],
    ["home"],
    ["licences"],
    ["fetch", "identification"],
    ["listing"],
    ["checkpoints"],
    ["devices"],
    ["memory"],
    ["encoded_image"],
    ["store"],
    ["automatic"],
    ["describe"],
    ["prompting"],
    ["predictor"],
    ["embeddings", "describers"],
    ["outputs"],
    ["compat"],
    ["train", "evaluate", "export", "serve"],
    ["commands"],
    ["cli"],
]
RANK = {unit: rank for rank, units in enumerate(RANKS) for unit in units}
FILES = sorted(SOURCE.rglob("*.py"))
ENTRANCES = ("__init__.py", "__main__.py")  # of the package itself: lazy, and last

# torch is a second of waiting and half a gigabyte: what does not compute with it does not import it.
WITH_TORCH = {
    *("unpickling", "weights_files", "preprocess", "letterbox", "models", "identification", "checkpoints"),
    *("devices", "memory", "encoded_image", "store", "automatic", "describe", "prompting", "predictor", "describers"),
    *("embeddings", "compat", "train", "evaluate", "export", "serve"),
}


def unit_of(module):
    """anysam.models.sam -> models; None for another package, or for anysam itself."""
    parts = module.split(".")
    return parts[1] if parts[0] == "anysam" and len(parts) > 1 else None


def imported_modules(tree):
    """The dotted names of all imports below `tree`; `from a import b` counts as a.b where that is a module of ours."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                yield f"{node.module}.{alias.name}" if node.module == "anysam" else node.module


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def sources():
    return [path for path in FILES if path.parent != SOURCE or path.name not in ENTRANCES]


def test_every_unit_has_its_place_in_the_order():
    units = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in sources()}
    assert units == set(RANK)


def test_the_order_is_the_documented_one():
    design = " ".join((Path(__file__).parents[1] / "docs" / "design.md").read_text(encoding="utf-8").split())
    assert " < ".join(", ".join(units) for units in RANKS) in design


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_to_the_left(path):
    unit = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    for module in imported_modules(parsed(path)):
        target = unit_of(module)
        if target is None or target == unit or target.startswith("__"):
            continue
        assert RANK[target] < RANK[unit], f"{path.name} imports {module}"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_torch_stays_where_it_is_needed(path):
    unit = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    uses = any(module.split(".")[0] in ("torch", "safetensors") for module in imported_modules(parsed(path)))
    assert unit in WITH_TORCH or not uses


def test_the_scan_sees_imports_inside_functions():
    tree = ast.parse("def f():\n    from anysam.cli import main\n    import torch.nn\n    from anysam import predictor")
    assert list(imported_modules(tree)) == ["anysam.cli", "torch.nn", "anysam.predictor"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["models"],
        ["models", "--json"],
        ["segment", "--help"],
        ["fetch", "--help"],
        ["convert", "--help"],
        ["everything", "--help"],
        ["describe", "--help"],
        ["convert-masks", "--help"],
        ["embed", "--help"],
        ["app", "--help"],
        ["serve", "--help"],
        ["export"],
        ["export", "decoder", "--help"],
        ["train"],
        ["train", "distill", "edge_sam", "--help"],
        ["eval"],
        ["eval", "clicks", "--help"],
    ],
    ids=" ".join,
)
def test_commands_that_compute_nothing_import_nothing_heavy(arguments):
    program = (
        "import sys\n"
        "from anysam.cli import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "except SystemExit:\n"
        "    pass\n"
        "print([name for name in ('torch', 'numpy', 'PIL', 'cv2', 'rich') if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_importing_the_package_loads_none_of_its_parts():
    program = "import sys, anysam; print(sorted(name for name in sys.modules if name.startswith('anysam')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['anysam']"


def test_public_names_are_sorted_and_all_there():
    import anysam

    assert anysam.__all__ == sorted(anysam.__all__)
    assert all(getattr(anysam, name) is not None for name in anysam.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        anysam.nothing  # noqa: B018
