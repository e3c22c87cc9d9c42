"""One configuration from the file, the environment and the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from durable_actor import config
from durable_actor.config import Config, load_config
from durable_actor.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def load(
    folder: Path,
    text: str = "",
    environ: dict[str, str] | None = None,
    **overrides: object,
) -> Config:
    path = folder / "config.toml"
    path.write_text(text)
    flags = {key.replace("__", "."): value for key, value in overrides.items()}
    return load_config(path, environ=environ or {}, overrides=flags)


def test_without_a_file_everything_has_its_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    loaded = load_config(None, environ={}, overrides={})

    expected = msgspec.structs.replace(
        Config(),
        storage=msgspec.structs.replace(Config().storage, dir=str(tmp_path / "data")),
        directory=str(tmp_path),
    )
    assert loaded == expected


def test_the_file_at_the_top_shows_every_key_at_its_default() -> None:
    path = ROOT / "config.toml"
    loaded = load_config(path, environ={}, overrides={})

    assert loaded.main == ("examples.order_processing",)
    expected = msgspec.structs.replace(
        Config(),
        main=loaded.main,
        storage=msgspec.structs.replace(Config().storage, dir=str(ROOT / "data")),
        directory=str(ROOT),
    )
    assert loaded == expected
    text = path.read_text()
    for key in config._KEYS:
        assert f"{key.rpartition('.')[2]} = " in text


def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(
    tmp_path: Path,
) -> None:
    text = "[http]\nport = 1\nheaders_max = 1\nheader_timeout_ms = 1"
    environ = {"DURABLE_ACTOR_HTTP_PORT": "2", "DURABLE_ACTOR_HTTP_HEADERS_MAX": "2"}

    http = load(tmp_path, text, environ, http__port=3).http

    assert (http.port, http.headers_max, http.header_timeout_ms) == (3, 2, 1)
    assert http.body_timeout_ms == 30_000


def test_every_key_that_is_no_table_has_a_variable() -> None:
    variables = {
        "DURABLE_ACTOR_NAME": "shop",
        "DURABLE_ACTOR_MAIN": "a.b, c.py",
        "DURABLE_ACTOR_DEBUG": "yes",
        "DURABLE_ACTOR_HTTP_ALLOWED_HOSTS": "a, b",
        "DURABLE_ACTOR_HTTP_ALLOW_PUBLIC": "true",
        "DURABLE_ACTOR_STORAGE_DRIVER": "process",
        "DURABLE_ACTOR_RUNS_RETENTION_MS": "1_000",
        "DURABLE_ACTOR_LOG_LEVEL": "debug",
        "DURABLE_ACTOR_HTTP_UDS": "",  # as if it were not there
    }

    loaded = load_config(None, environ=variables, overrides={})

    assert loaded.name == "shop"
    assert loaded.main == ("a.b", str(Path.cwd() / "c.py"))
    assert loaded.debug
    assert loaded.http.allowed_hosts == ("a", "b")
    assert loaded.http.allow_public
    assert loaded.storage.driver == "process"
    assert loaded.runs.retention_ms == 1_000
    assert loaded.log.level == "debug"
    assert loaded.http.uds is None


def test_the_names_others_use_are_honoured_after_our_own(tmp_path: Path) -> None:
    environ = {"PORT": "1", "DURABLE_ACTOR_DATA_DIR": "/elsewhere"}
    loaded = load(tmp_path, "[http]\nport = 3", environ)
    assert (loaded.http.port, loaded.storage.dir) == (1, "/elsewhere")

    environ["DURABLE_ACTOR_HTTP_PORT"] = "2"
    assert load(tmp_path, "", environ).http.port == 2


def test_other_variables_are_left_alone(tmp_path: Path) -> None:
    environ = {
        "DURABLE_ACTOR_TOKEN": "secret",
        "DURABLE_ACTOR_FAILPOINTS": "x",
        "DURABLE_ACTOR_SERVICE_HOST": "10.0.0.1",
        "DURABLE_ACTOR_PORT_8787_TCP": "tcp://10.0.0.1:8787",
        "HTTP_PORT": "1",
    }
    assert load(tmp_path, "", environ) == load(tmp_path)


def test_paths_in_the_file_are_relative_to_it_and_others_to_where_we_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    text = """
    main = ["app.py", "shop.app", "lib/x.py"]
    [http]
    uds = "run/socket"
    token_file = "/etc/token"
    """

    loaded = load(tmp_path, text)
    assert loaded.main == (
        str(tmp_path / "app.py"),
        "shop.app",
        str(tmp_path / "lib/x.py"),
    )
    assert loaded.http.uds == str(tmp_path / "run/socket")
    assert loaded.http.token_file == "/etc/token"
    assert loaded.storage.dir == str(tmp_path / "data")
    assert loaded.directory == str(tmp_path)

    flags = {"storage__dir": "here", "main": "b.py"}
    loaded = load(tmp_path, text, {"DURABLE_ACTOR_HTTP_UDS": "s"}, **flags)
    assert loaded.storage.dir == os.path.join(os.getcwd(), "here")  # noqa: PTH109, PTH118  # not by the code under test
    assert loaded.main == (str(tmp_path / "elsewhere/b.py"),)
    assert loaded.http.uds == str(tmp_path / "elsewhere/s")


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [
        ("nmae = 'x'", "nmae", "`name`"),
        ("[http]\nprot = 1", "http.prot", "`port`"),
        ("[htpt]\nport = 1", "htpt", "`http`"),
        ("shutdown_grace = 30", "shutdown_grace", "`shutdown_grace_ms`"),
        ("directory = '/'", "directory", "not a key"),
        (
            "durable_objects.bindings = [{name = 'A', class = 'B'}]",
            "durable_objects.bindings[0].class",
            "`class_name`",
        ),
        ("[[schedules]]\nname = 'a'\ncorn = '* * * * *'", "schedules[0].corn", "cron"),
        ("zzz = 1", "zzz", "known are name, main"),
    ],
)
def test_an_unknown_key_is_named_with_its_nearest_neighbour(
    tmp_path: Path, text: str, key: str, near: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(f"{key}: ")
    assert near in str(caught.value)


def test_an_unknown_variable_of_a_section_and_an_unknown_flag_are_named(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match="`DURABLE_ACTOR_HTTP_PORT`"):
        load(tmp_path, "", {"DURABLE_ACTOR_HTTP_PROT": "1"})
    with pytest.raises(ConfigError, match=r"http\.prot: .*`http\.port`"):
        load(tmp_path, "", {}, http__prot=1)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[http]\nport = "x"', 'http.port: expected int, got "x"'),
        ("[http]\nport = true", "http.port: expected int, got true"),
        ("[http]\nport = 65536", "http.port: expected int <= 65535, got 65536"),
        ("[http]\nheaders_max = 0", "http.headers_max: expected int >= 1, got 0"),
        ("http = 5", "http: expected table, got 5"),
        ("name = 5", "name: expected str, got 5"),
        ("main = 5", "main: expected array, got 5"),
        ("main = ['a', 5]", "main[1]: expected str, got 5"),
        ("debug = 1", "debug: expected bool, got 1"),
        (
            "[log]\nformat = 'xml'",
            'log.format: expected "auto" or "console" or "json", got "xml"',
        ),
        ("workflows = [{name = 'a'}]", "workflows[0]: `binding` is missing"),
        (
            "durable_objects.bindings = [{name = 'A-B', class_name = 'C'}]",
            "durable_objects.bindings[0].name: expected str matching",
        ),
    ],
)
def test_a_value_that_does_not_fit_is_shown_with_what_was_expected(
    tmp_path: Path, text: str, told: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(told)
    assert "config.toml" in str(caught.value)


def test_an_error_tells_which_source_the_value_came_from(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'int, got "x" \(DURABLE_ACTOR_HTTP_PORT\)'):
        load(tmp_path, "[http]\nport = 1", {"DURABLE_ACTOR_HTTP_PORT": "x"})
    with pytest.raises(ConfigError, match=r"got -1 \(command line\)"):
        load(tmp_path, "", {}, http__port=-1)
    with pytest.raises(ConfigError, match=r'bool, got "perhaps"'):
        load(tmp_path, "", {}, debug="perhaps")


def test_a_flag_that_was_not_given_changes_nothing(tmp_path: Path) -> None:
    assert load(tmp_path, "[http]\nport = 1", {}, http__port=None).http.port == 1


def test_a_flag_may_be_text(tmp_path: Path) -> None:
    assert load(tmp_path, "", {}, http__port="1", debug="on").http.port == 1


@pytest.mark.parametrize(
    "content", [b"a = ", b"\xff", b"a = 1\na = 2", b"a=" + b"[" * 9_999]
)
def test_a_file_that_is_not_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.toml"):
        load_config(tmp_path / "config.toml", environ={}, overrides={})


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "config.toml", tmp_path):
        with pytest.raises(ConfigError, match=r"No such file|directory"):
            load_config(path, environ={}, overrides={})


def test_bindings_workflows_and_variables_are_read(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        """
        durable_objects.bindings = [{ name = "CARTS", class_name = "Cart" }]
        workflows = [
            { name = "orders", binding = "ORDERS", class_name = "OrderWorkflow" },
            { name = "checkout", binding = "CHECKOUT" },
        ]
        vars = { REGION = "eu", LIMITS = { high = 9 } }
        """,
    )

    assert loaded.durable_objects.bindings == (
        config.Binding(name="CARTS", class_name="Cart"),
    )
    assert [w.class_name for w in loaded.workflows] == ["OrderWorkflow", None]
    assert loaded.vars == {"REGION": "eu", "LIMITS": {"high": 9}}


def test_two_things_of_one_name_in_env_are_refused(tmp_path: Path) -> None:
    text = """
    durable_objects.bindings = [{ name = "A", class_name = "X" }]
    workflows = [{ name = "w", binding = "B" }]
    """
    load(tmp_path, text)
    for more, key in [
        ("vars = { A = 1 }", "vars"),
        ("vars = { B = 1 }", "vars"),
    ]:
        with pytest.raises(ConfigError, match=key):
            load(tmp_path, text + more)


SCHEDULE: dict[str, Any] = {
    "name": '"a"',
    "every": '"10 minutes"',
    "object": '"Cart/a/b"',
    "method": '"sweep"',
}


def schedule(**changes: str | None) -> str:
    entries = {**SCHEDULE, **changes}
    lines = [f"{key} = {value}" for key, value in entries.items() if value is not None]
    return "\n".join(["[[schedules]]", *lines])


def test_schedules_call_objects_or_start_runs(tmp_path: Path) -> None:
    run = schedule(
        name='"b"',
        every=None,
        cron='"0 3 * * *"',
        timezone='"Europe/Berlin"',
        object=None,
        method=None,
        workflow='"report"',
        input="{ day = 1 }",
    )

    first, second, third = load(
        tmp_path,
        "\n".join([schedule(args="[1]"), run, schedule(name='"c"', every="500")]),
    ).schedules

    assert (first.object, first.method, first.args) == ("Cart/a/b", "sweep", (1,))
    assert (first.every, first.timezone, third.every) == ("10 minutes", "UTC", 500)
    assert (second.workflow, second.input) == ("report", {"day": 1})


def test_a_cron_expression_may_be_a_nickname(tmp_path: Path) -> None:
    config = load(tmp_path, schedule(every=None, cron='"@daily"'))
    assert config.schedules[0].cron == "@daily"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"cron": '"* * * * *"'}, "cron"),
        ({"every": None}, "every"),
        ({"every": '"soon"'}, r"schedules\[0\]\.every"),
        ({"every": '"0 s"'}, r"schedules\[0\]\.every"),
        ({"every": "0"}, r"schedules\[0\]\.every"),
        ({"every": None, "cron": '"0 25 * * *"'}, r"schedules\[0\]\.cron"),
        ({"timezone": '"Mars/Base"'}, r"schedules\[0\]\.timezone"),
        ({"timezone": '"../../etc/passwd"'}, r"schedules\[0\]\.timezone"),
        ({"object": '"Cart"'}, r"schedules\[0\]\.object"),
        ({"method": None}, r"schedules\[0\]\.method"),
        ({"input": "1"}, r"schedules\[0\]\.input"),
        ({"workflow": '"w"'}, "workflow"),
        ({"object": None}, "workflow"),
        ({"object": None, "workflow": '"w"'}, "args"),
    ],
)
def test_a_schedule_that_cannot_be_kept_is_refused(
    tmp_path: Path, changes: dict[str, str | None], key: str
) -> None:
    with pytest.raises(ConfigError, match=key):
        load(tmp_path, schedule(**changes))


def test_two_schedules_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"schedules\[1\]\.name"):
        load(tmp_path, schedule() + "\n" + schedule())
