"""``vllm run-batch``: each line of its file is logged like an HTTP request.

There is no HTTP and so no middleware. A line is checked when it is parsed, and its context for the
tap is set in the same variable as the middleware's. A line's ``custom_id`` becomes a tag of its
entry, unless the line sets a tag of that name itself.
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
"""The tag that holds a line's ``custom_id``."""


class LoggedLine(run_batch.BatchRequestInput):
    """A line of the file, which also holds the request's context for the tap."""

    # pydantic's errors name the class: keep vLLM's name.
    model_config = ConfigDict(title=run_batch.BatchRequestInput.__name__)
    _asked: HttpRequest | None = PrivateAttr(None)
    _refusal: RequestOptionError | None = PrivateAttr(None)

    @classmethod
    def model_validate_json(cls, json_data: Any, **kwargs: Any) -> LoggedLine:
        """Check the ``activation_*`` arguments of a line, then parse it as vLLM does."""
        raw = json_data.encode() if isinstance(json_data, str) else bytes(json_data)
        line = parse_object(raw)
        body = line.get("body") if line else None
        if line is None or not isinstance(body, dict):
            return super().model_validate_json(json_data, **kwargs)
        refusal = None
        try:
            checked_body(body, raw, Settings.from_env())
            _tag(body, line.get("custom_id"))
        except RequestOptionError as error:
            # Reported in place of the answer, as vLLM reports its own refusals. Other lines go on.
            refusal = error
            body.pop("vllm_xargs", None)
        parsed = super().model_validate_json(dump_object(line), **kwargs)
        parsed._asked = HttpRequest(parsed.url, body)
        parsed._refusal = refusal
        return parsed


async def run_request(
    original: Callable[..., Any], ask: Callable[..., Any], request: Any, *others: Any
) -> Any:
    """Answer a line, after setting its context for the tap."""
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
    """Add the ``custom_id`` tag, unless it exceeds a limit: no line is refused for its id."""
    extra = body.setdefault("vllm_xargs", {})
    if not isinstance(extra, dict) or not isinstance(custom_id, str):
        return
    tags = json.dumps({CUSTOM_ID: custom_id, **json.loads(extra.get("activation_tags") or "{}")})
    with suppress(RequestOptionError):
        RequestOptions.parse({"activation_tags": tags}, settings=Settings())
        extra["activation_tags"] = tags
