"""The page that asks for the key, where the pages need one."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from starlette.responses import RedirectResponse

from activation_logging.view.state import Form, State, base_of, page

router = APIRouter()


@router.get("/key")
def ask(request: Request, state: State, to: str = "/") -> Response:
    """A form for the key; ``to`` is the page of ours that was asked for without it."""
    return page(request, state, "key.html.j2", wrong=False, to=to)


@router.post("/key")
def check(request: Request, state: State, form: Form) -> Response:
    """Let the browser in that has sent the key."""
    guard, fields = request.app.state.guard, dict(form)
    to = fields.get("to", "/")
    if not guard.opens(fields.get("key", "")):
        return page(request, state, "key.html.j2", status=401, wrong=True, to=to)
    # Only below the pages' own address.
    answer = RedirectResponse(f"{base_of(request)}/{to.lstrip('/')}", 303)
    guard.admit(answer, request.scope)
    return answer
