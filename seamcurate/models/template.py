r"""How a prompt and a response become the text a model reads, where the tokenizer has no chat template.

`Question: {prompt}\n\nAnswer: {response}` in fine-tuning, reward model and scoring alike (StackLLaMA). The
space before the answer belongs to the response: byte-level tokenizers then cut at the boundary by themselves.
"""

from __future__ import annotations

from seamcurate.models.protocols import Prompt


def plain_prompt(prompt: Prompt) -> str:
    """Render everything before the response; earlier chat turns become earlier questions and answers."""
    if isinstance(prompt, str):
        return f"Question: {prompt}\n\nAnswer:"
    parts: list[str] = []
    for message in prompt:
        if message["role"] == "assistant":
            parts.append(f"Answer: {message['content']}")
        elif message["role"] == "system":
            parts.append(message["content"])
        else:
            parts.append(f"Question: {message['content']}")
    return "\n\n".join([*parts, "Answer:"])


def plain_response(response: str) -> str:
    """Render the response as it follows `plain_prompt`."""
    return f" {response}"


def prompt_text(prompt: Prompt) -> str:
    """Return what an encoder or a person reads: the text itself, or all turns' contents, a line each."""
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)
