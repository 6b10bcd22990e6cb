"""What probes say while a model answers, as the openai client reads it.

    python examples/watch_scores.py "Who was Ada Lovelace?" --probe known
    python examples/watch_scores.py "Who was Ada Lovelace?" --probe known --prompt-above 0.9
    python examples/watch_scores.py "Tell me about Rome." --probe claims --above 0.8 --tokens 3

The server must have been started with probes of these names (docs/live-scores.md). One line is one
chunk: its text, and what it brings of the scores. That of a token comes with the next chunk.
"""

from __future__ import annotations

import argparse
from typing import Any

import openai


def main() -> None:
    """Ask one question, and print what comes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("question")
    parser.add_argument("--probe", required=True, help="the name that the server knows it by")
    parser.add_argument("--above", type=float, help="end the answer at tokens above this")
    parser.add_argument("--tokens", type=int, default=1, help="so many of them in a row")
    parser.add_argument("--prompt-above", type=float, help="end it before its first token")
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--base-url", default="http://localhost:8000/v1")
    parser.add_argument("--api-key", default="none")
    asked = parser.parse_args()
    client = openai.OpenAI(base_url=asked.base_url, api_key=asked.api_key)
    arguments: dict[str, Any] = {"activation_scores": asked.probe}
    if asked.above is not None:
        stop = {"probe": asked.probe, "above": asked.above, "tokens": asked.tokens}
        arguments["activation_stop"] = stop
    elif asked.prompt_above is not None:
        stop = {"probe": asked.probe, "prompt_above": asked.prompt_above}
        arguments["activation_stop"] = stop
    stream = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": asked.question}],
        stream=True,
        temperature=0,
        max_tokens=asked.max_tokens,
        extra_body={"vllm_xargs": arguments},
    )
    for chunk in stream:
        for choice in chunk.choices:
            extra = choice.model_extra or {}
            said = extra["activation_scores"][asked.probe]
            parts = "  ".join(f"{field} {shown(value)}" for field, value in said.items())
            print(f"{choice.delta.content or ''!r:>16}  {parts}")
            if choice.finish_reason:
                print(f"finish_reason {choice.finish_reason}, stop_reason {extra['stop_reason']}")


def shown(value: Any) -> str:
    """A probability with three digits; a list of them; null where the probe says nothing."""
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    return "null" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
