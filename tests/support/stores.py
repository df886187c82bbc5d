"""Small registries for tests: tiny candidates, and evidence enough to judge them by."""

from __future__ import annotations

from pathlib import Path

from gates import canonical
from gates.policy import Policy
from gates.records import Evidence, Verdict
from registry import judging
from registry.manifests import File, Inputs, MixUse
from registry.store import Candidate, Store
from tests.support import scores, tiny

PACK = "toolcall"


def add(store: Store, name: str, folder: Path, *, seed: int = 0, replace: bool = False) -> Candidate:
    """Adds a tiny checkpoint, which it writes to `folder`/`name`-`seed` first."""
    source = folder / f"{name}-{seed}"
    if not source.exists():
        checkpoint(source, seed=seed)
    return store.add(name, source, replace=replace)


def checkpoint(folder: Path, *, seed: int = 0, bare: bool = False) -> Path:
    """As small as a checkpoint can be; `bare`, without tokenizer and chat template too."""
    tiny.write_checkpoint(folder, layers=1, experts=2, hidden=4, intermediate=4, seed=seed, tied=True)
    if bare:
        for path in folder.iterdir():
            if path.name not in ("config.json", "model.safetensors"):
                path.unlink()
    return folder


def file(data: bytes) -> File:
    """What a manifest says of a file with these bytes."""
    return File(digest=canonical.digest(data), size=len(data))


def write_policy(path: Path, *, at_least: int = 50) -> Path:
    """A policy with one floor, so that it needs no baseline."""
    rule = f"floor: {{pack: {PACK}, at_least: {at_least}}}"
    path.write_text(f"name: {path.stem}\ngates:\n  - name: Toolcall\n    rules:\n      - {rule}\n", encoding="utf-8")
    return path


def observe(store: Store, name: str, *, right: int, of: int = 10) -> str:
    """Records evidence of so many right answers and gives its digest."""
    evidence, rows, responses = evidence_on(store.candidate(name).digest, right=right, of=of)
    return store.add_evidence(evidence, rows=rows, responses=responses, timings={"seconds": 1.5})


def evidence_on(digest: str, *, right: int, of: int = 10) -> tuple[Evidence, bytes, bytes]:
    """Evidence on a candidate, with its rows and responses."""
    rows, responses = scores.right(right, of), b'{"raw":"response"}\n'
    header = scores.header(rows, pack=PACK, candidate=digest)
    return header.model_copy(update={"responses": canonical.digest(responses)}), scores.written(rows), responses


def judge(store: Store, name: str, policy: Path, *, right: int = 9) -> Verdict:
    """Records evidence of `right` of 10 answers, and what the policy says of the candidate then."""
    observe(store, name, right=right)
    return judging.judge(store, name, policy=judging.read_policy(policy), baseline=None)


def pruned(parent: Candidate, compression: str = "0.25") -> Inputs:
    """Inputs of a prune of `parent`."""
    return Inputs(op="prune", parent=parent.digest, settings={"compression": compression}, seed=0, code="test-1")


def prune(store: Store, name: str, parent: Candidate, *, experts: int, mix: str, compression: str) -> Candidate:
    """Commits a candidate that was pruned on the mix of this name, as the prune stage would."""
    rows = store.put(f"{mix}\n".encode())
    inputs = Inputs(
        op="prune",
        parent=parent.digest,
        settings={"compression": compression, "criterion": "reap"},
        mix=MixUse(name=mix, rows=rows, datasets=()),
        code="test-1",
    )
    with store.step(inputs.identity()) as folder:
        model = folder / "model"
        tiny.write_checkpoint(model, layers=1, experts=experts, hidden=4, intermediate=4, tied=True)
        candidate = store.commit(name, inputs, model)
    store.discard(inputs.identity())
    return candidate


def judged(folder: Path) -> tuple[Store, Policy]:
    """v7b, pruned from base on the mix broad and judged against base; and the policy that it passed."""
    store = Store.init(folder / "models")
    base = add(store, "base", folder)
    prune(store, "v7b", base, experts=2, mix="broad", compression="0.25")
    policy = judging.read_policy(write_policy(folder / "strict.yaml"))
    observe(store, "base", right=8)
    observe(store, "v7b", right=9)
    judging.judge(store, "v7b", policy=policy, baseline="base")
    return store, policy
