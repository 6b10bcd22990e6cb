"""``vllm run-batch``: each line of its file is a request like one over HTTP.

There is no HTTP there, so no middleware: a line is checked when it is read, and what the tap is to
know of it is left where the middleware leaves it. A line's ``custom_id`` becomes a tag of its
entry, unless the line gives a tag of that name.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, PrivateAttr
from vllm.entrypoints.launchers import run_batch
from vllm.exceptions import VLLMValidationError

from activation_logging.asgi import dump_object, parse_object
from activation_logging.errors import RequestOptionError
from activation_logging.settings import RequestOptions, Settings
from activation_logging.vllm_plugin.context import HttpRequest, http_request
from activation_logging.vllm_plugin.middleware import checked_body

if TYPE_CHECKING:
    from collections.abc import Callable

CUSTOM_ID = "custom_id"
"""The tag that holds what the batch's file calls a line."""


class LoggedLine(run_batch.BatchRequestInput):
    """A line of the file, which also knows itself as a request for the tap."""

    # vLLM's own name, for the errors that name it.
    model_config = ConfigDict(title=run_batch.BatchRequestInput.__name__)
    _asked: HttpRequest | None = PrivateAttr(None)
    _refusal: RequestOptionError | None = PrivateAttr(None)

    @classmethod
    def model_validate_json(cls, json_data: Any, **kwargs: Any) -> LoggedLine:
        """Parse a line, once what is ours in it has been looked at."""
        raw = json_data.encode() if isinstance(json_data, str) else bytes(json_data)
        line = parse_object(raw)
        body = line.get("body") if line else None
        if line is None or not isinstance(body, dict):
            return super().model_validate_json(json_data, **kwargs)
        refusal = None
        try:
            checked_body(body, raw, layers=Settings.from_env().layers, num_layers=None)
            _tag(body, line.get("custom_id"))
        except RequestOptionError as error:
            # Said in place of the answer, as the refusals of vLLM are: the other lines go on.
            refusal = error
            body.pop("vllm_xargs", None)
        parsed = super().model_validate_json(dump_object(line), **kwargs)
        parsed._asked = HttpRequest(parsed.url, body)
        parsed._refusal = refusal
        return parsed


async def run_request(
    original: Callable[..., Any], ask: Callable[..., Any], request: Any, *others: Any
) -> Any:
    """Answer a line, with the line in the context that the tap looks at."""
    if isinstance(request, LoggedLine):
        http_request.set(request._asked)
        if request._refusal is not None:
            ask = _refusing(request._refusal)
    return await original(ask, request, *others)


def _refusing(refusal: RequestOptionError) -> Callable[..., Any]:
    async def refuse(_body: Any) -> Any:
        raise VLLMValidationError(str(refusal), parameter=refusal.parameter)

    return refuse


def _tag(body: dict[str, Any], custom_id: Any) -> None:
    """Add the tag, unless there is no room for it: no line is refused for its name."""
    extra = body.setdefault("vllm_xargs", {})
    if not isinstance(extra, dict) or not isinstance(custom_id, str):
        return
    tags = json.dumps({CUSTOM_ID: custom_id, **json.loads(extra.get("activation_tags") or "{}")})
    with suppress(RequestOptionError):
        RequestOptions.parse({"activation_tags": tags}, allowed_layers="last")
        extra["activation_tags"] = tags
