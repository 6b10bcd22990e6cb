"""The page that asks for the key, where the pages need one."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from starlette.responses import RedirectResponse

from activation_logging.view.state import Form, State, base_of, page

router = APIRouter()


@router.get("/key")
def ask(request: Request, state: State) -> Response:
    """A form for the key."""
    return page(request, state, "key.html.j2", wrong=False)


@router.post("/key")
def check(request: Request, state: State, form: Form) -> Response:
    """Let the browser in that has sent the key."""
    guard = request.app.state.guard
    if not guard.opens(dict(form).get("key", "")):
        return page(request, state, "key.html.j2", status=401, wrong=True)
    answer = RedirectResponse(f"{base_of(request)}/", 303)
    guard.admit(answer, request.scope)
    return answer
