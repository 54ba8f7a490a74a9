"""What the container images hold, laid out while they are built; the Dockerfile runs this, in its stages.

    contents.py wheels PYPROJECT WHEELS              on the host: fetches what dependencies will install
    contents.py dependencies PYPROJECT WHEELS OUT    installs what freeze-proxy and its part for clusters depend on
    contents.py daemon SOURCES OUT                   adds the package to that, and compiles everything
    contents.py sidecar SOURCES OUT                  compiles what the sidecar imports, and nothing else
    contents.py warm MODULES OUT                     in the runtime base: compiles what MODULES import of its library

Only bytecode goes into an image: each module is a ``.pyc`` where its source would be. That is loaded without a look at
any source, works on a file system that is read-only, and needs no folder ``__pycache__``. Docstrings and assertions are
left out, but for the command line: its docstrings are its help.

The standard library belongs to the base, which may have no bytecode of it; then each start would compile it anew. So
what is imported of it is compiled by the base's own Python, to be laid beside the sources.

Runs with nothing but the standard library.
"""

import ast
import importlib.util
import py_compile
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

PLACE = Path("/opt/freeze-proxy")
"""Where all of it is in an image."""
SIDECAR = "freeze_proxy.sidecar.app"
_HELPFUL = ("freeze_proxy/cli.py", "click")
"""Where docstrings are shown to people: Click's ``--help`` has one of its own."""
_UNCHECKED = py_compile.PycInvalidationMode.UNCHECKED_HASH
_NEVER_RUN = ("*.pyi", "*.pyx", "*.c", "*.h", "py.typed")

# A file that is run is not looked for on the path, as a folder with __main__ is: that would take 4 ms and 1 MiB.
_START = "import sys\nsys.path.insert(0, {place!r})\nfrom {module} import main\nmain({arguments})\n"

# ``from a import b`` names a.b, which may be no module. What comes from the package need not be compiled any more.
_LIST = """
import sys
place, *names = sys.argv[1:]
sys.path.insert(0, place)
for name in names:
    try:
        __import__(name)
    except ModuleNotFoundError as error:
        if error.name != name or "." not in name:
            raise
for module in list(sys.modules.values()):
    print(getattr(module, "__file__", None) or "")
"""


def imported(source: str) -> set[str]:
    """The modules that a source names in its imports, anywhere in it, but for those that only a type checker makes.

    ``from a import b`` names both ``a`` and ``a.b``, which may be a module or not.
    """
    names = set()
    left: list[ast.AST] = [ast.parse(source)]
    while left:
        node = left.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            left += node.orelse
            continue
        left += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "relative imports are not followed"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def closure(module: str, sources: Path) -> tuple[dict[str, Path], set[str]]:
    """All that a module imports, now or later: the files that ``sources`` has, by module; and the names of the others.

    ``FileNotFoundError`` if there is no such module.
    """
    files: dict[str, Path] = {}
    others: set[str] = set()
    left = [module]
    while left:
        name = left.pop()
        if name in files or name in others:
            continue
        path = sources.joinpath(*name.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if not file.exists():
            others.add(name)
            continue
        files[name] = file
        left += [*imported(file.read_text()), *filter(None, [name.rpartition(".")[0]])]
    if module not in files:
        raise FileNotFoundError(f"There is no module {module} in {sources}.")
    return files, others


def compile_file(source: Path, to: Path, shown: Path, optimize: int = 2) -> None:
    """Compile one source; ``shown`` is the path that tracebacks name. ``py_compile.PyCompileError`` if it cannot be."""
    to.parent.mkdir(parents=True, exist_ok=True)
    py_compile.compile(str(source), str(to), str(shown), doraise=True, optimize=optimize, invalidation_mode=_UNCHECKED)


def _start(out: Path, module: str, arguments: str = "") -> None:
    source = out / "__main__.py"
    out.mkdir(parents=True, exist_ok=True)
    source.write_text(_START.format(place=str(PLACE), module=module, arguments=arguments))
    compile_file(source, source.with_suffix(".pyc"), PLACE / source.name)
    source.unlink()


def sidecar(sources: Path, out: Path) -> None:
    """The sidecar, and the list of what it imports of the standard library, for ``warm``: ``out``.modules."""
    files, others = closure(SIDECAR, sources)
    for file in files.values():
        to = file.relative_to(sources)
        compile_file(file, (out / to).with_suffix(".pyc"), PLACE / to)
    _start(out, SIDECAR)
    out.with_suffix(".modules").write_text("\n".join(sorted(others)))


def daemon(sources: Path, out: Path) -> None:
    """The whole package, beside its dependencies in ``out``; and the list of its modules for ``warm``."""
    shutil.copytree(sources, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    for file in sorted(out.rglob("*.py")):
        to = file.relative_to(out)
        helpful = str(to).startswith(_HELPFUL)
        compile_file(file, file.with_suffix(".pyc"), PLACE / to, optimize=0 if helpful else 2)
        file.unlink()
    for pattern in _NEVER_RUN:
        for file in out.rglob(pattern):
            file.unlink()
    _start(out, "freeze_proxy.cli", "prog_name='freeze-proxy'")
    modules = [
        ".".join(file.relative_to(sources).with_suffix("").parts).removesuffix(".__init__")
        for file in sorted((sources / "freeze_proxy").rglob("*.py"))
        if file.name != "__main__.py"
    ]
    out.with_suffix(".modules").write_text("\n".join(modules))


def _pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *map(str, arguments)]
    code = subprocess.run(command, check=False).returncode
    if code != 0:
        sys.exit(code)


def _wanted(pyproject: Path) -> list[str]:
    project = tomllib.loads(pyproject.read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["cluster"]]


def wheels(pyproject: Path, out: Path) -> None:
    """Fetch what the package depends on."""
    _pip("wheel", f"--wheel-dir={out}", *_wanted(pyproject))


def dependencies(pyproject: Path, wheels: Path, out: Path) -> None:
    """Install what the package depends on: from the folder of wheels if it has any, else from where pip looks."""
    fetched, here = wheels / "python", f"Python {sys.version_info.major}.{sys.version_info.minor}"
    if fetched.exists() and not f"{fetched.read_text().strip()}.".startswith(f"{here}."):
        # pip would only say that it finds no version of something.
        text = fetched.read_text().strip()
        sys.exit(f"The wheels are for {text}, and this base has {here}: have them fetched with the same, by --python.")
    local = ["--no-index", f"--find-links={wheels}"] if any(wheels.glob("*.whl")) else ["--no-cache-dir"]
    _pip("install", "--no-compile", "--root-user-action=ignore", f"--target={out}", *local, *_wanted(pyproject))
    shutil.rmtree(out / "bin", ignore_errors=True)


def warm(modules: Path, out: Path) -> None:
    """Import the modules that a file lists, and compile what came from the standard library: an image's file system."""
    # In a process of its own: what this one has imported is not needed in the image.
    command = [sys.executable, "-I", "-S", "-B", "-OO", "-c", _LIST, str(PLACE), *modules.read_text().split()]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit("The modules cannot be imported in the runtime base: has the builder base another Python?")
    for file in map(Path, done.stdout.split("\n")):
        if file.suffix == ".py" and not file.is_relative_to(PLACE):
            cached = importlib.util.cache_from_source(str(file), optimization=2)
            compile_file(file, out / cached.lstrip("/"), file)


def main(command: str, *paths: str) -> None:
    """Run one of the commands above."""
    commands: dict[str, Callable[..., None]] = {
        "wheels": wheels,
        "dependencies": dependencies,
        "daemon": daemon,
        "sidecar": sidecar,
        "warm": warm,
    }
    commands[command](*map(Path, paths))


if __name__ == "__main__":
    main(*sys.argv[1:])
