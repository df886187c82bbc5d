"""Every command, in any order, against a model of the registry in memory: exit codes, names, what is served."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from typer.testing import CliRunner

from gates.records import Evidence
from registry import garbage, gc
from registry.cli import app
from registry.store import Store
from tests.faults import scenarios
from tests.faults.conftest import ALL
from tests.support import faults, invariants, stores

NAMES = st.sampled_from(["a", "b", "c"])
CHANNELS = st.sampled_from(["best", "next"])
SEEDS = st.sampled_from([0, 1])

Content = tuple[object, ...]
"""What a candidate is made from: ("add", seed) or ("derive", what from, template)."""


@dataclass(frozen=True)
class Served:
    number: int
    name: str
    content: Content
    restores: int | None = None


@dataclass
class Model:
    """The registry as a user thinks of it."""

    names: dict[str, Content] = field(default_factory=dict)
    evidence: dict[Content, set[int]] = field(default_factory=dict)
    """How many answers of ten were right, each time that it was observed."""
    judged: dict[Content, set[int]] = field(default_factory=dict)
    """The evidence that the newest verdict rests on."""
    channels: dict[str, list[Served]] = field(default_factory=dict)

    def serves(self, name: str) -> bool:
        return any(history[-1].name == name for history in self.channels.values())

    def passes(self, content: Content) -> bool:
        seen = self.evidence.get(content, set())
        return bool(seen) and self.judged.get(content) == seen and min(seen) >= 5

    def make(self, name: str, content: Content, *, replace: bool = False) -> int:
        """The exit code of making `name`, which is done if it is 0."""
        if name in self.channels:
            return 2
        if self.names.get(name, content) != content and (not replace or self.serves(name)):
            return 2
        self.names[name] = content
        return 0

    def needed(self, name: str) -> bool:
        content = self.names[name]
        if self.serves(name):
            return True
        for history in self.channels.values():
            if any((each.name, each.content) == (name, content) for each in history):
                return True
        others = {other: what for other, what in self.names.items() if other != name}
        return content not in others.values() and any(_parent(what) == content for what in others.values())

    def reachable(self) -> set[Content]:
        found = {*self.names.values(), *(each.content for history in self.channels.values() for each in history)}
        while more := {parent for each in found if (parent := _parent(each)) is not None} - found:
            found |= more
        return found


class Commands(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")  # noqa: S108 - the folder itself gets a random name
        self.folder = Path(tempfile.mkdtemp(prefix="sluice-", dir=memory if memory.is_dir() else None))
        self.root = self.folder / "models"
        self.model = Model()
        self.digests: dict[Content, str] = {}
        assert self.run("init") == 0

    def teardown(self) -> None:
        invariants.check(self.root)
        shutil.rmtree(self.folder)

    def run(self, *words: object) -> int:
        self.result = CliRunner().invoke(app, [*map(str, words), "--root", str(self.root)])
        assert self.result.exception is None or isinstance(self.result.exception, SystemExit), self.result
        faults.count_fault()
        return self.result.exit_code

    @rule(name=NAMES | CHANNELS, seed=SEEDS, replace=st.booleans())
    def add(self, name: str, seed: int, replace: bool) -> None:
        expected = self.model.make(name, ("add", seed), replace=replace)
        source = scenarios.source("toy", seed=seed)
        assert self.run("add", name, source, *["--replace"] * replace) == expected, self.result.stderr

    @rule(source=NAMES | CHANNELS, name=NAMES, template=st.sampled_from(["x", "y"]))
    def derive(self, source: str, name: str, template: str) -> None:
        path = self.folder / "template.jinja"
        path.write_text(template)
        content = self._content(source)
        same = content is None or _template(content) == template
        expected = 2 if content is None or same else self.model.make(name, ("derive", content, template))
        assert self.run("derive", source, name, "--replace", f"chat_template.jinja={path}") == expected, (
            self.result.stderr
        )

    @precondition(lambda self: self.model.names)
    @rule(data=st.data(), right=st.sampled_from([8, 9, 1, 2]))
    def observe(self, data: st.DataObject, right: int) -> None:
        """Evidence comes from a stage. All that is known of one candidate is good, or all is bad."""
        name = data.draw(st.sampled_from(sorted(self.model.names)))
        seen = self.model.evidence.setdefault(self.model.names[name], set())
        if all((each >= 5) == (right >= 5) for each in seen):
            stores.observe(Store.open(self.root), name, right=right)
            seen.add(right)

    @rule(name=NAMES)
    def gate(self, name: str) -> None:
        content = self.model.names.get(name)
        seen = self.model.evidence.get(content or (), set())
        expected = 2 if content is None else 3 if not seen else 0 if min(seen) >= 5 else 1
        assert self.run("gate", name, "--policy", scenarios.policy_file()) == expected, self.result.stdout
        if content is not None:
            self.model.judged[content] = set(seen)

    @rule(name=NAMES, channel=CHANNELS | NAMES, override=st.booleans(), reason=st.booleans())
    def promote(self, name: str, channel: str, override: bool, reason: bool) -> None:
        content = self.model.names.get(name)
        allowed = content is not None and (self.model.passes(content) or (override and reason))
        expected = 0 if allowed and channel not in self.model.names else 2
        words = ["--override"] * override + ["--reason", "because"] * reason
        policy = ["--policy", scenarios.policy_file()]
        assert self.run("promote", name, "--channel", channel, *policy, *words) == expected, self.result.stderr
        if expected == 0 and content is not None:
            self._promoted(channel, Served(self._next(channel), name, content))

    @rule(channel=CHANNELS)
    def rollback(self, channel: str) -> None:
        history = self.model.channels.get(channel, [])
        earlier = None
        if history:
            since = history[-1].restores or history[-1].number
            before = [each for each in history if each.number < since and each.content != history[-1].content]
            earlier = before[-1] if before else None
        kept = earlier is not None and self.model.names.get(earlier.name) == earlier.content
        assert self.run("rollback", "--channel", channel) == (0 if kept else 2), self.result.stderr
        if kept and earlier is not None:
            self._promoted(channel, Served(self._next(channel), earlier.name, earlier.content, earlier.number))

    @rule(name=NAMES)
    def rm(self, name: str) -> None:
        expected = 0 if name in self.model.names and not self.model.needed(name) else 2
        assert self.run("rm", name) == expected, self.result.stderr
        if expected == 0:
            del self.model.names[name]

    @rule()
    def collect(self) -> None:
        """As after a day without anybody at work: what nothing needs is gone, and all else is there."""
        gc.collect(Store.open(self.root), grace=0, now=time.time() + garbage.DAY)
        store, needed = Store.open(self.root), self.model.reachable()
        for content, digest in self.digests.items():
            there = store.layout.manifest(digest).exists()
            assert there or content not in needed, "gc took what is needed"
            if not there:
                self.model.evidence.pop(content, None)
                self.model.judged.pop(content, None)

    @rule(words=st.sampled_from([["log", "--verify"], ["verify", "--all"], ["df"], ["gc", "--dry-run"], ["log"]]))
    def look(self, words: list[str]) -> None:
        before = self._files()
        assert self.run(*words) == 0, self.result.stderr
        assert self._files() == before, "looking changes nothing"

    @rule(name=NAMES | CHANNELS)
    def path(self, name: str) -> None:
        content = self._content(name)
        assert self.run("path", name) == (2 if content is None else 0)
        if content is not None:
            store = Store.open(self.root)
            assert Path(self.result.stdout.strip()).parent.name in store.names()
            self._learn(content, store.candidate(name).digest)

    @invariant()
    def what_is_listed_is_what_there_is(self) -> None:
        assert self.run("ls", "--json") == 0, self.result.stderr
        listed = json.loads(self.result.stdout)
        assert sorted(each["name"] for each in listed) == sorted(self.model.names)
        store = Store.open(self.root)
        for name, content in self.model.names.items():
            digest = store.candidate(name).digest
            self._learn(content, digest)
            assert _rights(store.evidence(digest)) == self.model.evidence.get(content, set())
        for channel, history in self.model.channels.items():
            link = store.layout.channel(channel)
            assert str(link.readlink()) == f"../candidates/{history[-1].name}/model"
            assert store.candidate(channel).digest == self.digests[history[-1].content]

    def _content(self, name: str) -> Content | None:
        history = self.model.channels.get(name)
        return history[-1].content if history else self.model.names.get(name)

    def _next(self, channel: str) -> int:
        return len(self.model.channels.get(channel, [])) + 1

    def _promoted(self, channel: str, served: Served) -> None:
        """What is served already on the same verdict is found promoted."""
        history = self.model.channels.setdefault(channel, [])
        stated = json.loads((self.root / "generations" / channel / f"{len(history) or 1:08d}.json").read_bytes())
        newer = self.root / "generations" / channel / f"{len(history) + 1:08d}.json"
        if newer.exists():
            history.append(served)
        else:
            assert (history[-1].name, history[-1].content) == (served.name, served.content), stated

    def _learn(self, content: Content, digest: str) -> None:
        """The same work has the same identity, always."""
        assert self.digests.setdefault(content, digest) == digest

    def _files(self) -> set[str]:
        return {path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if "locks" not in path.parts}


def _parent(content: Content) -> Content | None:
    parent = content[1]
    return parent if isinstance(parent, tuple) else None


def _template(content: Content) -> str | None:
    return str(content[2]) if content[0] == "derive" else None


def _rights(evidence: dict[str, Evidence]) -> set[int]:
    return {round(each.totals.overall.points) for each in evidence.values()}


def test_every_command_does_what_the_model_says():
    for seed in (0, 1):
        scenarios.source("toy", seed=seed)
    run_state_machine_as_test(
        Commands,
        settings=settings(
            max_examples=60 if ALL else 4,
            stateful_step_count=40 if ALL else 25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
