"""Promotion: nothing is served that did not pass, but by an override that says so; history is serial and kept."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from gates import canonical
from gates.errors import IntegrityError, UsageError
from gates.policy import Policy
from registry import channels, fs, generations, judging, naming, promotion
from registry.generations import Generation
from registry.store import Store
from tests.support import invariants, stores
from tests.support.processes import KILLED, dying_at, end, start, together


@pytest.fixture
def policy(tmp_path) -> Path:
    return stores.write_policy(tmp_path / "floor.yaml", at_least=50)


@pytest.fixture
def text(policy) -> Policy:
    return judging.read_policy(policy)


@pytest.fixture
def other(tmp_path) -> Policy:
    return judging.read_policy(stores.write_policy(tmp_path / "strict.yaml", at_least=80))


@pytest.fixture
def store(tmp_path, policy) -> Store:
    """One candidate that passes, another that passes, one that fails, one that nobody judged."""
    store = Store.init(tmp_path / "models")
    for seed, (name, right) in enumerate({"good": 9, "fine": 8, "bad": 1}.items()):
        stores.add(store, name, tmp_path, seed=seed)
        stores.judge(store, name, policy, right=right)
    stores.add(store, "unknown", tmp_path, seed=9)
    return store


def link(store: Store, channel: str = "best") -> str:
    return str(store.layout.channel(channel).readlink())


def history(store: Store, channel: str = "best") -> list[str]:
    return [each.candidate for each in generations.kept(store.layout, channel)]


# The rules


def test_a_candidate_with_a_pass_is_promoted_and_its_channel_is_a_folder_that_loads(store, text):
    generation = promotion.promote(store, "good", policy=text)
    assert (generation.number, generation.candidate, generation.override) == (1, "good", False)
    assert link(store) == "../candidates/good/model"
    assert (store.layout.channel("best") / "config.json").is_file()
    assert store.candidate("best") == store.candidate("good")
    assert generations.current(store.layout, "best") == generation
    assert generations.served(store.layout) == {"best": "good"}
    invariants.check(store.layout.root)


@pytest.mark.parametrize(("name", "says"), [("bad", "is FailToolcall"), ("unknown", "has no verdict")])
def test_a_candidate_without_a_pass_is_refused_with_its_verdict_and_the_command_to_run(store, text, name, says):
    before = list(store.log.entries())
    with pytest.raises(UsageError) as caught:
        promotion.promote(store, name, policy=text)
    assert says in str(caught.value)
    assert f"registry gate {name} --policy" in str(caught.value)
    assert generations.kept(store.layout, "best") == []
    assert not store.layout.channel("best").is_symlink()
    assert list(store.log.entries()) == before


@pytest.mark.parametrize("name", ["bad", "unknown"])
def test_an_override_needs_a_reason_and_the_log_holds_it(store, text, name):
    for reason in (None, "", "  \n"):
        with pytest.raises(UsageError, match="needs a reason"):
            promotion.promote(store, name, policy=text, override=True, reason=reason)
    assert generations.kept(store.layout, "best") == []
    generation = promotion.promote(store, name, policy=text, override=True, reason="the demo is at nine")
    assert generation.override
    logged = store.log.newest("promotion", channel="best")
    assert (logged["override"], logged["reason"]) == (True, "the demo is at nine")
    assert logged["record"] == generation.identity()
    invariants.check(store.layout.root)


def test_to_override_what_has_a_pass_is_no_override(store, text):
    assert not promotion.promote(store, "good", policy=text, override=True, reason="just in case").override


def test_the_first_promotion_needs_a_policy_and_binds_the_channel_to_it(store, text):
    with pytest.raises(UsageError, match="has no policy yet"):
        promotion.promote(store, "good")
    first = promotion.promote(store, "good", policy=text)
    assert (first.policy_name, store.read(first.policy)) == (text.name, text.to_bytes())
    second = promotion.promote(store, "fine")
    assert (second.policy, second.replaces) == (first.policy, "good")


def test_another_policy_needs_a_reason_and_a_pass_of_its_own(store, text, other, tmp_path):
    promotion.promote(store, "good", policy=text)
    with pytest.raises(UsageError, match="bound to the policy floor"):
        promotion.promote(store, "fine", policy=other)
    with pytest.raises(UsageError, match="has no verdict"):
        promotion.promote(store, "fine", policy=other, reason="we grew up")
    judging.judge(store, "fine", policy=judging.read_policy(tmp_path / "strict.yaml"), baseline=None)
    bound = promotion.promote(store, "fine", policy=other, reason="we grew up")
    assert (bound.policy_name, bound.reason, bound.override) == ("strict", "we grew up", False)
    with pytest.raises(UsageError, match="under the policy strict"):
        promotion.promote(store, "good")


def test_a_pass_that_new_evidence_overtook_does_not_count(store, text):
    stores.observe(store, "good", right=2)
    with pytest.raises(UsageError, match="rests on all its evidence"):
        promotion.promote(store, "good", policy=text)


def test_a_pass_belongs_to_the_files_and_not_to_the_name(store, text, tmp_path):
    stores.add(store, "good", tmp_path, seed=5, replace=True)
    with pytest.raises(UsageError, match="has no verdict"):
        promotion.promote(store, "good", policy=text)


def test_what_is_served_is_found_promoted_when_it_is_promoted_again(store, text):
    first = promotion.promote(store, "good", policy=text)
    entries = list(store.log.entries())
    assert promotion.promote(store, "good", policy=text) == first
    assert promotion.promote(store, "good") == first
    assert promotion.promote(store, "best") == first
    assert list(store.log.entries()) == entries


def test_a_candidate_with_one_wrong_byte_is_never_served(store, text):
    candidate = store.candidate("good")
    blob = store.layout.blob(candidate.manifest.files["model.safetensors"].digest)
    blob.chmod(0o644)
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        promotion.promote(store, "good", policy=text, override=True, reason="it will be fine")
    assert generations.kept(store.layout, "best") == []


def test_channels_are_apart_and_share_no_name_with_a_candidate(store, text, tmp_path):
    promotion.promote(store, "good", policy=text)
    promotion.promote(store, "fine", channel="next", policy=text)
    assert generations.served(store.layout) == {"best": "good", "next": "fine"}
    with pytest.raises(UsageError, match="fine is a candidate"):
        promotion.promote(store, "good", channel="fine", policy=text)
    with pytest.raises(UsageError, match="best is the name of a channel"):
        stores.add(store, "best", tmp_path)
    for channel in ("../best", "", "-rf", "best\n"):
        with pytest.raises(UsageError, match="is not a name"):
            promotion.promote(store, "good", channel=channel, policy=text)


def test_what_a_channel_serves_cannot_be_replaced(store, text, tmp_path):
    promotion.promote(store, "good", policy=text)
    before = store.candidate("good")
    with pytest.raises(UsageError) as caught:
        stores.add(store, "good", tmp_path, seed=5, replace=True)
    assert "served by the channel best" in str(caught.value)
    assert "promote another candidate" in str(caught.value)
    assert store.candidate("good") == before
    promotion.promote(store, "fine")
    assert stores.add(store, "good", tmp_path, seed=5, replace=True) != before
    invariants.check(store.layout.root)


def test_a_registry_that_is_moved_still_serves(store, text, tmp_path):
    promotion.promote(store, "good", policy=text)
    store.layout.root.rename(tmp_path / "moved")
    assert (tmp_path / "moved/channels/best/model.safetensors").is_file()
    invariants.check(tmp_path / "moved")


# Rolling back


def test_a_rollback_serves_what_was_served_before_and_again_before_that(store, text, tmp_path, policy):
    stores.add(store, "old", tmp_path, seed=3)
    stores.judge(store, "old", policy)
    for name in ("old", "good", "fine"):
        promotion.promote(store, name, policy=text)
    assert promotion.rollback(store).candidate == "good"
    back = promotion.rollback(store)
    assert (back.number, back.candidate, back.restores, back.reason) == (5, "old", 1, "rollback to generation 1")
    assert (back.override, back.replaces) == (False, "good")
    assert link(store) == "../candidates/old/model"
    with pytest.raises(UsageError, match="served nothing else before"):
        promotion.rollback(store)
    assert promotion.rollback(store, to=3).candidate == "fine"
    assert promotion.rollback(store, to=3).number == 6
    assert history(store) == ["old", "good", "fine", "good", "old", "fine"]
    invariants.check(store.layout.root)


def test_a_rollback_that_cannot_be_is_refused(store, text, tmp_path):
    with pytest.raises(UsageError, match="no channel 'best'"):
        promotion.rollback(store)
    promotion.promote(store, "good", policy=text)
    with pytest.raises(UsageError, match="served nothing else before"):
        promotion.rollback(store)
    promotion.promote(store, "fine")
    for number in (0, -1, 3):
        with pytest.raises(UsageError, match=f"no generation {number}"):
            promotion.rollback(store, to=number)
    stores.add(store, "good", tmp_path, seed=5, replace=True)
    with pytest.raises(UsageError, match="was replaced since generation 1"):
        promotion.rollback(store)
    fs.remove_tree(store.layout.candidate("good"))
    with pytest.raises(UsageError, match="is gone"):
        promotion.rollback(store)
    assert history(store) == ["good", "fine"]


def test_a_rollback_to_an_override_is_one_itself(store, text):
    promotion.promote(store, "bad", policy=text, override=True, reason="nothing else yet")
    promotion.promote(store, "good")
    assert promotion.rollback(store).override
    invariants.check(store.layout.root)


# Interruptions


def _ready(root: Path, policy: Path) -> Store:
    """A registry of two candidates that pass, of few files, one of them served."""
    store = Store.init(root)
    for seed, name in enumerate(("good", "fine")):
        source = root.parent / f"source-{name}"
        store.add(name, stores.checkpoint(source, seed=seed, bare=True))
        stores.judge(store, name, policy)
    promotion.promote(store, "good", policy=judging.read_policy(policy))
    return store


def test_any_command_finishes_a_promotion_whose_process_was_killed(memory_path, policy, capsys):
    store = _ready(memory_path / "models", policy)
    for killed_at in range(1, 200):
        promotion.promote(store, "good")
        status = end(start(dying_at(killed_at, lambda: promotion.promote(store, "fine"))))
        Store.open(store.layout.root)
        newest = generations.current(store.layout, "best")
        assert link(store) == store.layout.channel_target(newest.candidate)
        assert store.log.newest("promotion", channel="best")["record"] == newest.identity()
        if status == 0:
            break
        assert status == KILLED
    assert "an interrupted promotion is finished" in capsys.readouterr().err
    invariants.check(store.layout.root)


def test_a_newest_generation_that_is_lost_is_refused_and_the_link_not_turned_back(store, text, capsys):
    promotion.promote(store, "good", policy=text)
    promotion.promote(store, "fine")
    lost = store.layout.generations("best") / "00000002.json"
    data = lost.read_bytes()
    lost.unlink()
    opened = Store.open(store.layout.root)
    assert link(store) == "../candidates/fine/model"
    assert "newest generation of best" in capsys.readouterr().err
    for refused in (
        lambda: promotion.promote(opened, "good"),
        lambda: promotion.rollback(opened),
        lambda: opened.candidate("best"),
        lambda: channels.verify(opened),
    ):
        with pytest.raises(IntegrityError, match="missing") as caught:
            refused()
        assert "--override --reason" in str(caught.value)
    lost.write_bytes(data)
    invariants.check(store.layout.root)
    assert opened.candidate("best").name == "fine"


def test_one_goes_on_from_a_lost_generation_by_an_override_with_a_reason(store, text, other):
    promotion.promote(store, "good", policy=text)
    promotion.promote(store, "fine")
    for generation in store.layout.generations("best").iterdir():
        generation.unlink()
    assert generations.channels(store.layout) == []
    with pytest.raises(IntegrityError, match="missing"):
        promotion.promote(store, "good", policy=other)
    with pytest.raises(IntegrityError, match="missing"):
        promotion.promote(store, "good", override=True)
    found = promotion.promote(store, "good", override=True, reason="the disk lost it")
    assert (found.number, found.replaces, found.policy_name) == (3, "fine", "floor")
    assert link(store) == "../candidates/good/model"
    channels.verify(store)
    assert promotion.promote(Store.open(store.layout.root), "fine").number == 4


def test_one_goes_on_from_a_newest_generation_that_is_garbage_by_the_commands_that_its_error_names(store, text):
    promotion.promote(store, "good", policy=text)
    promotion.promote(store, "fine")
    path = store.layout.generations("best") / "00000002.json"
    path.unlink()
    path.write_bytes(b"garbage")
    with pytest.raises(IntegrityError, match="generation 2 of best") as caught:
        promotion.promote(store, "good", override=True, reason="the disk lost it")
    assert f"mv {path} /somewhere/else" in str(caught.value)
    assert "registry promote NAME --channel best --override --reason" in str(caught.value)
    path.unlink()
    assert promotion.promote(store, "good", override=True, reason="the disk lost it").number == 3
    assert Store.open(store.layout.root).candidate("best").name == "good"


def test_a_generation_with_one_changed_letter_is_not_served(store, text):
    promotion.promote(store, "good", policy=text)
    path = store.layout.generations("best") / "00000001.json"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data.replace(b'"candidate":"good"', b'"candidate":"gooe"'))
    opened = Store.open(store.layout.root)
    assert "gooe" not in opened.names()
    with pytest.raises(IntegrityError, match="not the one that the log names"):
        opened.candidate("best")


def test_a_link_that_somebody_turned_is_turned_back(store, text):
    promotion.promote(store, "good", policy=text)
    for meddled in (lambda: fs.replace_link(store.layout.channel("best"), "../candidates/bad/model"), _unlink(store)):
        meddled()
        Store.open(store.layout.root)
        assert link(store) == "../candidates/good/model"


def _unlink(store: Store):
    return store.layout.channel("best").unlink


def test_a_served_candidate_that_was_removed_is_restored_from_its_manifest(store, text):
    promotion.promote(store, "good", policy=text)
    before = store.candidate("good")
    fs.remove_tree(store.layout.candidate("good"))
    invariants.check(store.layout.root)
    assert store.candidate("good") == before


def test_a_channel_that_is_damaged_keeps_nobody_from_the_others(store, text, capsys):
    promotion.promote(store, "good", policy=text)
    promotion.promote(store, "fine", channel="next", policy=text)
    manifest = store.layout.manifest(store.candidate("good").digest)
    manifest.unlink()
    opened = Store.open(store.layout.root)
    assert "channel best is damaged" in capsys.readouterr().err
    assert opened.candidate("next").name == "fine"
    assert promotion.promote(opened, "fine").number == 2
    assert link(store) == "../candidates/fine/model"


# Several at once


def test_eight_promoters_at_once_leave_a_serial_history(store, text):
    promotion.promote(store, "good", policy=text)

    def promote(name: str) -> None:
        for _ in range(3):
            promotion.promote(Store.open(store.layout.root), name)

    assert together([lambda name=name: promote(name) for name in ("good", "fine") * 4]) == [0] * 8
    names = history(store)
    assert len(names) > 2
    assert all(name != before for name, before in zip(names[1:], names, strict=False)), "each one changed something"
    invariants.check(store.layout.root)


def test_promoters_at_once_leave_a_serial_history_even_where_locks_do_not_lock(store, text, monkeypatch):
    monkeypatch.setattr(Store, "locked", lambda *_, **__: contextlib.nullcontext())
    promotion.promote(store, "good", policy=text)
    names = ("good", "fine") * 4
    works = [lambda name=name: [promotion.promote(store, name) for _ in range(3)] for name in names]
    assert together(works) == [0] * 8
    invariants.check(store.layout.root)


def test_a_slow_promoter_does_not_turn_the_link_back(store, text, monkeypatch):
    promotion.promote(store, "bad", policy=text, override=True, reason="to begin with")
    replace_link = fs.replace_link

    def overtaken(path: Path, target: str) -> None:
        monkeypatch.setattr(fs, "replace_link", replace_link)
        promotion.promote(store, "good")
        replace_link(path, target)

    monkeypatch.setattr(fs, "replace_link", overtaken)
    promotion.promote(store, "fine")
    assert history(store) == ["bad", "fine", "good"]
    assert link(store) == "../candidates/good/model"
    invariants.check(store.layout.root)


def test_a_replacement_that_a_promotion_overtakes_is_taken_back(store, text, tmp_path, monkeypatch):
    monkeypatch.setattr(Store, "locked", lambda *_, **__: contextlib.nullcontext())
    before, exchange = store.candidate("good"), fs.exchange

    def overtaken(mine: Path, theirs: Path) -> None:
        monkeypatch.setattr(fs, "exchange", exchange)
        promotion.promote(store, "good", policy=text)
        exchange(mine, theirs)

    monkeypatch.setattr(fs, "exchange", overtaken)
    with pytest.raises(UsageError, match="served by the channel best"):
        stores.add(store, "good", tmp_path, seed=5, replace=True)
    assert store.candidate("good") == before
    invariants.check(store.layout.root)


def test_a_promotion_that_a_replacement_overtakes_puts_its_candidate_back(store, text, tmp_path, monkeypatch):
    monkeypatch.setattr(Store, "locked", lambda *_, **__: contextlib.nullcontext())
    stores.add(store, "other", tmp_path, seed=5)
    before, create = store.candidate("good"), channels.create

    def overtaken(store: Store, generation: Generation) -> bool:
        done = create(store, generation)
        naming.restore(store, "good", store.candidate("other").digest)
        return done

    monkeypatch.setattr(promotion, "create", overtaken)
    promotion.promote(store, "good", policy=text)
    assert store.candidate("good") == before
    invariants.check(store.layout.root)


def test_a_loader_in_the_middle_of_promotions_always_finds_a_whole_model(store, text):
    promotion.promote(store, "good", policy=text)
    wanted = {store.candidate(name).folder.resolve(): store.candidate(name).manifest for name in ("good", "fine")}
    done = store.layout.root / ".done"

    def load() -> None:
        while not done.exists():
            folder = store.layout.channel("best").resolve(strict=True)
            for name, file in wanted[folder].files.items():
                assert canonical.digest((folder / name).read_bytes()) == file.digest

    loader = start(load)
    for number in range(40):
        promotion.promote(store, ("fine", "good")[number % 2])
    done.touch()
    assert end(loader) == 0


@pytest.mark.parametrize("locks", ["that lock", "that do not"])
def test_a_replacement_and_a_promotion_at_once_never_serve_what_was_not_judged(
    store, text, tmp_path, monkeypatch, locks
):
    if locks == "that do not":
        monkeypatch.setattr(Store, "locked", lambda *_, **__: contextlib.nullcontext())
    judged = store.candidate("fine").digest
    promotion.promote(store, "good", policy=text)
    source = stores.checkpoint(tmp_path / "unjudged", seed=7)

    def replace() -> None:
        with contextlib.suppress(UsageError):
            store.add("fine", source, replace=True)

    def promote() -> None:
        with contextlib.suppress(UsageError):
            promotion.promote(store, "fine")

    for _ in range(12):
        assert together([replace, promote]) == [0, 0]
        invariants.check(store.layout.root)
        if generations.served(store.layout)["best"] == "fine":
            assert store.candidate("fine").digest == judged
        promotion.promote(store, "good")
        naming.restore(store, "fine", judged)


# Records


def test_a_generation_that_was_changed_or_moved_is_found(store, text):
    promotion.promote(store, "good", policy=text)
    promotion.promote(store, "fine")
    folder = store.layout.generations("best")
    first, second = folder / "00000001.json", folder / "00000002.json"
    data = first.read_bytes()
    second.unlink()
    second.write_bytes(data)
    with pytest.raises(IntegrityError, match="does not belong"):
        generations.current(store.layout, "best")
    first.unlink()
    first.write_bytes(data + b"\n")
    with pytest.raises(IntegrityError, match="canonical"):
        generations.kept(store.layout, "best")


def test_leftovers_of_writers_that_were_killed_do_not_disturb(store, text):
    promotion.promote(store, "good", policy=text)
    for folder in (*store.layout.folders(), store.layout.generations("best")):
        (folder / ".tmp-0123456789abcdef").write_bytes(b"half a rec")
    invariants.check(store.layout.root)
    assert promotion.promote(store, "fine").number == 2
    assert generations.served(store.layout) == {"best": "fine"}


def test_an_empty_folder_of_generations_is_no_channel(store, text):
    fs.make_folders(store.layout.generations("best"))
    assert generations.current(store.layout, "best") is None
    assert generations.channels(store.layout) == []
    assert promotion.promote(store, "good", policy=text).number == 1


def test_the_generation_of_format_1_still_reads_and_writes_as_the_same_bytes(project):
    data = (project / "tests/golden/format1/generation.json").read_bytes()
    generation = Generation.from_bytes(data)
    assert generation.to_bytes() == data
    assert (generation.number, generation.restores, generation.policy_name) == (42, 17, "agentic")
    assert generation.model_extra == {"a field of tomorrow": [1, {"kept": True}]}
