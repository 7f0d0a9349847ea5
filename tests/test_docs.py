"""Documented commands compose, links lead somewhere, pages keep their bounds."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from handmim.cli import COMMANDS as COMMANDS_OF_CLI
from handmim.utils.config import resolved
from handmim.utils.entry import compose

REPO = Path(__file__).parent.parent
CONFIGS, TOOLS = REPO / "configs", REPO / "tools"
README = REPO / "README.md"
PAGES = [README, *sorted((REPO / "docs").glob("*.md"))]
DATA = sorted((REPO / "data").rglob("*.md"))
LINKED = [*PAGES, *DATA, *sorted((REPO / "docs" / "experiments").glob("*.md"))]
PLAIN = (*PAGES, *DATA)
EXTENDING = REPO / "docs" / "extending.md"  # its parts are not there: tests/test_extending.py
PARTS = [*sorted(CONFIGS.rglob("*.yaml")), *sorted(TOOLS.glob("*.py"))]
SOURCES = [*(page for page in LINKED if page != EXTENDING), *PARTS]
HYDRA = ("--help", "--cfg", "--multirun", "--config-name")
PLUGINS = ("hydra/launcher=",)  # of packages that are not installed
TABLES = ("experiments",)
MAX_WORDS = 25

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`]+)`")
SOURCE_FILE = re.compile(r"(?<![\w/.-])(?:[\w-]+/)+\w+\.py\b|(?<![\w/.-])test_\w+\.py\b")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def name_of(path: Path) -> str:
    return str(path.relative_to(REPO))


def without_code(text: str) -> str:
    """A page without fenced blocks, line by line as before."""
    return FENCE.sub(lambda block: "\n" * block[0].count("\n"), text)


def written_commands(path: Path) -> list[str]:
    """Commands `python tools/...` of a page, of a config or of a tool's docstring."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".md":
        lines = re.findall(r"(?:^|#|\. |: )\s*(python tools/[^\n{}]*)$", text, re.MULTILINE)
        lines = [re.sub(r"\[(--.*?)\]", r"\1", line) for line in lines]  # of usage
        return [line.removesuffix('"""') for line in lines]
    blocks = "\n".join(block for _, block in FENCE.findall(text)).replace("\\\n", " ")
    inline = [" ".join(span.split()) for span in INLINE.findall(without_code(text))]
    found = [*blocks.split("\n"), *inline]
    return [line for line in found if line.startswith("python tools/")]


def commands_of(path: Path) -> dict[tuple[str, ...], str]:
    """Tool and arguments of every command of a file, with the file's name."""
    lines = [shlex.split(line, comments=True)[1:] for line in written_commands(path)]
    return {(Path(arguments[0]).stem, *arguments[1:]): name_of(path) for arguments in lines}


COMMANDS = {command: name for path in SOURCES for command, name in commands_of(path).items()}


def configs_of(tool: str, arguments: list[str]) -> list[tuple[str, list[str]]]:
    """Names of the configs that a command composes, each with its overrides."""
    overrides = [w for w in arguments if "=" in w and not w.startswith(("--", *PLUGINS))]
    chosen = [w.partition("=")[2] for w in arguments if w.startswith("--config-name=")]
    source = (TOOLS / f"{tool}.py").read_text()
    command = re.search(r'main\("(\w+)"\)', source)
    decorated = re.search(r'@tool\("(\w+)"\)', source)
    config = COMMANDS_OF_CLI[command[1]].config if command else decorated and decorated[1]
    if "--methods" in arguments:
        return [("pretrain", [*overrides, *needed_by(overrides)])]
    if "--estimate" in arguments:
        return [(arguments[arguments.index("--estimate") + 1], overrides)]
    if tool == "quickstart":
        parts = ("pretrain", "finetune")
        return [(part, [f"experiment=quickstart_{part}", *overrides]) for part in parts]
    if tool == "probe_targets":
        return [("pretrain", [*overrides, *needed_by(overrides)])]
    if config is None:
        return []
    if "--multirun" in arguments:
        overrides = [w.split(",")[0] if "[" not in w else w for w in overrides]
    if tool in TABLES:
        overrides.append("name=table")  # is made of the names of groups, which a command has
    return [((chosen or [config])[0], overrides)]


def needed_by(overrides: list[str]) -> list[str]:
    """What a tool without data leaves open."""
    with_data = ("data=", "experiment=quickstart")
    return [] if any(w.startswith(with_data) for w in overrides) else ["data.root=unread"]


# Commands without a config, and where their options are read.
ARGPARSED = {"pack": "pipelines/pack.py", "quickstart": "experiments/quickstart.py"}


def test_commands_are_found_in_every_kind_of_source():
    origins = " ".join(COMMANDS.values())
    assert len(COMMANDS) > 80
    for kind in ("README.md", "docs/", "configs/experiment/", "configs/pretrain.yaml", "tools/"):
        assert kind in origins, kind


def check_command(command: tuple[str, ...], configs: Path) -> None:
    """Compose what a command composes; a command without `...` lacks no value."""
    tool, arguments = command[0], list(command[1:])
    is_whole = not any(w.endswith("...") for w in arguments) and "--help" not in arguments
    source = (TOOLS / f"{tool}.py").read_text()
    for name, module in ARGPARSED.items():
        if f'main("{name}")' in source:
            source = (REPO / "handmim" / module).read_text()
    for option in (w.partition("=")[0] for w in arguments if w.startswith("--")):
        assert option in HYDRA or f'"{option}"' in source, f"{tool} has no {option}"
    given = [w for w in arguments if not w.endswith("...") or "=" in w]
    with initialize_config_dir(str(configs), version_base="1.3"):
        for name, overrides in configs_of(tool, given):
            cfg = compose(name, overrides)
            if is_whole:
                resolved(cfg)
            for variant in cfg.get("variants") or []:
                assert variant in cfg.table.variants, f"{variant}: no variant of the table"


@pytest.mark.parametrize("command", list(COMMANDS), ids=lambda c: " ".join(c)[:90])
def test_documented_commands_compose(command):
    check_command(command, CONFIGS)


def documented_overrides() -> list[str]:
    """Overrides of the first column of the table of overrides; `a=x`, `y` stands for a=x and
    a=y."""
    text = (REPO / "docs" / "configuration.md").read_text(encoding="utf-8")
    table = text.partition("## Common overrides\n")[2].partition("\n## ")[0]
    found, key = [], ""
    for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE):
        for span in INLINE.findall(row):
            arguments = shlex.split(span)
            if all("=" in word for word in arguments):
                found.append(span)
                key = arguments[0].partition("=")[0] if len(arguments) == 1 else ""
            elif key and len(arguments) == 1:
                found.append(f"{key}={span}")
    return found


@pytest.mark.parametrize("override", documented_overrides())
def test_documented_overrides_compose(override):
    arguments = [word.replace("=N", "=9") for word in shlex.split(override)]
    problems = []
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for name in ("pretrain", "finetune"):
            try:
                compose(name, arguments)
            except (ValueError, HydraException, OmegaConfBaseException) as error:
                problems.append(f"{name}: {error}")
            else:
                return
    pytest.fail("\n".join(problems))


def anchors(path: Path) -> set[str]:
    """Anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", without_code(path.read_text(encoding="utf-8")), re.M)
    plain = [LINK.sub(r"\2", heading).replace("`", "").strip().lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_links_lead_somewhere(page):
    for _, _, target in LINK.findall(without_code(page.read_text(encoding="utf-8"))):
        if target.startswith(("https://", "http://")):
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("page", [p for p in LINKED if p.stem != "CHANGELOG"], ids=name_of)
def test_named_source_files_exist(page):
    """From the root of the repository, of the package or of its tests; a test by its name too."""
    text = page.read_text(encoding="utf-8")
    written_there = re.findall(r"^File `([^`]+)`", text, re.MULTILINE)  # by who follows the page
    names = set(SOURCE_FILE.findall(text)).difference(written_there)
    tests = {path.name for path in (REPO / "tests").rglob("test_*.py")}
    roots = (REPO, REPO / "handmim", REPO / "tests")
    there = {name for name in names if any((root / name).exists() for root in roots)}
    assert not names - there - tests


def test_every_page_is_in_the_table_of_contents_and_in_the_readme():
    pages = {path.name for path in (REPO / "docs").glob("*.md")} - {"README.md"}
    for index in (README, REPO / "docs" / "README.md"):
        linked = {Path(t).name for _, _, t in LINK.findall(index.read_text(encoding="utf-8"))}
        assert pages <= linked, index


def sentences(text: str) -> list[str]:
    """Sentences of paragraphs, list items and cells; a span of code is one word."""
    text = re.sub(r"<!--.*?-->", "", without_code(text), flags=re.DOTALL)
    text = LINK.sub(lambda m: "" if m[1] else m[2], text)
    text = INLINE.sub("code", text)
    # Headings, list items and rows of tables are paragraphs of their own.
    text = re.sub(r"^(#+ .*)$", r"\n\1\n", text, flags=re.MULTILINE)
    text = re.sub(r"^\s*([-*] |\d+\. |\|)", r"\n\n\1", text, flags=re.MULTILINE)
    cells = [cell for part in re.split(r"\n\s*\n", text) for cell in re.split(r" ?\| ?", part)]
    return [s.strip() for cell in cells for s in re.split(r"(?<=[.!?])[)*]*\s+", cell) if s.strip()]


@pytest.mark.parametrize("page", PLAIN, ids=name_of)
def test_sentences_and_lines_are_short(page):
    text = page.read_text(encoding="utf-8")
    assert not [s for s in sentences(text) if len(s.split()) > MAX_WORDS]
    lines = without_code(text).split("\n")
    assert not [line for line in lines if len(line) > 120 and not line.startswith(("|", "!["))]


def test_sentences_are_told_apart():
    text = "# Head\nOne `a b c`. Two\nlines!\n\n- [Three](x.md) four\n- 5\n\n| six | 7. Eight |\n"
    found = ["# Head", "One code.", "Two\nlines!", "- Three four", "- 5", "six", "7.", "Eight"]
    assert sentences(text) == found


def test_the_readme_keeps_its_size():
    content = README.read_bytes()
    assert len(content) <= 7 * 1024
    assert content.count(b"\n") <= 120


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_python_blocks_are_python(page):
    for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            compile(block, name_of(page), "exec")
