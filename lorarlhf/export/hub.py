"""Upload a finished export to the Hugging Face hub, with the token that its library finds.

Repositories are private unless a person asks for a public one. Nothing is sent before the folder
was checked (`upload_check`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorarlhf.export.cards.run_facts import read_facts
from lorarlhf.export.portable import hide_paths
from lorarlhf.export.upload_check import check_upload
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.terminal import log_to_stderr

MODEL, DATASET = "model", "dataset"
LOG_IN = (
    "Log in with `hf auth login` (it came with lorarlhf), or set HF_TOKEN. A token that may write "
    "is made at https://huggingface.co/settings/tokens."
)


@dataclass(frozen=True)
class Target:
    """Where an export is uploaded to.

    Attributes:
        repo: `owner/name`.
        kind: `model` or `dataset`.
        public: whether everybody may read it.
    """

    repo: str
    kind: str
    public: bool = False


def check_login(repo: str, kind: str, public: bool = False) -> Target:
    """Check that an upload will be possible. Call it before any long work.

    Args:
        repo: `owner/name`; the name alone means one's own.
        kind: `model` or `dataset`.

    Raises:
        UserError: the name can't be a repository's, nobody is logged in, the token is not valid or
            may only read, or the hub can't be reached.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(
            f"--push {repo}: this can't be a repository. Name one as owner/name, for example "
            "ann/my-assistant."
        ) from error
    _check_online(repo)
    if get_token() is None:
        raise UserError(f"--push {repo}: nobody is logged in to the hub. {LOG_IN}")
    try:
        about = HfApi().whoami()
    except Exception as error:  # of many kinds: an old token, no network, a proxy
        if _status(error) == 401:
            text = f"--push {repo}: the hub does not know the token. {LOG_IN}"
            raise UserError(text) from error
        raise _refused(repo, "the hub can't be asked who is logged in", error) from error
    token = (about.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise UserError(f"--push {repo}: the token may only read. {LOG_IN}")
    whole = repo if "/" in repo else f"{about['name']}/{repo}"
    return Target(whole, kind, public)


def _check_online(repo: str) -> None:
    from huggingface_hub import is_offline_mode

    if is_offline_mode():
        raise UserError(
            f"--push {repo}: HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set, so nothing can be "
            "uploaded. Unset it for this command."
        )


def push(folder: str | Path, target: Target, log: Callable[[str], None] = log_to_stderr) -> str:
    """Upload the files of a finished export; returns the address of the repository.

    A second call uploads what has changed. An upload that was stopped goes on.

    Args:
        target: of `check_login`.
        log: prints a line.

    Raises:
        UserError: the folder holds what must not be uploaded, the repository is public and nobody
            asked for that, or the hub refuses.
    """
    from huggingface_hub import HfApi, get_token

    _check_online(target.repo)
    files = check_upload(folder, get_token() or "")
    api: Any = HfApi()
    repo = {"repo_id": target.repo, "repo_type": target.kind}
    size = sum((Path(folder) / file).stat().st_size for file in files)
    try:
        private = not target.public
        address = str(api.create_repo(**repo, private=private, exist_ok=True))
        is_private = _is_private(api, repo)
    except Exception as error:
        raise _refused(target.repo, "the repository can't be made", error) from error
    _check_visibility(target, is_private, log)
    log(f"Uploading {len(files)} files ({size / 1e6:,.1f} MB) to {address}")
    try:
        api.upload_folder(**repo, folder_path=str(folder), commit_message="Upload by lorarlhf")
    except Exception as error:
        raise _refused(
            target.repo,
            f"the upload broke off; the files are in {folder}, and the same upload goes on with "
            f"`hf upload {target.repo} {folder}{_kind_option(target)}`",
            error,
        ) from error
    return address


def push_policy(
    run: str | Path,
    folder: str | Path,
    target: Target,
    log: Callable[[str], None] = log_to_stderr,
) -> str:
    """`push` of an exported policy, whose files then name the base without a path.

    Args:
        run: the run that was exported, or the folder of an adapter.
    """
    if changed := hide_paths(folder, read_facts(run).base.shared_name):
        log(f"Paths of this machine are replaced by names in {', '.join(changed)}.")
    return push(folder, target, log)


def _kind_option(target: Target) -> str:
    return "" if target.kind == MODEL else f" --repo-type {target.kind}"


def _is_private(api: Any, repo: dict[str, str]) -> bool | None:
    """Whether only its owner sees the repository; None if the hub does not say it."""
    return getattr(api.repo_info(**repo), "private", None)


def _check_visibility(target: Target, private: bool | None, log: Callable[[str], None]) -> None:
    """A repository that existed before keeps its visibility, which may not be the wanted one."""
    if not target.public and private is not True:
        raise UserError(
            f"--push {target.repo}: this repository is public, so nothing was uploaded. Say "
            "--public if that is meant, make it private in its settings, or name another one."
        )
    if target.public and private:
        log(f"{target.repo} was there before and is private; it stays so until you change that.")


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _refused(repo: str, what: str, error: Exception) -> UserError:
    """The error as a paragraph, with advice where the hub's answer says what is wrong."""
    from huggingface_hub import get_token

    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if token := get_token():
        reason = reason.replace(token, "***")
    advice = {
        401: f" {LOG_IN}",
        403: f" The token may not write to {repo}: name a repository of yours, or take another "
        "token.",
    }.get(_status(error) or 0, "")
    return UserError(f"--push {repo}: {what} ({reason.rstrip('.')}).{advice}")
