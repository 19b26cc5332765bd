"""The registry's laws, with real distributions on the path and a fresh registry per test."""

import copy
import functools
import importlib
import pickle
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from plugins.distributions import hook, install, installed, offer

import ldmkit
from ldmkit import builtin, registry
from ldmkit.errors import (
    AmbiguousComponentError,
    FactoryError,
    LdmkitError,
    LdmkitPluginWarning,
    OptionError,
    PluginError,
    PluginLoadError,
    ReservedNameError,
    UnknownComponentError,
)
from ldmkit.parts import Part
from ldmkit.registry import KINDS, PluginInfo, Registry, origin

DEPTH = '''
class DepthMap:
    """Pools a depth map.

    More about it.
    """

    def __init__(self, factor: "int" = 8) -> None:
        self.factor = factor
'''


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path to install distributions into, alone; what is imported from it is forgotten afterwards."""
    for variable in ("LDMKIT_PLUGINS", "LDMKIT_STRICT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("LDMKIT_DISABLE", installed())
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(tmp_path) in str(getattr(module, "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def depth(site: Path) -> Registry:
    """A registry that knows the plug-in ldmkit-depth 0.1 with the conditioner depth-map."""
    install(site, "ldmkit-depth", {"depth_light": offer("depth-map", "depth_heavy:DepthMap"), "depth_heavy": DEPTH})
    return Registry()


def row(table: Registry, distribution: str) -> PluginInfo:
    """The one plug-in of a distribution."""
    (info,) = [info for info in table.plugins() if info.distribution == distribution]
    return info


class Fixed:
    """A component of this module."""

    def __init__(self, size: int = 1, inner: object = None) -> None:
        if size < 0:
            raise ValueError(f"size must not be negative, got {size}")
        self.size, self.inner = size, inner


# Listing


def test_builtins_are_listed_without_metadata(site: Path):
    table = Registry()
    assert {kind: table.names(kind) for kind in KINDS} == {kind: sorted(builtin.TABLE[kind]) for kind in KINDS}
    assert row(table, "ldmkit").version == ldmkit.__version__


def test_builtins_are_listed_once_whatever_metadata_there_is(site: Path):
    install(site, "ldmkit", {}, {"builtin": "ldmkit.builtin", "again": "ldmkit.builtin"}, version="9.9")
    install(site, "LDMKit", {}, {"builtin": "ldmkit.builtin"}, version="8.8")
    table = Registry()
    assert table.names("sampler") == sorted(builtin.TABLE["sampler"])
    assert row(table, "ldmkit").version == ldmkit.__version__


@pytest.mark.parametrize("target", [target for components in builtin.TABLE.values() for target in components.values()])
def test_every_builtin_target_exists(target: str):
    module, _, attribute = target.partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_its_own_register_method(site: Path, kind: str):
    install(site, "ldmkit-x", {"x_light": offer("mine", "somewhere:Thing", kind.replace("-", "_"))})
    table = Registry()
    assert table.names(kind) == sorted([*builtin.TABLE[kind], "mine"])
    assert row(table, "ldmkit-x").components == (f"{kind}:mine",)


def test_listing_imports_the_light_module_only(depth: Registry):
    assert "depth-map" in depth.names("conditioner")
    assert "depth_light" in sys.modules
    assert "depth_heavy" not in sys.modules


def test_nothing_is_discovered_before_the_first_question(depth: Registry):
    assert "depth_light" not in sys.modules


def test_discovery_happens_once_for_many_threads(site: Path):
    (site / "counted.py").write_text("calls = []")
    count = "import counted; counted.calls.append(1)"
    install(site, "ldmkit-slow", {"slow_light": hook(count, "register.task('slow', 'a:B')")})
    table, start = Registry(), threading.Barrier(8)
    found: list[list[str]] = []

    def ask() -> None:
        start.wait()
        found.append(table.names("task"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [sorted([*builtin.TABLE["task"], "slow"])] * 8
    assert importlib.import_module("counted").calls == [1]


def test_plugins_load_in_the_order_of_their_normalised_names(site: Path):
    for name in ("Ldmkit_B", "ldmkit-c", "ldmkit.a"):
        module = f"light_{name[-1].lower()}"
        install(site, name, {module: offer(f"of-{name[-1].lower()}", "a:B")}, {"z": module})
    found = [info.distribution for info in Registry().plugins()]
    assert [name for name in found if name.startswith("ldmkit-") and len(name) == 8] == [
        "ldmkit-a",
        "ldmkit-b",
        "ldmkit-c",
    ]


def test_unknown_kind_lists_the_kinds(site: Path):
    with pytest.raises(
        UnknownComponentError, match=r"unknown kind 'sampeler'; did you mean 'sampler'\?.*'first-stage'"
    ):
        Registry().names("sampeler")


def test_unknown_name_suggests_the_nearest_and_lists_the_rest(depth: Registry):
    with pytest.raises(UnknownComponentError) as caught:
        depth.build("conditioner", "depht-map")
    message = str(caught.value)
    assert message.startswith("unknown conditioner 'depht-map'; did you mean 'depth-map'?")
    assert "'class-label'" in message
    assert isinstance(caught.value, KeyError)


# Broken plug-ins: sources of the modules, entry points, and a word of the reason

BROKEN: dict[str, tuple[dict[str, str], dict[str, str] | str | None, str]] = {
    "import error": ({"bad": "import no_such_module_anywhere"}, None, "No module named 'no_such_module_anywhere'"),
    "missing module": ({}, {"main": "no_such_light_module"}, "no_such_light_module"),
    "missing attribute": ({"bad": ""}, {"main": "bad:plugin"}, "plugin"),
    "malformed entry point": ({}, {"main": "not a module!"}, "not a module!"),
    "syntax error": ({"bad": "def ("}, None, "SyntaxError"),
    "SystemExit at import": ({"bad": "raise SystemExit(3)"}, None, "SystemExit: 3"),
    "exception in the hook": ({"bad": hook("register.task('half', 'a:B')", "1 / 0")}, None, "ZeroDivisionError"),
    "SystemExit in the hook": ({"bad": hook("raise SystemExit")}, None, "SystemExit"),
    "misspelled hook": (
        {"bad": offer("half", "a:B").replace("ldmkit_register", "ldmkit_regster")},
        None,
        "unknown hook 'ldmkit_regster'; the hook is 'ldmkit_register'",
    ),
    "one good and one misspelled hook": (
        {"bad": offer("half", "a:B") + "\n@ldmkit.hookimpl\ndef ldmkit_registr(register): pass\n"},
        None,
        "unknown hook 'ldmkit_registr'",
    ),
    "wrong argument": (
        {"bad": hook("pass").replace("(register)", "(registry)")},
        None,
        "is not ldmkit_register(register)",
    ),
    "no hookimpl": ({"bad": "def ldmkit_register(register): pass"}, None, "no function marked @ldmkit.hookimpl"),
    "the hook instead of its module": (
        {"bad": offer("half", "a:B")},
        {"main": "bad:ldmkit_register"},
        "names the module",
    ),
    "nothing offered": ({"bad": hook("pass")}, None, "offers no component"),
    "duplicate entry-point name": (
        {"bad": offer("half", "a:B"), "worse": offer("other-half", "a:B")},
        "main = bad\nmain = worse\n",
        "2 times, as 'bad', 'worse'",
    ),
    "unknown kind": ({"bad": hook("register.scheduler('x', 'a:B')")}, None, "scheduler"),
    "malformed name": ({"bad": offer("Half_Map", "a:B")}, None, "'Half_Map': a name is lower-case"),
    "malformed factory": ({"bad": offer("half", "no colon")}, None, "'module:attribute', got 'no colon'"),
    "factory of no use": ({"bad": hook("register.task('half', 3)")}, None, "got 3"),
    "name offered twice": (
        {"bad": hook("register.task('half', 'a:B')", "register.task('half', 'a:C')")},
        None,
        "twice",
    ),
    "reserved name": ({"bad": offer("kl", "a:B", "first_stage")}, None, "reserved"),
    "reserved name beside a free one": (
        {"bad": hook("register.task('half', 'a:B')", "register.sampler('ddim', 'a:B')")},
        None,
        "sampler 'ddim' (ldmkit-bad 0.3) has the name of a built-in",
    ),
    "exception that cannot be printed": (
        {"bad": "class Odd(Exception):\n    def __str__(self): raise RuntimeError\nraise Odd"},
        None,
        "Odd",
    ),
    "asks the registry while loading": (
        {"bad": "import asked\nasked.table.names('task')"},
        None,
        "while plug-ins load",
    ),
}


@pytest.fixture(params=BROKEN, ids=[name.replace(" ", "-") for name in BROKEN])
def broken(site: Path, request: pytest.FixtureRequest) -> tuple[Registry, str]:
    """A registry with a broken plug-in between two good ones, and a word of the reason."""
    modules, points, reason = BROKEN[request.param]
    install(site, "ldmkit-aa", {"good_a": offer("first", "a:B", "task")})
    install(site, "ldmkit-bad", modules, points, version="0.3")
    install(site, "ldmkit-zz", {"good_z": offer("last", "a:B", "task")})
    (site / "asked.py").write_text("table = None")
    table = Registry()
    importlib.import_module("asked").table = table  # type: ignore[attr-defined]
    return table, reason


def test_broken_plugin_is_reported_and_costs_only_itself(broken: tuple[Registry, str]):
    table, reason = broken
    with pytest.warns(LdmkitPluginWarning) as caught:
        names = table.names("task")
    assert names == sorted([*builtin.TABLE["task"], "first", "last"])
    assert [str(w.message).startswith("plug-in ldmkit-bad 0.3 (entry point 'main')") for w in caught] == [True]
    info = row(table, "ldmkit-bad")
    assert (info.version, info.entry_point, info.status, info.components) == ("0.3", "main", "failed", ())
    assert reason in info.error
    assert "\n" not in info.error


@pytest.mark.filterwarnings("ignore::ldmkit.errors.LdmkitPluginWarning")
def test_broken_plugin_is_named_in_every_unknown_name_error(broken: tuple[Registry, str]):
    table, _ = broken
    for ask in (table.build, table.describe):
        with pytest.raises(UnknownComponentError) as caught:
            ask("task", "half")
        assert f"ldmkit-bad 0.3 (entry point 'main'): {row(table, 'ldmkit-bad').error}" in str(caught.value)


def test_broken_plugin_is_warned_about_once(broken: tuple[Registry, str]):
    table, _ = broken
    with pytest.warns(LdmkitPluginWarning):
        table.plugins()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert table.names("task") == table.names("task")


def test_strict_raises_with_the_cause(broken: tuple[Registry, str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LDMKIT_STRICT", "1")
    table, reason = broken
    for _ in range(2):
        with pytest.raises(PluginLoadError, match=r"plug-in ldmkit-bad 0\.3") as caught:
            table.names("task")
        assert reason in str(caught.value)
        assert caught.value.__cause__ is not None


def test_strict_is_silent_when_nothing_is_broken(depth: Registry, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LDMKIT_STRICT", "1")
    assert "depth-map" in depth.names("conditioner")


def test_interrupt_passes_and_the_next_question_discovers_again(site: Path):
    install(site, "ldmkit-x", {"x_light": "raise KeyboardInterrupt"})
    table = Registry()
    with pytest.raises(KeyboardInterrupt):
        table.names("task")
    (site / "x_light.py").write_text(offer("mine", "somewhere:Thing", "task"))
    importlib.invalidate_caches()
    assert "mine" in table.names("task")


def test_unreadable_entry_points_are_reported(site: Path):
    install(site, "ldmkit-x", {}, {})
    (site / "ldmkit_x-0.1.dist-info" / "entry_points.txt").write_bytes(b"[ldmkit]\nmain = \xff\xfe\n")
    table = Registry()
    with pytest.warns(LdmkitPluginWarning, match="cannot be read"):
        assert table.names("task") == sorted(builtin.TABLE["task"])
    assert row(table, "ldmkit-x").status == "failed"


def test_unreadable_metadata_is_reported_under_the_name_of_its_folder(site: Path):
    install(site, "ldmkit-x", {"x_light": offer("mine", "a:B", "task")})
    (site / "ldmkit_x-0.1.dist-info" / "METADATA").write_bytes(b"Name: b\xff\nVersion: 0.1\n")
    table = Registry()
    with pytest.warns(LdmkitPluginWarning, match="ldmkit-x 0.1.*cannot be read"):
        assert table.names("task") == sorted(builtin.TABLE["task"])
    assert row(table, "ldmkit-x").status == "failed"


def test_distribution_without_metadata_still_works(site: Path):
    install(site, "ldmkit-x", {"x_light": offer("mine", "somewhere:Thing", "task")})
    (site / "ldmkit_x-0.1.dist-info" / "METADATA").unlink()
    assert "mine" in Registry().names("task")


def test_identical_entry_points_count_once(site: Path):
    install(site, "ldmkit-x", {"x_light": offer("mine", "a:B", "task")}, "main = x_light\nmain = x_light\n")
    assert "mine" in Registry().names("task")


def test_two_entry_points_of_one_distribution_may_not_offer_the_same(site: Path):
    install(site, "ldmkit-x", {"x_light": offer("mine", "a:B", "task")}, {"a": "x_light", "b": "x_light"})
    table = Registry()
    with pytest.warns(LdmkitPluginWarning, match="another entry point of the same distribution"):
        assert "mine" in table.names("task")
    assert [info.status for info in table.plugins() if info.distribution == "ldmkit-x"] == ["ok", "failed"]


def test_the_first_of_two_copies_on_the_path_counts(site: Path, tmp_path_factory: pytest.TempPathFactory):
    install(site, "ldmkit-x", {"x_light": offer("mine", "a:B", "task")}, version="2.0")
    other = tmp_path_factory.mktemp("other")
    install(other, "ldmkit_x", {"x_light": offer("old", "a:B", "task")}, version="1.0")
    sys.path.append(str(other))
    try:
        table = Registry()
        assert row(table, "ldmkit-x").version == "2.0"
    finally:
        sys.path.remove(str(other))


# One name from two distributions


@pytest.fixture
def rivals(site: Path) -> Registry:
    """Two distributions that offer the conditioner depth-map."""
    for name in ("a", "b"):
        light, heavy = f"light_{name}", f"heavy_{name}"
        install(site, f"LDMKit_{name}", {light: offer("depth-map", f"{heavy}:DepthMap"), heavy: DEPTH})
    return Registry()


def test_shared_name_is_listed_for_each_owner(rivals: Registry):
    assert [name for name in rivals.names("conditioner") if "depth-map" in name] == [
        "depth-map@ldmkit-a",
        "depth-map@ldmkit-b",
    ]


@pytest.mark.parametrize("ask", [Registry.build, Registry.describe])
def test_shared_name_is_ambiguous(rivals: Registry, ask: Callable[[Registry, str, str], object]):
    with pytest.raises(AmbiguousComponentError, match="'depth-map@ldmkit-a' or 'depth-map@ldmkit-b'"):
        ask(rivals, "conditioner", "depth-map")


@pytest.mark.parametrize("owner", ["ldmkit-b", "LDMKit_B", "ldmkit.b"])
def test_qualified_name_is_never_ambiguous(rivals: Registry, owner: str):
    assert type(rivals.build("conditioner", f"depth-map@{owner}")).__module__ == "heavy_b"
    assert rivals.describe("conditioner", f"depth-map@{owner}").distribution == "ldmkit-b"


def test_every_listed_name_can_be_asked_for(rivals: Registry):
    for name in rivals.names("conditioner"):
        if "depth-map" in name:
            assert rivals.describe("conditioner", name).name == "depth-map"


def test_builtins_have_qualified_names(site: Path):
    assert Registry().describe("sampler", "ddim@ldmkit") == Registry().describe("sampler", "ddim")


def test_wrong_owner_is_told_the_right_one(depth: Registry):
    with pytest.raises(UnknownComponentError, match="there is 'depth-map@ldmkit-depth'"):
        depth.build("conditioner", "depth-map@ldmkit-deep")


def test_absent_owner_is_said(site: Path):
    with pytest.raises(UnknownComponentError, match="no plug-in of distribution 'ldmkit-depth' is installed"):
        Registry().build("conditioner", "depth-map@ldmkit-depth")
    with pytest.raises(UnknownComponentError, match=r"call ldmkit\.register first"):
        Registry().build("conditioner", "depth-map@<local>")


def test_near_name_is_suggested_although_it_is_shared(rivals: Registry):
    with pytest.raises(UnknownComponentError, match=r"did you mean 'depth-map'\?"):
        rivals.build("conditioner", "depht-map")


# The environment


def test_only_the_plugins_named_are_loaded(rivals: Registry, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LDMKIT_PLUGINS", " Ldmkit_A ,")
    assert [name for name in rivals.names("conditioner") if "depth-map" in name] == ["depth-map"]
    assert row(rivals, "ldmkit-b") == PluginInfo(
        "ldmkit-b", "0.1", "main", "disabled", error="not named in LDMKIT_PLUGINS"
    )
    assert "light_b" not in sys.modules


def test_an_empty_list_loads_no_plugin_but_the_builtins(depth: Registry, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LDMKIT_PLUGINS", "")
    assert depth.names("conditioner") == sorted(builtin.TABLE["conditioner"])


def test_disabled_plugins_are_not_imported_and_are_named(rivals: Registry, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LDMKIT_DISABLE", "ldmkit.a,ldmkit-b")
    with pytest.raises(UnknownComponentError, match=r"disabled plug-ins.*ldmkit-a 0\.1.*named in LDMKIT_DISABLE"):
        rivals.build("conditioner", "depth-map")
    assert not {"light_a", "light_b"} & sys.modules.keys()


def test_builtins_cannot_be_disabled(site: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LDMKIT_DISABLE", "ldmkit")
    monkeypatch.setenv("LDMKIT_PLUGINS", "")
    assert Registry().names("sampler") == sorted(builtin.TABLE["sampler"])


def test_a_plugin_named_but_not_installed_is_reported(site: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LDMKIT_PLUGINS", "ldmkit,ldmkit-dept")
    table = Registry()
    with pytest.warns(LdmkitPluginWarning, match="plug-in ldmkit-dept is skipped: LDMKIT_PLUGINS names"):
        assert [info.status for info in table.plugins() if info.distribution.startswith("ldmkit-dep")] == ["failed"]


# Registering by hand


def test_local_component_is_built_and_owned_by_local(site: Path):
    table = Registry()
    table.register("conditioner", "fixed", Fixed)
    assert table.build("conditioner", "fixed", size=3).size == 3
    assert table.build("conditioner", "fixed@<local>").size == 1
    assert table.describe("conditioner", "fixed").distribution == "<local>"


def test_running_a_cell_again_replaces(site: Path):
    table = Registry()
    for size in (1, 2):
        cell: dict[str, type] = {}
        exec(f"class Mine:\n    __module__ = '__main__'\n    size = {size}", cell)
        table.register("task", "mine", cell["Mine"])
    assert table.build("task", "mine").size == 2


@pytest.mark.parametrize("other", ["elsewhere:Fixed", functools.partial(Fixed, 2)], ids=["lazy", "object"])
def test_replacing_another_factory_must_be_said(site: Path, other: registry.Factory):
    table = Registry()
    table.register("task", "mine", functools.partial(Fixed, 1))
    with pytest.raises(PluginError, match="replace=True"):
        table.register("task", "mine", other)
    table.register("task", "mine", other, replace=True)
    assert table.components("task")["mine"].factory is other


@pytest.mark.parametrize("replace", [False, True])
def test_builtin_names_are_reserved(site: Path, replace: bool):
    with pytest.raises(ReservedNameError, match="sampler 'ddim'"):
        Registry().register("sampler", "ddim", Fixed, replace=replace)


@pytest.mark.parametrize(
    ("kind", "name", "factory"),
    [("samplers", "x", Fixed), ("sampler", "X", Fixed), ("sampler", "x@y", Fixed), ("sampler", "x", "nowhere")],
)
def test_malformed_registrations_are_refused(site: Path, kind: str, name: str, factory: registry.Factory):
    with pytest.raises(PluginError):
        Registry().register(kind, name, factory)


def test_local_component_does_not_hide_a_plugin(depth: Registry):
    depth.register("conditioner", "depth-map", Fixed)
    with pytest.raises(AmbiguousComponentError, match="'depth-map@<local>' or 'depth-map@ldmkit-depth'"):
        depth.build("conditioner", "depth-map")


def test_the_functions_of_the_module_share_one_registry():
    class Mine:
        """Of this test."""

    registry.register("task", "of-a-test", Mine)
    assert "of-a-test" in ldmkit.names("task")
    assert isinstance(ldmkit.build("task", "of-a-test"), Mine)
    assert registry.build_part("task", Part("of-a-test")) is not None
    assert registry.components("task")["of-a-test"].version == ""
    assert registry.describe("task", "of-a-test").summary == "Of this test."
    assert registry.find("task", Mine) == ["of-a-test@<local>"]
    assert registry.plugins()[0].distribution == "ldmkit"


# Building


def test_options_reach_the_factory(depth: Registry):
    assert depth.build("conditioner", "depth-map", factor=4).factor == 4


def test_unknown_option_says_what_the_component_takes(depth: Registry):
    expected = (
        "unknown option 'factr' for conditioner 'depth-map' (ldmkit-depth 0.1); it takes (factor: int = 8); "
        "did you mean 'factor'?"
    )
    with pytest.raises(OptionError, match=f"^{re.escape(expected)}$") as caught:
        depth.build("conditioner", "depth-map", factr=4)
    assert isinstance(caught.value, TypeError)


def test_missing_option_says_what_to_give(site: Path):
    table = Registry()
    table.register("task", "mine", lambda width, *, depth, height=1: None)
    with pytest.raises(
        OptionError, match=r"missing option 'width', 'depth' for task 'mine' .*: give width=\.\.\., depth"
    ):
        table.build("task", "mine", height=2)


def test_options_may_have_any_name(site: Path):
    table = Registry()
    table.register("task", "mine", lambda kind, name, self, options: [kind, name, self, options])
    assert table.build("task", "mine", kind=1, name=2, self=3, options=4) == [1, 2, 3, 4]


def test_a_factory_with_open_keywords_judges_them_itself(site: Path):
    table = Registry()
    table.register("task", "mine", dict)
    assert table.build("task", "mine", anything=1) == {"anything": 1}


def test_what_a_constructor_raises_passes_with_a_note(site: Path):
    table = Registry()
    table.register("task", "fixed", Fixed)
    with pytest.raises(ValueError, match="must not be negative") as caught:
        table.build("task", "fixed", size=-1)
    assert not isinstance(caught.value, LdmkitError)
    assert caught.value.__notes__ == ["while building task 'fixed' (<local>)"]


@pytest.mark.parametrize(
    ("heavy", "reason"),
    [
        ("import no_such_module_anywhere", "No module named 'no_such_module_anywhere'"),
        ("raise SystemExit(2)", "SystemExit: 2"),
        ("", "no attribute 'DepthMap'"),
        ("DepthMap = 3", "is int, which cannot be called"),
    ],
)
@pytest.mark.parametrize("ask", [Registry.build, Registry.describe])
def test_component_that_cannot_be_imported_is_named(
    depth: Registry, site: Path, ask: Callable[[Registry, str, str], object], heavy: str, reason: str
):
    (site / "depth_heavy.py").write_text(heavy)
    with pytest.raises(FactoryError) as caught:
        ask(depth, "conditioner", "depth-map")
    assert str(caught.value).startswith("conditioner 'depth-map' (ldmkit-depth 0.1)")
    assert reason in str(caught.value)
    assert (caught.value.__cause__ is None) == ("cannot be called" in reason)


# Describing


def test_description_tells_options_purpose_source_and_owner(depth: Registry, site: Path):
    found = depth.describe("conditioner", "depth-map")
    assert (found.kind, found.name, found.signature) == ("conditioner", "depth-map", "(factor: int = 8)")
    assert found.summary == "Pools a depth map."
    assert (found.file, found.line) == (str(site / "depth_heavy.py"), 2)
    assert (found.distribution, found.version, found.factory) == ("ldmkit-depth", "0.1", "depth_heavy:DepthMap")
    for word in ("'depth-map' (ldmkit-depth 0.1)", "(factor: int = 8)", "Pools a depth map.", "depth_heavy.py:2"):
        assert word in str(found)


def test_description_needs_neither_source_nor_docstring(site: Path):
    table = Registry()
    table.register("task", "mine", type("Mine", (), {"__module__": "nowhere"}))
    found = table.describe("task", "mine")
    assert (found.signature, found.summary, found.file, found.line) == ("()", "", None, None)
    assert "unknown" in str(found)


def test_docstring_of_a_base_class_is_not_the_summary(site: Path):
    class Child(Fixed):
        pass

    table = Registry()
    table.register("task", "child", Child)
    assert table.describe("task", "child").summary == ""


# Origins


def test_origin_tells_who_built_an_object(depth: Registry):
    built = depth.build("conditioner", "depth-map", factor=4)
    expected = registry.Origin(
        "conditioner", "depth-map", "ldmkit-depth", "0.1", Part("depth-map@ldmkit-depth", {"factor": 4}, "conditioner")
    )
    assert origin(built) == expected
    assert expected.qualified == "depth-map@ldmkit-depth"


def test_origin_survives_copies_and_pickles(site: Path):
    table = Registry()
    table.register("task", "fixed", Fixed)
    built = table.build("task", "fixed", size=2)
    for copied in (copy.copy(built), copy.deepcopy(built), pickle.loads(pickle.dumps(built))):
        assert origin(copied) == origin(built)
        assert copied.size == 2


def test_origin_is_recorded_on_frozen_objects(site: Path):
    @dataclass(frozen=True)
    class Frozen:
        eta: float = 0.0

    table = Registry()
    table.register("sampler", "frozen", Frozen)
    built = table.build("sampler", "frozen", eta=1.0)
    assert origin(built).part == Part("frozen@<local>", {"eta": 1.0}, "sampler")
    assert built == Frozen(1.0)


def test_objects_without_room_have_no_origin(site: Path):
    @dataclass(frozen=True, slots=True)
    class Slotted:
        eta: float = 0.0

    table = Registry()
    table.register("sampler", "slotted", Slotted)
    assert origin(table.build("sampler", "slotted")) is None
    assert origin(Fixed()) is None


def test_a_wrapper_does_not_inherit_the_origin(site: Path):
    class Wrapper:
        def __init__(self, inner: object) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> object:
            return getattr(self.inner, name)

    table = Registry()
    table.register("task", "fixed", Fixed)
    assert origin(Wrapper(table.build("task", "fixed"))) is None


def test_a_part_rebuilds_what_was_built_from_built_parts(site: Path):
    table = Registry()
    table.register("task", "fixed", Fixed)
    table.register("backbone", "inner", Fixed)
    built = table.build("task", "fixed", size=2, inner=[table.build("backbone", "inner", size=5), {"k": (1, 2)}])
    part = origin(built).part
    assert part == Part(
        "fixed@<local>", {"size": 2, "inner": [Part("inner@<local>", {"size": 5}, "backbone"), {"k": [1, 2]}]}, "task"
    )
    again = table.build_part("task", Part.from_json(part.to_json()))
    assert (again.size, again.inner[0].size, again.inner[1]) == (2, 5, {"k": [1, 2]})
    assert origin(again).part == part


def test_options_that_are_no_data_leave_no_part(site: Path):
    table = Registry()
    table.register("task", "fixed", Fixed)
    made = origin(table.build("task", "fixed", inner=Fixed()))
    assert made is not None
    assert made.part is None


# Parts and classes


def test_nested_part_must_say_its_kind(site: Path):
    table = Registry()
    table.register("task", "fixed", Fixed)
    with pytest.raises(OptionError, match="nested part 'fixed' does not say its kind"):
        table.build_part("task", Part("fixed", {"inner": Part("fixed")}))


def test_part_of_another_kind_is_refused(site: Path):
    with pytest.raises(OptionError, match="is a task, but a sampler is wanted"):
        Registry().build_part("sampler", Part("fixed", kind="task"))


def test_part_with_an_unknown_option_is_refused(depth: Registry):
    with pytest.raises(OptionError, match="factr"):
        depth.build_part("conditioner", Part("depth-map", {"factr": 1}))


def test_a_class_is_found_without_importing_a_factory(depth: Registry):
    stand_in = type("DepthMap", (), {"__module__": "depth_heavy"})
    assert depth.find("conditioner", stand_in) == ["depth-map@ldmkit-depth"]
    assert depth.find("backbone", stand_in) == []
    assert "depth_heavy" not in sys.modules


def test_a_class_offered_under_two_names_has_both(site: Path):
    table = Registry()
    table.register("task", "one", Fixed)
    table.register("task", "two", Fixed)
    assert table.find("task", Fixed) == ["one@<local>", "two@<local>"]


def test_a_class_offered_under_a_shorter_path_is_found(site: Path):
    install(
        site,
        "ldmkit-x",
        {"x_light": offer("mine", "x_public:DepthMap"), "x_public": "from x_deep import DepthMap", "x_deep": DEPTH},
    )
    table = Registry()
    assert table.find("conditioner", type(table.build("conditioner", "mine"))) == ["mine@ldmkit-x"]
