"""Whose the files of a registry are. Containers run as the owner of its folder, so that all are one person's."""

from __future__ import annotations

import os
from pathlib import Path

from gates.errors import UsageError
from registry.layout import Layout, called_outside

REMOUNT = "the file system is mounted read-only: mount it so that it can be written, or name another folder"


def check(root: Path) -> None:
    """Says at once, and not after an hour's work, that nothing can be written.

    Raises:
        UsageError: `root` is there, and this process may not write in it.
    """
    if root.is_dir() and not os.access(root, os.W_OK | os.X_OK):
        raise _refused(root, root)


def refusal(path: Path) -> UsageError | None:
    """What is wrong and what mends it, if `path`, which could not be written, lies in a registry."""
    for folder in (path, *path.parents):
        if os.path.isfile(Layout(folder).marker):  # noqa: PTH113 - Path.is_file raises where nothing may be looked at
            return _refused(folder, next(each for each in (path, *path.parents) if os.path.exists(each)))  # noqa: PTH110
    return None


def explain(root: Path, path: Path, *, owner: tuple[int, int], ours: int, contained: bool) -> UsageError:
    """
    Args:
        path: what cannot be written: `root` or something in it.
        owner: whose it is, user and group.
        ours: as which user this process runs.
        contained: whether it runs in a container, whose user .env names.
    """
    take_over = f"sudo chown -R $(id -u):$(id -g) {root}"
    if owner[0] == 0:
        remedy = take_over
    elif owner[0] == ours:
        remedy = f"its mode forbids it: chmod u+rwX {path}"
    elif contained:
        remedy = f"put SLUICE_UID={owner[0]} and SLUICE_GID={owner[1]} into .env, or take it over: {take_over}"
    else:
        remedy = f"run this as its owner, or take it over: {take_over}"
    return UsageError(
        f"the registry cannot be written: this belongs to user {owner[0]}{' (root)' if owner[0] == 0 else ''}, "
        f"and the process runs as user {ours}",
        where=str(path),
        remedy=remedy,
    )


def _refused(root: Path, path: Path) -> UsageError:
    state = path.stat()
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        return UsageError("the registry cannot be written", where=str(path), remedy=REMOUNT)
    contained = called_outside() is not None
    return explain(root, path, owner=(state.st_uid, state.st_gid), ours=os.getuid(), contained=contained)


def note_for_containers(project: Path, root: Path) -> str | None:
    """Writes the owner of `root` into the .env beside compose.yaml, if compose would mount `root` and .env names no
    owner yet.

    Returns:
        what a person should know about that.
    """
    env = project / ".env"
    known = _settings(env)
    mounted = project / (os.environ.get("SLUICE_MODELS") or known.get("SLUICE_MODELS") or "models")
    if not (project / "compose.yaml").is_file() or mounted.resolve() != root.resolve():
        return None
    if known.keys() & {"SLUICE_UID", "SLUICE_GID"}:
        return None
    owner = root.stat()
    if owner.st_uid == 0:
        return "the registry's folder belongs to root, as which no container runs; for containers give it to a user"
    lines = f"SLUICE_UID={owner.st_uid}\nSLUICE_GID={owner.st_gid}\n"
    try:
        text = env.read_text(encoding="utf-8") if env.exists() else ""
        env.write_text(text + "\n" * (text != "" and not text.endswith("\n")) + lines, encoding="utf-8")
    except OSError as error:
        return f".env cannot be written ({error.strerror}); for containers, put into it: {' '.join(lines.split())}"
    return f"containers run as the folder's owner: {' '.join(lines.split())} in .env"


def _settings(env: Path) -> dict[str, str]:
    """The settings in an .env file, without what Compose would make of quotes and references."""
    try:
        lines = env.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    pairs = (line.partition("=") for line in lines if "=" in line and not line.lstrip().startswith("#"))
    return {key.strip(): value.strip().strip("'\"") for key, _, value in pairs}
