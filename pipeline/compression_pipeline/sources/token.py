"""The Hub's token, as the environment of prepare holds it."""

import re
from collections.abc import Mapping

from compression_pipeline.config.schemes.hub import TOKEN_VARIABLE
from compression_pipeline.errors import UserError
from compression_pipeline.redaction import SHORTEST_TOKEN

_WHOLE = re.compile(r"[!-~]+")
"""What a header can carry as one word."""


def hub_token(environment: Mapping[str, str], *, on_cluster: bool) -> str | None:
    """The token, without the white space around it that a file or an editor leaves; None where there is none.

    Raises UserError for what is no token, before a client puts it into a message of its own.
    """
    told = environment.get(TOKEN_VARIABLE)
    if told is None:
        return None
    token = told.strip()
    where = "teacher.secretRef: the Secret's value" if on_cluster else TOKEN_VARIABLE
    if not token and not on_cluster:
        return None
    if len(token) < SHORTEST_TOKEN:
        raise UserError(
            f"{where} is {'too short for a token' if token else 'empty'}; put the token there, and nothing else"
        )
    if not _WHOLE.fullmatch(token):
        raise UserError(
            f"{where} holds a space, a line break or another character that no token has; put the token there, and "
            "nothing else"
        )
    return token
