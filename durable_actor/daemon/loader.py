"""From the configuration to what is served: a module, its classes, their bindings.

Imports the module named by `main`, finds the classes it made public, and explains what
is missing in the words of the configuration. Classes come from the code that was
imported here and from nowhere else: no name that arrives in a request is ever imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

from durable_actor.config import Binding
from durable_actor.daemon.ports import RUNS_HOOK
from durable_actor.daemon.problems import nearest
from durable_actor.entrypoints import ClassInfo, DurableObject
from durable_actor.errors import ConfigError
from durable_actor.ids import IdSpace

WORKFLOWS_ATTRIBUTE = "registry"  # of a class that holds runs: its workflows by name


class ServedClass:
    """One class the daemon serves: its methods, and the ids of its objects."""

    def __init__(self, cls: type[DurableObject]) -> None:
        self.cls = cls
        self.name = cls.__name__  # of the class, and of its namespace
        self.info = ClassInfo(cls)
        self.ids = IdSpace(self.name)


class Served:
    """All classes by the names they may be called by: their own and their bindings'."""

    def __init__(
        self,
        classes: Iterable[type[DurableObject]],
        bindings: Iterable[Binding] = (),
    ) -> None:
        self.classes: dict[str, ServedClass] = {}
        for cls in classes:
            known = self.classes.get(cls.__name__)
            if known is not None and known.cls is not cls:
                message = (
                    f"two classes are called {cls.__name__}: in {known.cls.__module__}"
                    f" and in {cls.__module__}; rename one"
                )
                raise ConfigError(message)
            self.classes[cls.__name__] = ServedClass(cls)
        self.bindings = {b.name: self._bound(b) for b in bindings}

    def find(self, name: str) -> ServedClass | None:
        """Return the class of this name or binding."""
        return self.classes.get(name) or self.bindings.get(name)

    def names(self) -> list[str]:
        """Return every name a class may be called by."""
        return sorted({*self.classes, *self.bindings})

    def engine_of(self, workflow: str, class_name: str | None) -> type[DurableObject]:
        """Return the class that holds the runs of a workflow.

        Raises:
            ConfigError: The module has no such class, or none with that workflow.
        """
        engines = {
            name: getattr(found.cls, WORKFLOWS_ATTRIBUTE)
            for name, found in self.classes.items()
            if hasattr(found.cls, RUNS_HOOK) and class_name in (None, name)
        }
        for name, workflows in engines.items():
            if workflow in workflows:
                return self.classes[name].cls
        known = [known for workflows in engines.values() for known in workflows]
        message = (
            f"workflows: the module has no workflow {workflow!r}"
            + (f" in a class {class_name!r}" if class_name else "")
            + f". {nearest(workflow, known)}"
        )
        raise ConfigError(message)

    def _bound(self, binding: Binding) -> ServedClass:
        found = self.classes.get(binding.class_name)
        if found is None:
            message = (
                f"durable_objects.bindings: {binding.name} names the class"
                f" {binding.class_name!r}, which the module does not have."
                f" {nearest(binding.class_name, list(self.classes))}"
            )
            raise ConfigError(message)
        clash = self.classes.get(binding.name)
        if clash is not None and clash is not found:
            message = (
                f"durable_objects.bindings: {binding.name!r} is also the name of a"
                " class; choose another name for the binding"
            )
            raise ConfigError(message)
        return found


def load(
    main: Sequence[str], *, directory: Path, bindings: Sequence[Binding] = ()
) -> Served:
    """Import the modules of `main` and return what they serve.

    Args:
        main: Dotted names, and paths to `.py` files.
        directory: Of the configuration; it is searched for modules first, and a path
            that is not absolute is relative to it.
        bindings: Further names for classes.

    Raises:
        ConfigError: A module cannot be imported, none has a class, or a class that a
            binding names is missing.
    """
    if not main:
        message = (
            '`main` is missing in the configuration; name your module: main = "app"'
        )
        raise ConfigError(message)
    modules = [_import(name, directory) for name in main]
    classes = [cls for module in modules for cls in _classes_of(module)]
    if not classes:
        message = (
            f"main = {_shown(main)}: there is no DurableObject class in it; define one,"
            " or assign the engine class of create_durable_workflows() to a name"
        )
        raise ConfigError(message)
    return Served(classes, bindings)


def _import(main: str, directory: Path) -> ModuleType:
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))
    path = _path_of(main, directory)
    try:
        return importlib.import_module(main) if path is None else _import_file(path)
    except ConfigError:
        raise
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if main == missing or main.startswith(missing + "."):
            message = (
                f"main = {main!r}: there is no module {missing!r} in {directory} or on"
                f" the path. {nearest(main, _modules_in(directory))}"
            )
            raise ConfigError(message) from None
        message = f"main = {main!r} imports {missing!r}, which is not installed"
        raise ConfigError(message) from error
    except Exception as error:
        message = f"main = {main!r} failed as it was imported: {error!r}"
        raise ConfigError(message) from error


def _shown(main: Sequence[str]) -> str:
    return repr(main[0] if len(main) == 1 else list(main))


def _path_of(main: str, directory: Path) -> Path | None:
    """Return the file `main` names, or None if it is a dotted name."""
    if not main.endswith(".py") and "/" not in main:
        return None
    path = directory / main
    if not path.is_file():
        files = [f"{name}.py" for name in _modules_in(path.parent)]
        message = (
            f"main = {main!r}: there is no file {path}. {nearest(path.name, files)}"
        )
        raise ConfigError(message)
    return path


def _import_file(path: Path) -> ModuleType:
    name = path.stem
    loaded = sys.modules.get(name)
    if loaded is not None:
        if getattr(loaded, "__file__", None) == str(path.resolve()):
            return loaded
        message = f"{path}: a module called {name!r} is already loaded; rename the file"
        raise ConfigError(message)
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        message = f"{path} is not a Python file"
        raise ConfigError(message)
    module = importlib.util.module_from_spec(spec)
    # Before it runs: dataclasses and msgspec look their own module up by name.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _modules_in(directory: Path) -> list[str]:
    return sorted(path.stem for path in directory.glob("*.py"))


def _classes_of(module: ModuleType) -> Iterator[type[DurableObject]]:
    """Yield the object classes among the module's names, imported ones included.

    A name with a leading underscore is private, and so is the class behind it.
    """
    found: dict[type[DurableObject], None] = {}  # in the order of the module
    members: Mapping[str, object] = vars(module)
    for name, member in members.items():
        if (
            not name.startswith("_")
            and isinstance(member, type)
            and issubclass(member, DurableObject)
            and member is not DurableObject
        ):
            found[member] = None
    yield from found
