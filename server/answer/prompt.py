"""What a generation model is asked: to answer from numbered passages, and to rewrite a question that refers back."""

import re
from collections.abc import Sequence

from tuneserve.evaluation.words import Rarity, words
from tuneserve.server.answer.markers import NOT_FOUND
from tuneserve.v1 import answer_pb2 as pb
from tuneserve.v1.generation_pb2 import Chat, ChatMessage

# Turns before the question that the model reads, and characters of each where they are quoted.
_TURNS, _QUOTED = 4, 500
# A question of more words says itself what it is about; one of so few says hardly anything.
_SHORT, _BARE = 12, 3
_LONGEST = 512
# So many of a rewritten question's words are from the conversation.
_KNOWN = 0.7
# English, German, French, Spanish, Swedish.
_WORDS = """
it its they their them he him his she her this that these those there one ones and
er sie es ihn ihm ihr ihre das dies diese dieser dieses dort dafür davon damit und
il elle ils elles cela ça celui celle ceux et él ella ellos ellas eso esto ese esa y
den det dem dessa denna detta dess hon han och
"""
_REFERRING = frozenset(_WORDS.split())
# Chinese and Japanese.
_SIGNS = re.compile("[它他她这那其呢]|それ|これ|あれ|その|この")
_PAIRED_BARE = 6

_ANSWER = (
    "Answer the question from the passages below and from nothing else, in the question's language. After each "
    "sentence, write the number of the passage that it comes from, like [1]. If the passages do not answer the "
    f"question, write only {NOT_FOUND}."
)
_REWRITE = (
    "Rewrite the last question so that it can be understood without the conversation. Keep its words, and replace only "
    "those that refer to something before. Write the question alone."
)


def answering(messages: Sequence[pb.AnswerMessage], query: str, passages: Sequence[pb.Passage]) -> Chat:
    """Returns a conversation whose last message has the passages, numbered from 1, and the query."""
    parts = [_ANSWER]
    for number, one in enumerate(passages, 1):
        parts.append(f"[{number}] {one.title}\n{one.text}" if one.title else f"[{number}] {one.text}")
    parts.append(f"Question: {query}")
    turns = [ChatMessage(role=one.role, content=one.content) for one in _before(messages)]
    return Chat(messages=[*turns, ChatMessage(role="user", content="\n\n".join(parts))])


def rewriting(messages: Sequence[pb.AnswerMessage]) -> Chat:
    """Returns a conversation of one message, which quotes the last turns and asks for the question to be rewritten."""
    quoted = "\n".join(f"{one.role}: {one.content[:_QUOTED]}" for one in _before(messages))
    asked = f"{_REWRITE}\n\nConversation:\n{quoted}\n\nLast question: {messages[-1].content}"
    return Chat(messages=[ChatMessage(role="user", content=asked)])


def refers_back(messages: Sequence[pb.AnswerMessage]) -> bool:
    """Whether the last question may need the turns before it: a short one with a word that refers, or hardly any."""
    question = messages[-1].content.casefold()
    said = re.findall(r"\w+", question)
    if len(messages) == 1 or len(said) > _SHORT:
        return False
    if _SIGNS.search(question) or not _REFERRING.isdisjoint(said):
        return True
    return len(said) <= _BARE and len("".join(said)) <= _PAIRED_BARE * len(said)


def checked(messages: Sequence[pb.AnswerMessage], rewritten: str) -> str:
    """Returns the rewritten question if it keeps the words of the question, and takes the others from the conversation.
    The question as it is, if not.
    """
    question, one = messages[-1].content, rewritten.strip()
    kept = {word for word in words(question) if word not in _REFERRING and len(word) > 1}
    known = frozenset().union(*(words(turn.content) for turn in messages))
    if not one or len(one) > _LONGEST or "\n" in one or not kept <= words(one):
        return question
    return one if Rarity([known]).share(words(one), known) >= _KNOWN else question


def _before(messages: Sequence[pb.AnswerMessage]) -> Sequence[pb.AnswerMessage]:
    """Returns the last turns before the question, from one of the user's on: templates want that."""
    turns = messages[:-1][-_TURNS:]
    first = next((place for place, one in enumerate(turns) if one.role == "user"), len(turns))
    return turns[first:]
