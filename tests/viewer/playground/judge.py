"""A judge that likes many different words, and what stands first a little too much; at times it says nothing."""

import hashlib
import re

RESPONSE = re.compile(r"\[begin of response ([AB]) \w+\]\n(.*?)\n\[end of response \1 \w+\]", re.DOTALL)

REASONS = {
    "A": "Response A names {} different words, which is enough to carry out the instruction.",
    "B": "Response B names {} different words, and that is what was asked for.",
    "C": "Both name {} different words; I see nothing that sets them apart.",
}


def wordy(conversations):
    answers = []
    for messages in conversations:
        # what comes after it asks for an answer that could be read
        question = next(each["content"] for each in messages if each["role"] == "user")
        found = dict(RESPONSE.findall(question))
        first, second = (len(set(found[name].split())) for name in "AB")
        luck = int(hashlib.sha256(question.encode()).hexdigest(), 16) % 40
        if luck == 0:
            answers.append("I would rather not say.")
            continue
        more, verdict = (first, "A") if first >= second - (luck < 12) else (second, "B")
        verdict = "C" if first == second and luck > 28 else verdict
        answers.append(f"{REASONS[verdict].format(more)}\n\n[[{verdict}]]")
    return answers
