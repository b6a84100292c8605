"""Public layouts of data sets, one plain function each: what is the prompt, the golden response, the worse answers.

One rule: a layout reads what its data set publishes, and invents nothing. An answer that the data set prefers is the
golden response; the answers that it puts below go to `worse_given`, the sample set that `seam: {variant: given}` scores.
To add a layout, write its function and add a row to `LAYOUTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import groupby, takewhile
from typing import NamedTuple, TypeAlias, cast

import pyarrow as pa

from seamcurate.data import chats
from seamcurate.data.formats import Reject
from seamcurate.errors import SourceError

Row: TypeAlias = dict[str, object]
"""A row by column, as its file has it."""


class Refused(NamedTuple):
    """A row that cannot be read as its layout."""

    reason: str
    row: Row


Item: TypeAlias = "Row | Refused"
_Read = Callable[[Row], Row]
_Gather = Callable[[Iterable[Row]], Iterator[Item]]

WORSE = pa.list_(pa.struct([("response", pa.string()), ("rating", pa.float64())]))
"""The type of `worse_given`: the answers that the data set puts below the golden response, the best of them first."""

ADDED = {
    "worse_given": pa.field("worse_given", WORSE, metadata={"meaning": "the answers that the data set puts below"}),
    "rating": pa.field(
        "rating", pa.float64(), metadata={"meaning": "the data set's rating of the golden response; higher is better"}
    ),
    "other_golden": pa.field(
        "other_golden", pa.list_(pa.string()), metadata={"meaning": "further answers that the data set calls good"}
    ),
    "is_safe": pa.field("is_safe", pa.bool_(), metadata={"meaning": "whether the golden response is called safe"}),
    "is_better": pa.field(
        "is_better", pa.bool_(), metadata={"meaning": "whether the golden response is called the more helpful one, too"}
    ),
}
"""The columns that a layout may add beside prompt, response and reference."""


class Layout(NamedTuple):
    """A row of `LAYOUTS`."""

    needs: tuple[tuple[str, ...], ...]
    """The columns that it needs, in one or several forms of the data set; the first form that is there is read."""
    takes: tuple[str, ...]
    """The columns that it reads; every other column is kept under its own name."""
    adds: tuple[str, ...]
    """The columns that it adds, keys of `ADDED`."""
    read: _Read | None = None
    """Return `prompt`, `response`, `reference` and the added columns of a row, or raise Reject."""
    gather: _Gather | None = None
    """In place of `read`, where one row comes from several: return such rows with all their columns."""
    chat: tuple[str, ...] | bool = True
    """Whether prompts are chats; or the columns that make them chats where the data set has one of them."""
    answered: bool = True
    """Whether every row has a response."""

    def form(self, names: Collection[str]) -> tuple[str, ...] | None:
        """Return the columns of the first form that is there; None where there is none."""
        return next((form for form in self.needs if set(form) <= set(names)), None)

    def chats(self, names: Collection[str]) -> bool:
        """Tell whether the prompts of a data set with these columns are chats."""
        return self.chat if isinstance(self.chat, bool) else not set(self.chat).isdisjoint(names)

    def rows(self, rows: Iterable[Row]) -> Iterator[Item]:
        """Iterate over rows with `prompt`, `response`, the added columns, and the columns that the layout does not read."""
        if self.gather is not None:
            yield from self.gather(rows)
            return
        assert self.read is not None
        for row in rows:
            item = _kept(self.read, row)
            if not isinstance(item, Refused):
                item = {**item, **{kept_name(name): cell for name, cell in row.items() if name not in self.takes}}
            yield item


def kept_name(name: str) -> str:
    """Return the name under which a column is kept that a layout does not read: not one that the layout gives itself."""
    taken = {"row_id", "prompt", "response", "reference", chats.DETAILS, *ADDED}
    return f"source_{name}" if name.lower() in taken else name


def _kept(read: _Read, row: Row) -> Item:
    try:
        return read(row)
    except Reject as reject:
        return Refused(str(reject), row)


def _filled(value: object) -> str:
    """Return a text that may be missing, without the blanks around it."""
    return value.strip() if isinstance(value, str) else ""


def _list(value: object, name: str) -> list[Row]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise Reject(f"{name} is not a list of objects")
    return cast(list[Row], value)


def _number(value: object) -> float | None:
    """Return a rating as a number; None for one that is missing, or `N/A`."""
    try:
        return None if value is None or isinstance(value, bool) else float(str(value))
    except ValueError:
        return None


def _answer(value: object, name: str) -> str:
    """Return an answer, which preference data write as text, as a turn, or as the last turn of a whole chat."""
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list):
        turns = chats.turns(value, name)
        if not turns or turns[-1]["role"] != "assistant":
            raise Reject(f"{name} has no assistant turn at the end")
        value = turns[-1]["content"]
    return chats.text(value, name)


def _worse(*answers: tuple[str, float | None], than: str) -> list[Row]:
    """Return worse answers as `worse_given` holds them; blank ones, and the golden response again, are none."""
    return [{"response": text, "rating": rating} for text, rating in answers if text.strip() and text != than]


def _to_last_answer(turns: chats.Turns, name: str) -> chats.Turns:
    """Cut a chat behind its last assistant turn."""
    ends = [number for number, turn in enumerate(turns, 1) if turn["role"] == "assistant" and turn["content"].strip()]
    if not ends:
        raise Reject(f"{name} has no assistant turn")
    return turns[: ends[-1]]


def _with_system(turns: chats.Turns, system: object) -> chats.Turns:
    """Put a system prompt that stands beside a chat before its turns, unless these have one."""
    content = _filled(system)
    if not content or (turns and turns[0]["role"] == "system"):
        return turns
    return [{"role": "system", "content": content}, *turns]


# Instructions.


def _alpaca(row: Row) -> Row:
    """Read an instruction with an input (Stanford Alpaca; LLaMA-Factory's `alpaca`, which adds the last four columns).

    {"instruction": "Put it into the past tense.", "input": "I walk home", "output": "I walked home",
     "system": "Be brief.", "history": [["Hello.", "Hello!"]], "chosen": "…", "rejected": "…"}

    Instruction and input are joined by a line break, as LLaMA-Factory does. `system` is the system turn, `history` the
    turns before. `chosen` and `rejected` are its preference data, in place of `output`.
    """
    prompt = "\n".join(filter(None, (_filled(row.get("instruction")), _filled(row.get("input")))))
    read: Row = {
        "prompt": prompt,
        "response": row.get("output") if row.get("output") is not None else row.get("chosen"),
    }
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise Reject("history is not a list of pairs of a question and its answer")
    before = [
        {"role": role, "content": text}
        for pair in history
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    if before or _filled(row.get("system")):
        turns = chats.turns([*before, {"role": "user", "content": prompt}], "history")
        read["prompt"] = _with_system(turns, row.get("system"))
    if row.get("rejected") is not None:
        golden = _answer(read["response"], "chosen")
        read |= {"response": golden, "worse_given": _worse((_answer(row["rejected"], "rejected"), None), than=golden)}
    return read


def _dolly(row: Row) -> Row:
    """Read an instruction with a passage that it is about (databricks-dolly-15k's card).

    {"instruction": "When did Virgin Australia start operating?", "context": "Virgin Australia … 31 August 2000 …",
     "response": "On 31 August 2000 …", "category": "closed_qa"}

    The passage follows the instruction after an empty line.
    """
    prompt = "\n\n".join(filter(None, (_filled(row.get("instruction")), _filled(row.get("context")))))
    return {"prompt": prompt, "response": row.get("response")}


# Chats.


def _messages(row: Row) -> Row:
    """Read a chat in OpenAI's form, up to its last answer, which is the response (UltraChat 200k, Tülu, OpenAI's own files).

    {"messages": [{"role": "user", "content": "Is ice cold?"}, {"role": "assistant", "content": "Yes."}],
     "prompt": "Is ice cold?", "system": "Be brief."}

    A `prompt` beside it is its first question again; a `system` beside it becomes the system turn.
    """
    turns = _to_last_answer(chats.turns(row.get("messages"), "messages"), "messages")
    before = _with_system(turns[:-1], row.get("system"))
    return {"prompt": before, "response": turns[-1]["content"], chats.DETAILS: _cut_details(row.get("messages"), turns)}


def _sharegpt(row: Row) -> Row:
    """Read a chat in ShareGPT's form, up to its last answer (ShareGPT, OpenHermes, LLaMA-Factory's `sharegpt`).

    {"conversations": [{"from": "human", "value": "Is ice cold?"}, {"from": "gpt", "value": "Yes."}],
     "system": "Be brief.", "chosen": {"from": "gpt", "value": "…"}, "rejected": {"from": "gpt", "value": "…"}}

    All common names of roles are read, see `chats.ROLES`. `chosen` and `rejected` are LLaMA-Factory's preference data:
    then the chat is the prompt.
    """
    name = "conversations" if row.get("conversations") is not None else "conversation"
    turns = chats.turns(row.get(name), name)
    if row.get("chosen") is not None and row.get("rejected") is not None:
        golden = _answer(row["chosen"], "chosen")
        worse = _worse((_answer(row["rejected"], "rejected"), None), than=golden)
        before = _with_system(turns, row.get("system"))
        return {"prompt": before, "response": golden, "worse_given": worse}
    turns = _to_last_answer(turns, name)
    before = _with_system(turns[:-1], row.get("system") or row.get("system_prompt"))
    return {"prompt": before, "response": turns[-1]["content"], chats.DETAILS: _cut_details(row.get(name), turns)}


def _cut_details(chat: object, turns: chats.Turns) -> str | None:
    return chats.details_text(chat[: len(turns)]) if isinstance(chat, list) else None


def _verl(row: Row) -> Row:
    """Read verl's training data (verl's `docs/preparation/prepare_data.rst` and its GSM8K example).

    {"data_source": "openai/gsm8k", "prompt": [{"role": "user", "content": "2 + 2? …"}], "ability": "math",
     "reward_model": {"style": "rule", "ground_truth": "4"}, "extra_info": {"split": "train", "index": 0, "answer": "…"}}

    The reference is `reward_model.ground_truth`, the response `extra_info.answer` where there is one. All columns are
    kept: an export to verl writes its own back.
    """
    model, extra = row.get("reward_model"), row.get("extra_info")
    truth = model.get("ground_truth") if isinstance(model, dict) else None
    answer = extra.get("answer") if isinstance(extra, dict) else None
    return {"prompt": row.get("prompt"), "response": answer if isinstance(answer, str) else None, "reference": truth}


# Preferences and ratings.


def _hh(row: Row) -> Row:
    r"""Read two transcripts that differ in their last answer (Anthropic's hh-rlhf).

    {"chosen": "\n\nHuman: Is ice cold?\n\nAssistant: Yes.", "rejected": "\n\nHuman: Is ice cold?\n\nAssistant: No."}

    The response is the last answer of `chosen`. In a few rows the two differ earlier: such a `rejected` answers another
    question, and `worse_given` is NULL.
    """
    turns = _to_last_answer(chats.transcript(row.get("chosen"), "chosen"), "chosen")
    other = chats.transcript(row.get("rejected"), "rejected")
    golden, before = turns[-1]["content"], turns[:-1]
    same = other[:-1] == before and other[-1]["role"] == "assistant"
    worse = _worse((other[-1]["content"], None), than=golden) if same else None
    return {"prompt": before, "response": golden, "worse_given": worse}


def _ultrafeedback(row: Row) -> Row:
    """Read rated answers (openbmb/UltraFeedback), or the best and another of them (HuggingFaceH4's binarized form).

    {"instruction": "Name a sea.", "source": "flan", "models": ["alpaca-7b", …], "completions": [{"model": "alpaca-7b",
     "response": "The Baltic.", "annotations": {"helpfulness": {"Rating": "5", …}, …}, "fine-grained_score": 4.75,
     "overall_score": 8.5}, …], "correct_answers": ["None"], "incorrect_answers": ["None"]}
    {"prompt": "Name a sea.", "prompt_id": "…", "chosen": [{"role": "user", …}, {"role": "assistant", …}],
     "rejected": [{"role": "user", …}, {"role": "assistant", …}], "messages": […], "score_chosen": 8.0, "score_rejected": 3.0}

    Of rated answers the best is the response, those below it are worse. The rating is `fine-grained_score`, else the mean
    of the aspects' ratings, else `overall_score`, in which the published file has errors. argilla's cleaned form, with
    `chosen-rating`, is read as well.
    """
    if row.get("completions") is None:
        return _binarized(row)
    rated = []
    for completion in _list(row["completions"], "completions"):
        rating = _number(completion.get("fine-grained_score"))
        aspects = completion.get("annotations")
        entries = aspects.values() if isinstance(aspects, dict) else ()
        ratings = [_number(entry.get("Rating")) for entry in entries if isinstance(entry, dict)]
        known = [value for value in ratings if value is not None]
        rating = sum(known) / len(known) if rating is None and known else rating
        rating = _number(completion.get("overall_score")) if rating is None else rating
        response = completion.get("response")
        if rating is not None and isinstance(response, str) and response.strip():
            rated.append((response, rating))
    return {"prompt": row.get("instruction"), **_best(rated)}


def _best(rated: list[tuple[str, float]]) -> Row:
    """Return the best of rated answers as the response, and those below it, best first; equal ones are not worse."""
    if not rated:
        raise Reject("no answer has a text and a rating")
    # Of equal ones the first is the response.
    golden, best = max(rated, key=lambda answer: answer[1])
    below = sorted((answer for answer in rated if answer[1] < best), key=lambda answer: -answer[1])
    return {"response": golden, "rating": best, "worse_given": _worse(*below, than=golden)}


def _binarized(row: Row) -> Row:
    chosen, rejected = row.get("chosen"), row.get("rejected")
    golden = _answer(chosen, "chosen")
    before, below_before = (_before(row.get("prompt"), row.get(name), name) for name in ("chosen", "rejected"))
    rating, below = (
        next((number for key in keys if (number := _number(row.get(key))) is not None), None)
        for keys in (("score_chosen", "chosen-rating"), ("score_rejected", "rejected-rating"))
    )
    # Where the two differ earlier, the rejected answer is to another question.
    same = not isinstance(rejected, list) or below_before == before
    worse = _worse((_answer(rejected, "rejected"), below), than=golden) if same else None
    return {"prompt": before, "response": golden, "rating": rating, "worse_given": worse}


def _before(prompt: object, chat: object, name: str) -> object:
    """Return what stands before a chat's answer; the chat repeats its prompt, holds it and more, or goes on from it."""
    turns = chats.turns(chat, name)[:-1] if isinstance(chat, list) else []
    prompt_turns = chats.turns(prompt, "prompt") if isinstance(prompt, list) else []
    if not turns:
        return prompt_turns or prompt
    if isinstance(prompt, str) and turns[0]["role"] == "assistant":
        return [{"role": "user", "content": prompt}, *turns]
    (system, rest), (own_system, said) = _without_system(prompt_turns), _without_system(turns)
    if rest in (said[: len(rest)], said[len(said) - len(rest) :]) and (not own_system or system in ([], own_system)):
        return [*(own_system or system), *said]
    if own_system or turns[0]["role"] != "assistant":
        raise Reject(f"{name} neither repeats prompt nor goes on from it")
    return [*prompt_turns, *turns]


def _without_system(turns: chats.Turns) -> tuple[chats.Turns, chats.Turns]:
    """Return a chat's system turns at its start, and the others."""
    system = list(takewhile(lambda turn: turn["role"] == "system", turns))
    return system, turns[len(system) :]


def _nectar(row: Row) -> Row:
    r"""Read ranked answers (berkeley-nest/Nectar).

    {"prompt": "\n\nHuman: Name a sea.\n\nAssistant: ", "answers": [{"answer": "The Baltic.", "model": "gpt-4",
     "rank": 1.0}, …], "turns": 1, "num_responses": 7, "source": ["lmsys-chat-1m"], "good_natured": true}

    The answer of rank 1 is the response; a rating is minus the rank.
    """
    turns = chats.transcript(row.get("prompt"), "prompt")
    if turns[-1]["role"] == "assistant" and not turns[-1]["content"]:
        turns = turns[:-1]
    rated = [
        (str(answer["answer"]), -rank)
        for answer in _list(row.get("answers"), "answers")
        if isinstance(answer.get("answer"), str) and (rank := _number(answer.get("rank"))) is not None
    ]
    return {"prompt": turns, **_best(rated)}


def _pku_saferlhf(row: Row) -> Row:
    """Read two answers, of which one is the safer and one the better (PKU-Alignment/PKU-SafeRLHF).

    {"prompt": "…", "response_0": "…", "response_1": "…", "is_response_0_safe": true, "is_response_1_safe": false,
     "better_response_id": 1, "safer_response_id": 0}

    The safer one is the response, as open-instruct reads it. `is_safe` says whether it is safe at all, `is_better` whether
    it is the more helpful one, too. Columns of only one of the answers are kept as they are.
    """
    safer = _number(row.get("safer_response_id"))
    if safer not in (0, 1):
        raise Reject(f"safer_response_id is neither 0 nor 1 but {row.get('safer_response_id')!r:.40}")
    index = int(safer)
    golden, other = (_answer(row.get(f"response_{i}"), f"response_{i}") for i in (index, 1 - index))
    better, safe = row.get("better_response_id"), row.get(f"is_response_{index}_safe")
    return {
        "prompt": row.get("prompt"),
        "response": golden,
        "worse_given": _worse((other, None), than=golden),
        "is_safe": safe if isinstance(safe, bool) else None,
        "is_better": None if better is None else better == index,
    }


def _rewardbench(row: Row) -> Row:
    """Read good and bad answers (allenai/reward-bench, with one of each, as other preferences in text; reward-bench-2, with lists).

    {"prompt": "…", "chosen": "…", "chosen_model": "GPT4-Turbo", "rejected": "…", "rejected_model": "…",
     "subset": "alpacaeval-easy", "id": 0}
    {"id": "0", "prompt": "…", "chosen": ["…"], "rejected": ["…", "…", "…"], "num_correct": 1, "subset": "Factuality"}

    The first good answer is the response; further ones are `other_golden`, and all bad ones are worse.
    """
    chosen, rejected = row.get("chosen"), row.get("rejected")
    good = chosen if isinstance(chosen, list) else [chosen]
    bad = rejected if isinstance(rejected, list) else [rejected]
    if not good or not bad:
        raise Reject("chosen or rejected has no answer")
    golden, *others = (chats.text(answer, "chosen") for answer in good)
    worse = _worse(*((chats.text(answer, "rejected"), None) for answer in bad), than=golden)
    return {"prompt": row.get("prompt"), "response": golden, "other_golden": others, "worse_given": worse}


# Rows that come from several.


def _helpsteer(rows: Iterable[Row]) -> Iterator[Item]:
    """Gather the rated answers to one prompt, which follow each other (nvidia/HelpSteer and HelpSteer2); read pairs (HelpSteer3).

    {"prompt": "c#", "response": "C# is a language …", "helpfulness": 3, "correctness": 4, "coherence": 4,
     "complexity": 2, "verbosity": 1}
    {"domain": "code", "language": "python", "context": [{"role": "user", …}], "response1": "…", "response2": "…",
     "overall_preference": -2}

    The most helpful answer is the response with its own scores, those below it in helpfulness are worse. HelpSteer2 writes
    further turns into the prompt, after `<extra_id_1>Assistant` and `<extra_id_1>User`. In HelpSteer3 a negative
    preference is for the first response; rows without a preference are set aside.
    """
    for prompt, group in groupby(rows, lambda row: (row.get("prompt"), row.get("context"))):
        answers = list(group)
        if prompt[1] is not None:
            yield from (_kept(_helpsteer3, row) for row in answers)
            continue
        rated = [row for row in answers if _filled(row.get("response")) and _number(row.get("helpfulness")) is not None]
        # A row that cannot be compared is set aside by itself.
        yield from (Refused("response or helpfulness is null", row) for row in answers if row not in rated)
        ordered = sorted(rated, key=lambda row: (-_helpfulness(row), -(_number(row.get("correctness")) or 0)))
        for best in ordered[:1]:
            below = [row for row in ordered if _helpfulness(row) < _helpfulness(best)]
            worse = ((str(row["response"]), _helpfulness(row)) for row in below)
            yield _kept(_helpsteer2, {**best, "worse_given": _worse(*worse, than=str(best["response"]))})


def _helpfulness(row: Row) -> float:
    return float(str(row["helpfulness"]))


def _helpsteer2(row: Row) -> Row:
    prompt = row.get("prompt")
    first, *further = prompt.split("<extra_id_1>") if isinstance(prompt, str) else [""]
    turns = [{"role": "user", "content": first.strip()}]
    for part in further:
        role, _, content = part.partition("\n")
        turns.append({"role": role.strip().lower(), "content": content.strip()})
    return {**row, "prompt": chats.turns(turns, "prompt"), "rating": _helpfulness(row)}


def _helpsteer3(row: Row) -> Row:
    preference = _number(row.get("overall_preference"))
    if not preference:
        raise Reject("overall_preference is for neither response")
    names = ("response1", "response2") if preference < 0 else ("response2", "response1")
    golden, other = (_answer(row.get(name), name) for name in names)
    kept = {name: cell for name, cell in row.items() if name not in ("context", "response1", "response2")}
    worse = _worse((other, None), than=golden)
    return {**kept, "prompt": chats.turns(row.get("context"), "context"), "response": golden, "worse_given": worse}


def _oasst(rows: Iterable[Row]) -> Iterator[Item]:
    """Gather the best paths of trees of messages (OpenAssistant/oasst1 and oasst2, the table of messages or the trees).

    {"message_id": "…", "parent_id": null, "message_tree_id": "…", "text": "Name a sea.", "role": "prompter", "lang": "en",
     "rank": null, "deleted": false, "tree_state": "ready_for_export", …}
    {"message_tree_id": "…", "tree_state": "…", "prompt": {"message_id": "…", "text": "…", "role": "prompter", "lang": "en",
     "replies": [{"message_id": "…", "text": "…", "role": "assistant", "rank": 0, "replies": […]}]}}

    A row is a question whose answers before it are all the best of their siblings; its best answer (rank 0, or the only
    one) is the response, the answers ranked below it are worse, and a rating is minus the rank. Deleted messages are left
    out. The messages of a tree follow each other in the published files: one tree is held in memory at a time.
    """
    finished: set[int] = set()
    refused: list[Refused] = []

    def trees() -> Iterator[tuple[str, Row]]:
        for row in rows:
            if isinstance(tree_id := row.get("message_tree_id"), str):
                yield tree_id, row
            else:
                refused.append(Refused("message_tree_id is no text", row))

    for tree_id, group in groupby(trees(), lambda tree: tree[0]):
        # The hashes of their ids are all that is kept of earlier trees.
        if hash(tree_id) in finished:
            raise SourceError(
                f"layout oasst: the messages of tree {tree_id} do not follow each other; sort the rows by message_tree_id"
            )
        finished.add(hash(tree_id))
        messages: dict[str, Row] = {}
        for _, row in group:
            for message in _flat(row):
                message_id = message.get("message_id")
                whole = all(isinstance(message.get(name), str) for name in ("message_id", "text"))
                if whole and isinstance(message.get("parent_id"), str | None) and message_id not in messages:
                    messages[str(message_id)] = message
                else:
                    refused.append(
                        Refused("message_id, parent_id or text is no text, or message_id is not the first", row)
                    )
        yield from refused
        refused.clear()
        replies: dict[object, list[Row]] = {}
        for message in messages.values():
            if not message.get("deleted"):
                replies.setdefault(message.get("parent_id"), []).append(message)
        paths: list[tuple[Row, chats.Turns]] = [(root, []) for root in replies.get(None, [])]
        while paths:
            message, before = paths.pop(0)
            question = [*before, {"role": "user", "content": str(message.get("text"))}]
            answers = sorted(replies.get(message.get("message_id"), []), key=_rank)
            if not answers:
                continue
            best = answers[0]
            golden = str(best.get("text"))
            ranked = [answer for answer in answers[1:] if _number(answer.get("rank")) is not None]
            worse = [(str(answer.get("text")), -_rank(answer)) for answer in ranked if _rank(answer) > _rank(best)]
            rank = _number(best.get("rank"))
            yield {
                "prompt": question,
                "response": golden,
                "rating": None if rank is None else -rank,
                "worse_given": _worse(*worse, than=golden),
                "message_id": best.get("message_id"),
                "message_tree_id": tree_id,
                "lang": best.get("lang"),
            }
            turns = [*question, {"role": "assistant", "content": golden}]
            paths += [(reply, turns) for reply in replies.get(best.get("message_id"), [])]
    yield from refused


def _rank(message: Mapping[str, object]) -> float:
    rank = _number(message.get("rank"))
    return float("inf") if rank is None else rank


def _flat(row: Row) -> Iterator[Row]:
    """Return the messages of a row: itself, or those of the whole tree that it holds."""
    if not isinstance(row.get("prompt"), dict):
        yield row
        return
    remaining: list[tuple[Row, object]] = [(cast(Row, row["prompt"]), None)]
    while remaining:
        message, parent = remaining.pop(0)
        yield {**message, "parent_id": parent}
        replies = message.get("replies")
        # A reply that is no message ends its path.
        known = [reply for reply in replies if isinstance(reply, dict)] if isinstance(replies, list) else []
        remaining += [(reply, message.get("message_id")) for reply in known]


_PAIR = ("instruction", "input", "output", "system", "history", "chosen", "rejected")
_TREE = (("message_id", "parent_id", "message_tree_id", "text", "role"), ("message_tree_id", "prompt", "tree_state"))
_HELPFUL = (("prompt", "response", "helpfulness"), ("context", "response1", "response2", "overall_preference"))
_BINARIZED = (
    "prompt",
    "chosen",
    "rejected",
    "messages",
    "score_chosen",
    "score_rejected",
    "chosen-rating",
    "rejected-rating",
)
_SAFER = ("prompt", "response_0", "response_1", "safer_response_id")

LAYOUTS: dict[str, Layout] = {
    "alpaca": Layout(
        (("instruction", "output"), ("instruction", "chosen", "rejected")),
        _PAIR,
        ("worse_given",),
        _alpaca,
        chat=("system", "history"),
    ),
    "sharegpt": Layout(
        (("conversations",), ("conversation",)),
        ("conversations", "conversation", "system", "system_prompt", "chosen", "rejected"),
        ("worse_given",),
        _sharegpt,
    ),
    "messages": Layout((("messages",),), ("messages", "prompt", "system"), (), _messages),
    "hh": Layout((("chosen", "rejected"),), ("chosen", "rejected"), ("worse_given",), _hh),
    "ultrafeedback": Layout(
        (("instruction", "completions"), ("prompt", "chosen", "rejected"), ("chosen", "rejected")),
        ("instruction", "completions", *_BINARIZED),
        ("worse_given", "rating"),
        _ultrafeedback,
        chat=("chosen",),
    ),
    "nectar": Layout((("prompt", "answers"),), ("prompt", "answers"), ("worse_given", "rating"), _nectar),
    "oasst": Layout(_TREE, (), ("worse_given", "rating"), gather=_oasst),
    "pku_saferlhf": Layout((_SAFER,), _SAFER[:3], ("worse_given", "is_safe", "is_better"), _pku_saferlhf, chat=False),
    "helpsteer": Layout(_HELPFUL, (), ("worse_given", "rating"), gather=_helpsteer),
    "verl": Layout((("prompt", "data_source", "reward_model"),), ("prompt",), (), _verl, answered=False),
    "rewardbench": Layout(
        (("prompt", "chosen", "rejected"),),
        ("prompt", "chosen", "rejected"),
        ("worse_given", "other_golden"),
        _rewardbench,
        chat=False,
    ),
    "dolly": Layout((("instruction", "response"),), ("instruction", "context", "response"), (), _dolly, chat=False),
}
"""The layouts by name. To add one, write its function and add a row."""


def looks_like(row: Row) -> str | None:
    """Return the layout that a row's columns and values are of; None where none fits.

    Example:
        >>> looks_like({"instruction": "Put it into the past tense.", "input": "I walk", "output": "I walked"})
        'alpaca'
    """
    names = set(row)

    def has(*columns: str) -> bool:
        return names.issuperset(columns)

    chosen = row.get("chosen")
    tests = {
        "verl": has("data_source", "prompt", "reward_model"),
        "oasst": has("message_id", "parent_id", "message_tree_id", "text")
        or has("message_tree_id", "prompt", "tree_state"),
        "helpsteer": has("prompt", "response", "helpfulness", "verbosity") or has(*_HELPFUL[1]),
        "pku_saferlhf": has(*_SAFER),
        "nectar": has("prompt", "answers") and _is_ranked(row["answers"]),
        "ultrafeedback": has("instruction", "completions")
        or (has("chosen", "rejected") and isinstance(chosen, list) and _is_chat(chosen)),
        "hh": has("chosen", "rejected") and isinstance(chosen, str) and chosen.lstrip().startswith("Human:"),
        "rewardbench": has("prompt", "chosen", "rejected") and (has("subset") or _are_texts(row)),
        "dolly": has("instruction", "context", "response"),
        "alpaca": has("instruction", "input", "output") or has("instruction", "output"),
        "sharegpt": _is_chat(row.get("conversations")),
        "messages": _is_chat(row.get("messages")),
    }
    return next((name for name, fits in tests.items() if fits), None)


def _are_texts(row: Row) -> bool:
    return all(isinstance(row[name], str) for name in ("prompt", "chosen", "rejected"))


def _is_ranked(value: object) -> bool:
    return (
        isinstance(value, list) and bool(value) and isinstance(value[0], dict) and {"answer", "rank"} <= set(value[0])
    )


def _is_chat(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], dict)
        and bool({"role", "from"} & set(value[0]))
    )
