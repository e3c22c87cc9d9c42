"""From the configuration to what is served."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from durable_actor.config import Binding
from durable_actor.daemon.loader import Served, load
from durable_actor.entrypoints import DurableObject
from durable_actor.errors import ConfigError

APP = """
from durable_actor import DurableObject

class Cart(DurableObject):
    async def add(self, sku: str) -> None: ...

class _Base(DurableObject): ...

class Basket(_Base): ...

Alias = Cart
NUMBER = 1
"""


@pytest.fixture(autouse=True)
def _leave_no_module_behind() -> Iterator[None]:
    before, path = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(directory: Path, name: str, text: str = APP) -> None:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize("main", ["cart_app", "cart_app.py", "./cart_app.py"])
def test_a_module_is_found_by_name_and_by_path(tmp_path: Path, main: str) -> None:
    write(tmp_path, "cart_app.py")

    served = load([main], directory=tmp_path)

    assert sorted(served.classes) == ["Basket", "Cart"]
    assert served.classes["Cart"].cls.__module__ == "cart_app"
    assert load([main], directory=tmp_path).classes["Cart"].cls is (
        served.classes["Cart"].cls
    )


def test_a_module_in_a_package_is_found_by_its_dotted_name(tmp_path: Path) -> None:
    write(tmp_path, "cart_shop/__init__.py", "")
    write(tmp_path, "cart_shop/app.py")

    assert "Cart" in load(["cart_shop.app"], directory=tmp_path).classes


def test_several_modules_are_served_together(tmp_path: Path) -> None:
    write(tmp_path, "cart_one.py")
    write(tmp_path, "cart_two.py", "from cart_one import Cart\n")
    write(tmp_path, "cart_three.py", APP)

    assert "Cart" in load(["cart_one", "cart_two"], directory=tmp_path).classes
    with pytest.raises(ConfigError, match="two classes are called Cart"):
        load(["cart_one", "cart_three"], directory=tmp_path)


def test_a_class_has_the_name_of_its_binding_too(tmp_path: Path) -> None:
    write(tmp_path, "cart_app.py")
    bindings = [Binding(name="CARTS", class_name="Cart")]

    served = load(["cart_app"], directory=tmp_path, bindings=bindings)

    assert served.find("CARTS") is served.find("Cart") is not None
    assert served.find("CART") is None
    assert served.names() == ["Basket", "CARTS", "Cart"]


@pytest.mark.parametrize(
    ("main", "says"),
    [
        ([], "main"),
        (["cart_ap"], "Did you mean 'cart_app'?"),
        (["cart_ap.py"], "Did you mean 'cart_app.py'?"),
        (["cart_app.sub"], "cart_app.sub"),
        (["cart_empty"], "no DurableObject class"),
        (["cart_broken"], "ZeroDivisionError"),
        (["cart_needs"], "imports 'not_installed_anywhere'"),
        (["cart_syntax.py"], "SyntaxError"),
        (["json.py"], "rename the file"),
    ],
)
def test_what_is_missing_is_explained(
    tmp_path: Path, main: list[str], says: str
) -> None:
    write(tmp_path, "cart_app.py")
    write(tmp_path, "cart_empty.py", "x = 1")
    write(tmp_path, "cart_broken.py", "1 / 0")
    write(tmp_path, "cart_needs.py", "import not_installed_anywhere")
    write(tmp_path, "cart_syntax.py", "class")
    write(tmp_path, "json.py")

    with pytest.raises(ConfigError) as caught:
        load(main, directory=tmp_path)

    assert says in str(caught.value)


def test_a_module_that_failed_is_not_left_half_loaded(tmp_path: Path) -> None:
    write(tmp_path, "cart_app.py", "1 / 0")
    with pytest.raises(ConfigError):
        load(["cart_app.py"], directory=tmp_path)

    write(tmp_path, "cart_app.py")

    assert "Cart" in load(["cart_app.py"], directory=tmp_path).classes


def test_a_binding_names_a_class_that_is_there() -> None:
    class Cart(DurableObject): ...

    class Till(DurableObject): ...

    with pytest.raises(ConfigError, match="Did you mean 'Cart'"):
        Served([Cart], [Binding(name="CARTS", class_name="Crat")])
    with pytest.raises(ConfigError, match="also the name of a class"):
        Served([Cart, Till], [Binding(name="Till", class_name="Cart")])
