"""A judge that likes short answers, and what stands first a little too much; it says why, and at times says nothing."""

import hashlib
import re

RESPONSE = re.compile(r"\[begin of response ([AB]) \w+\]\n(.*?)\n\[end of response \1 \w+\]", re.DOTALL)


def terse(conversations):
    answers = []
    for messages in conversations:
        found = dict(RESPONSE.findall(messages[-1]["content"]))
        first, second = (len(set(found[name].split())) for name in "AB")
        luck = int(hashlib.sha256(messages[-1]["content"].encode()).hexdigest(), 16) % 20
        if luck == 0:
            answers.append("I would rather not say.")
            continue
        more, verdict = (first, "A") if first >= second - (luck < 6) else (second, "B")
        verdict = "C" if first == second and luck > 14 else verdict
        answers.append(f"Response {verdict} names {more} different words.\n\n[[{verdict}]]")
    return answers
