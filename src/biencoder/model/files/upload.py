"""A finished model on its way to the Hugging Face Hub: asked for before the training, sent after it."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from biencoder.errors import UserError, first_line

FLAG = "--push-to-hub"
LOG_IN = "set HF_TOKEN, or type hf auth login"


def reserve(name: str, *, private: bool, create: bool = True) -> str:
    """Make sure that a model can be sent to ``name`` later: the token is good, and the repository may be written.

    Args:
        name: of the repository, such as ``me/my-model``; without an owner, it is yours.
        private: nobody else may see the model.
        create: make the repository if there is none; without, only what is there is checked.

    Returns:
        The name with its owner.

    Raises:
        UserError: no token or a wrong one, no right to write, a public repository where a private one is wanted, or no
            network.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    api, asked = HfApi(), f"{FLAG} {name}"
    try:
        user = str(api.whoami()["name"])
    except LocalTokenNotFoundError as error:
        raise UserError(f"{asked}: there is no token for the Hugging Face Hub; {LOG_IN}") from error
    except HfHubHTTPError as error:
        raise UserError(f"{asked}: the Hub does not take the token ({first_line(error)}); {LOG_IN}") from error
    except Exception as error:  # each HTTP client has names of its own for a network that is not there
        raise UserError(f"{asked}: the Hugging Face Hub cannot be reached ({first_line(error)})") from error
    full = name if "/" in name else f"{user}/{name}"
    try:
        if create:
            api.create_repo(full, private=private or None, exist_ok=True)
        elif not api.repo_exists(full):
            return full
        api.auth_check(full, write=True)
        is_public = not api.model_info(full).private
    except (HfHubHTTPError, HFValidationError) as error:
        raise UserError(
            f"{asked}: {user} may not write a model of this name ({first_line(error)}); give a token with the right to "
            "write, or another name"
        ) from error
    except Exception as error:
        raise UserError(f"{asked}: the Hugging Face Hub cannot be reached ({first_line(error)})") from error
    if private and is_public:
        raise UserError(f"{asked}: exists and is public; make it private in its settings, or leave out --private")
    return full


def upload(folder: Path, files: Sequence[str], name: str) -> str:
    """Send files of a folder in one commit; what else is in the folder stays here.

    Args:
        folder: of a finished run.
        files: their names below the folder.
        name: of the repository, from :func:`reserve`.

    Returns:
        Where the model can be seen.

    Raises:
        UserError: they could not be sent. The folder is as it was; the message says how to send them by hand.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=list(files),
            commit_message="Upload the model with biencoder",
        )
    except Exception as error:  # of the network, of the Hub, of storage behind it
        by_hand = shlex.join(["hf", "upload", name, str(folder), ".", "--include", *files])
        raise UserError(
            f"the model is complete in {folder}, but it could not be sent to {name} ({first_line(error)}). The same "
            f"command sends it without training again; by hand: {by_hand}"
        ) from error
    return f"{api.endpoint}/{name}"
